// TLS and bearer tokens against servers of this process.
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/attention_client.h"
#include "gmock/gmock.h"
#include "grpcpp/security/server_credentials.h"
#include "gtest/gtest.h"
#include "tests/client/secure_server.h"
#include "tests/client/test_certificates.h"

namespace flashbias::client {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr RetryPolicy kFastRetry = {.max_attempts = 4,
                                    .initial_backoff = absl::Milliseconds(2),
                                    .max_backoff = absl::Milliseconds(8)};
constexpr char kToken[] = "eyJh.eyJz.c2ln-_~+/==";

std::unique_ptr<AttentionClient> Connect(AttentionClient::Options options) {
  options.retry = kFastRetry;
  absl::StatusOr<std::unique_ptr<AttentionClient>> client =
      AttentionClient::Create(std::move(options));
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

std::string Address(const SecureServer& server) {
  return absl::StrCat("127.0.0.1:", server.port());
}

// The status of one of each kind of call.
std::vector<absl::Status> CallAll(AttentionClient& client) {
  std::vector<float> values(16, 0.5f);
  std::vector<float> lse(2, 0.0f);
  const TensorView tensor = {.shape = {2, 1, 8}, .data = values.data()};
  AttendBackwardRequest backward;
  backward.forward = {.q = tensor, .k = tensor, .v = tensor, .mask = MaskKind::kFull};
  backward.o = tensor;
  backward.lse = lse;
  backward.d_o = tensor;
  return {client.GetServerInfo().status(), client.Attend(backward.forward).status(),
          client.AttendBackward(backward).status()};
}

class SecureConnectionTest : public testing::Test {
 protected:
  std::shared_ptr<grpc::ServerCredentials> Credentials(
      const TestIdentity& identity,
      grpc_ssl_client_certificate_request_type ask = GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE) {
    grpc::SslServerCredentialsOptions options(ask);
    options.pem_root_certs = authority_.certificate();
    options.pem_key_cert_pairs.push_back({identity.key, identity.certificate});
    return grpc::SslServerCredentials(options);
  }
  std::shared_ptr<grpc::ServerCredentials> AskingCredentials() {
    return Credentials(authority_.Issue("IP:127.0.0.1"),
                       GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }

  const TestAuthority authority_;
};

TEST_F(SecureConnectionTest, CallsOverTls) {
  const SecureServer server(Credentials(authority_.Issue("DNS:localhost,IP:127.0.0.1")));
  const auto client = Connect({.target = Address(server),
                               .tls = TlsOptions{.root_certificates = authority_.certificate()}});
  const absl::Status status = client->GetServerInfo().status();
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(SecureConnectionTest, AnUnknownAuthorityIsAFailedHandshake) {
  SecureServer server(Credentials(authority_.Issue("IP:127.0.0.1")));
  const auto client =
      Connect({.target = Address(server),
               .tls = TlsOptions{.root_certificates = TestAuthority().certificate()},
               .bearer_token = kToken});
  const absl::Status status = client->GetServerInfo().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("handshake"), Not(HasSubstr(kToken))));
  EXPECT_TRUE(server.authorizations("GetServerInfo").empty());
}

TEST_F(SecureConnectionTest, TheSystemsRootsDoNotKnowATestsAuthority) {
  const SecureServer server(Credentials(authority_.Issue("IP:127.0.0.1")));
  const auto client = Connect({.target = Address(server), .tls = TlsOptions{}});
  EXPECT_EQ(client->GetServerInfo().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(SecureConnectionTest, TheCertificateMustCarryTheName) {
  const SecureServer server(Credentials(authority_.Issue("DNS:attention.example")));
  TlsOptions tls = {.root_certificates = authority_.certificate()};
  const absl::Status wrong =
      Connect({.target = Address(server), .tls = tls})->GetServerInfo().status();
  EXPECT_EQ(wrong.code(), absl::StatusCode::kUnavailable) << wrong;
  tls.server_name = "attention.example";
  const absl::Status right =
      Connect({.target = Address(server), .tls = tls})->GetServerInfo().status();
  EXPECT_TRUE(right.ok()) << right;
  const absl::Status list = Connect({.target = "ipv4:" + Address(server) + "," + Address(server),
                                     .load_balancing = LoadBalancing::kRoundRobin,
                                     .tls = tls})
                                ->GetServerInfo()
                                .status();
  EXPECT_TRUE(list.ok()) << list;
}

TEST_F(SecureConnectionTest, AServerMayAskWhoCalls) {
  const SecureServer server(AskingCredentials());
  const TestIdentity mine = authority_.Issue("DNS:me.example");
  TlsOptions tls = {.root_certificates = authority_.certificate()};
  const absl::Status unknown =
      Connect({.target = Address(server), .tls = tls})->GetServerInfo().status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kUnavailable) << unknown;
  tls.certificate_chain = mine.certificate;
  tls.private_key = mine.key;
  const absl::Status known =
      Connect({.target = Address(server), .tls = tls})->GetServerInfo().status();
  EXPECT_TRUE(known.ok()) << known;
}

TEST_F(SecureConnectionTest, ACertificateOfAnotherAuthorityIsRefused) {
  const SecureServer server(AskingCredentials());
  const TestIdentity stranger = TestAuthority().Issue("DNS:me.example");
  const auto client = Connect({.target = Address(server),
                               .tls = TlsOptions{.root_certificates = authority_.certificate(),
                                                 .certificate_chain = stranger.certificate,
                                                 .private_key = stranger.key}});
  EXPECT_EQ(client->GetServerInfo().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(SecureConnectionTest, PlainTextToAServerThatSpeaksTlsIsUnavailable) {
  const SecureServer server(Credentials(authority_.Issue("IP:127.0.0.1")));
  const auto client = Connect({.target = Address(server)});
  EXPECT_EQ(client->GetServerInfo().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(SecureConnectionTest, EveryAttemptOfEveryCallCarriesTheToken) {
  SecureServer server(Credentials(authority_.Issue("IP:127.0.0.1")));
  const std::string bearer = absl::StrCat("Bearer ", kToken);
  AttentionClient::Options options = {
      .target = Address(server),
      .tls = TlsOptions{.root_certificates = authority_.certificate()},
      .bearer_token = kToken};
  for (const absl::Status& status : CallAll(*Connect(options))) EXPECT_TRUE(status.ok()) << status;
  options.stream_above_bytes = 0;
  CallAll(*Connect(options));
  // The first attempt of each was UNAVAILABLE; GetServerInfo was called by both clients.
  EXPECT_THAT(server.authorizations("GetServerInfo"), ElementsAre(bearer, bearer, bearer));
  for (const char* method : {"Attend", "AttendBackward", "AttendStream", "AttendBackwardStream"}) {
    EXPECT_THAT(server.authorizations(method), ElementsAre(bearer, bearer)) << method;
  }
}

TEST_F(SecureConnectionTest, WithoutTokenNoneIsSent) {
  SecureServer server(grpc::InsecureServerCredentials());
  for (const absl::Status& status : CallAll(*Connect({.target = Address(server)}))) {
    EXPECT_TRUE(status.ok()) << status;
  }
  EXPECT_THAT(server.authorizations("Attend"), ElementsAre("", ""));
}

TEST_F(SecureConnectionTest, OverAUnixSocketTheTokenNeedsNoTls) {
  const std::string path = absl::StrCat(testing::TempDir(), "secure_connection_test.", getpid());
  {
    SecureServer server(grpc::InsecureServerCredentials(), "unix:" + path);
    const auto client = Connect({.target = "unix:" + path, .bearer_token = kToken});
    const absl::Status status = client->GetServerInfo().status();
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_THAT(server.authorizations("GetServerInfo"),
                ElementsAre(absl::StrCat("Bearer ", kToken), absl::StrCat("Bearer ", kToken)));
  }
  unlink(path.c_str());
}

TEST_F(SecureConnectionTest, CreateRefusesATokenThatWouldTravelInPlainText) {
  const absl::Status far =
      AttentionClient::Create({.target = "10.0.0.1:1", .bearer_token = kToken}).status();
  EXPECT_EQ(far.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(far.message()),
              AllOf(HasSubstr("bearer_token is given without tls for the target '10.0.0.1:1'"),
                    HasSubstr("accepted: tls, or a target on this host"), Not(HasSubstr(kToken))));
  for (const char* target : {"127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/s"}) {
    const absl::Status near =
        AttentionClient::Create({.target = target, .bearer_token = kToken}).status();
    EXPECT_TRUE(near.ok()) << target << ": " << near;
  }
  EXPECT_TRUE(
      AttentionClient::Create({.target = "10.0.0.1:1", .tls = TlsOptions{}, .bearer_token = kToken})
          .ok());
}

TEST_F(SecureConnectionTest, CreateNamesTheFieldThatIsWrong) {
  const auto message = [](AttentionClient::Options options) {
    options.target = "localhost:1";
    const absl::Status status = AttentionClient::Create(std::move(options)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(message({.tls = TlsOptions{.root_certificates = "x"}}),
              HasSubstr("tls.root_certificates holds no certificate"));
  const absl::Status list =
      AttentionClient::Create({.target = "ipv4:10.0.0.1:1,10.0.0.2:1", .tls = TlsOptions{}})
          .status();
  EXPECT_EQ(list.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(list.message()), HasSubstr("tls.server_name is empty; accepted with"));
  EXPECT_THAT(message({.bearer_token = "secret\n"}),
              AllOf(HasSubstr("bearer_token: byte 7 of 7"), Not(HasSubstr("secret"))));
  EXPECT_THAT(message({.load_balancing = static_cast<LoadBalancing>(7)}),
              HasSubstr("load_balancing is 7; accepted: kPickFirst, kRoundRobin"));
}

// Sets a variable of the environment, or none where `value` is null, for a while.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const char* value) : name_(name) {
    if (const char* before = getenv(name); before != nullptr) before_ = before;
    Set(value);
  }
  ~ScopedVariable() { Set(before_.has_value() ? before_->c_str() : nullptr); }
  ScopedVariable(const ScopedVariable&) = delete;
  ScopedVariable& operator=(const ScopedVariable&) = delete;

 private:
  void Set(const char* value) const {
    if (value == nullptr) {
      unsetenv(name_);
    } else {
      setenv(name_, value, 1);
    }
  }

  const char* const name_;
  std::optional<std::string> before_;
};

TEST_F(SecureConnectionTest, NoProxySeesATokenInPlainText) {
  const SecureServer server(grpc::InsecureServerCredentials());
  const ScopedVariable proxy("grpc_proxy", "http://127.0.0.1:1");  // where nobody listens
  const ScopedVariable no_proxy("no_proxy", nullptr);
  const ScopedVariable no_grpc_proxy("no_grpc_proxy", nullptr);
  const absl::Status direct =
      Connect({.target = Address(server), .bearer_token = kToken})->GetServerInfo().status();
  EXPECT_TRUE(direct.ok()) << direct;
  const absl::Status proxied = Connect({.target = Address(server)})->GetServerInfo().status();
  EXPECT_EQ(proxied.code(), absl::StatusCode::kUnavailable) << proxied;
}

}  // namespace
}  // namespace flashbias::client

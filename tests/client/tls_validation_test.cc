#include "client/tls_validation.h"

#include <openssl/err.h>

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/test_certificates.h"

namespace flashbias::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string MessageOf(const TlsOptions& tls, const TlsNames& names = {}) {
  const absl::Status status = ValidateTlsOptions(tls, names);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

class TlsValidationTest : public testing::Test {
 protected:
  const TestAuthority authority_;
  const TestIdentity mine_ = authority_.Issue("DNS:me.example");
};

TEST_F(TlsValidationTest, AcceptsNothingAndWhatBelongsTogether) {
  EXPECT_TRUE(ValidateTlsOptions({}).ok());
  EXPECT_TRUE(ValidateTlsOptions({.root_certificates = authority_.certificate()}).ok());
  const absl::Status whole =
      ValidateTlsOptions({.root_certificates = "a comment\n" + authority_.certificate() + "\n" +
                                               TestAuthority().certificate(),
                          .certificate_chain = mine_.certificate + authority_.certificate(),
                          .private_key = mine_.key,
                          .server_name = "server.example"});
  EXPECT_TRUE(whole.ok()) << whole;
  const std::string one_file = mine_.certificate + mine_.key;
  const absl::Status same =
      ValidateTlsOptions({.certificate_chain = one_file, .private_key = one_file});
  EXPECT_TRUE(same.ok()) << same;
}

TEST_F(TlsValidationTest, RefusesRootsThatCannotBeReadInWhole) {
  EXPECT_THAT(MessageOf({.root_certificates = "no PEM"}),
              HasSubstr("tls.root_certificates holds no certificate; accepted: PEM"));
  EXPECT_THAT(MessageOf({.root_certificates = mine_.key}), HasSubstr("holds no certificate"));
  // Cut off in the second certificate, and one with a character that is not base64's.
  const std::string first = authority_.certificate();
  EXPECT_THAT(MessageOf({.root_certificates = first + first.substr(0, first.size() / 2)}),
              HasSubstr("tls.root_certificates: certificate 2 cannot be read ("));
  std::string corrupt = first;
  corrupt[first.size() / 2] = '!';
  EXPECT_THAT(MessageOf({.root_certificates = corrupt}), HasSubstr("certificate 1 cannot be read"));
  EXPECT_THAT(MessageOf({.root_certificates =
                             "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}),
              HasSubstr("certificate 1 cannot be read"));
  EXPECT_THAT(MessageOf({.root_certificates = std::string((16 << 20) + 1, 'x')}),
              HasSubstr("has 16777217 bytes; accepted: at most 16777216"));
}

TEST_F(TlsValidationTest, RefusesHalfAnIdentityAndKeysThatDoNotFit) {
  EXPECT_THAT(MessageOf({.certificate_chain = mine_.certificate}),
              HasSubstr("tls.certificate_chain is given without tls.private_key"));
  EXPECT_THAT(MessageOf({.private_key = mine_.key}),
              HasSubstr("tls.private_key is given without tls.certificate_chain"));
  EXPECT_THAT(MessageOf({.certificate_chain = mine_.key, .private_key = mine_.key}),
              HasSubstr("tls.certificate_chain holds no certificate"));
  EXPECT_THAT(MessageOf({.certificate_chain = mine_.certificate, .private_key = mine_.certificate}),
              HasSubstr("tls.private_key holds no private key that can be read"));
  EXPECT_THAT(
      MessageOf({.certificate_chain = mine_.certificate, .private_key = TestAuthority::MakeKey()}),
      HasSubstr("tls.private_key is not the key of the first certificate of "
                "tls.certificate_chain"));
  EXPECT_THAT(MessageOf({.certificate_chain = mine_.certificate,
                         .private_key = TestAuthority::MakeKey("secret")}),
              AllOf(HasSubstr("tls.private_key has a passphrase"), Not(HasSubstr("secret"))));
}

TEST_F(TlsValidationTest, ErrorsUseTheCallersNames) {
  EXPECT_THAT(MessageOf({.root_certificates = "x"}, {.root_certificates = "--ca: a.pem"}),
              HasSubstr("--ca: a.pem holds no certificate"));
}

TEST_F(TlsValidationTest, AServerNameIsAHostOrAnAddressWithoutPort) {
  for (const char* name : {"localhost", "a-b.example.org", "x_y", "10.0.0.1", "fe80::1", "::1"}) {
    EXPECT_TRUE(ValidateTlsOptions({.server_name = name}).ok()) << name;
  }
  for (const std::string& name :
       {std::string("host:8471"), std::string("a b"), std::string("a..b"), std::string("dns:///a"),
        std::string("a/b"), std::string("a\nb"), std::string("::1\0", 4), std::string(64, 'a'),
        std::string("*.example")}) {
    EXPECT_THAT(MessageOf({.server_name = name}),
                AllOf(HasSubstr("tls.server_name is '"), HasSubstr("accepted: a host name"),
                      Not(HasSubstr("\n"))));
  }
}

TEST_F(TlsValidationTest, LeavesTheThreadsOpenSslErrorsAlone) {
  ERR_clear_error();
  ERR_raise(ERR_LIB_USER, 7);
  const unsigned long before = ERR_peek_last_error();
  MessageOf({.root_certificates = "x"});
  MessageOf({.certificate_chain = mine_.certificate, .private_key = TestAuthority::MakeKey("s")});
  EXPECT_TRUE(ValidateTlsOptions({.root_certificates = authority_.certificate()}).ok());
  EXPECT_EQ(ERR_peek_last_error(), before);
  ERR_clear_error();
}

}  // namespace
}  // namespace flashbias::client

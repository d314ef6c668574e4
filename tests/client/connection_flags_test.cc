#include "client/flags/connection_flags.h"

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "absl/flags/reflection.h"
#include "client/flags/command_line.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/test_certificates.h"

namespace flashbias::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class ConnectionFlagsTest : public testing::Test {
 protected:
  ~ConnectionFlagsTest() override {
    for (const std::string& path : written_) std::remove(path.c_str());
  }

  std::string Write(const std::string& name, const std::string& content) {
    written_.push_back(testing::TempDir() + "connection_flags_test_" +
                       testing::UnitTest::GetInstance()->current_test_info()->name() + "_" + name);
    std::ofstream(written_.back()) << content;
    return written_.back();
  }

  // What `arguments` make of the options, once.
  absl::Status Options(const std::vector<std::string>& arguments) {
    const absl::FlagSaver saver;
    std::vector<const char*> texts;
    for (const std::string& argument : arguments) texts.push_back(argument.c_str());
    EXPECT_TRUE(ParseFlags(texts).ok());
    return ConnectionOptionsFromFlags(&options_);
  }
  std::string MessageOf(const std::vector<std::string>& arguments) {
    return std::string(Options(arguments).message());
  }

  AttentionClient::Options options_ = {.target = "10.0.0.1:8471", .num_connections = 3};
  std::vector<std::string> written_;
  const TestAuthority authority_;
  const TestIdentity mine_ = authority_.Issue("DNS:me.example");
};

TEST_F(ConnectionFlagsTest, WithoutFlagsThereIsNeitherTlsNorToken) {
  options_.tls.emplace();
  options_.bearer_token = "x";
  options_.load_balancing = LoadBalancing::kRoundRobin;
  ASSERT_TRUE(Options({}).ok());
  EXPECT_FALSE(options_.tls.has_value());
  EXPECT_EQ(options_.bearer_token, "");
  EXPECT_EQ(options_.load_balancing, LoadBalancing::kPickFirst);
  EXPECT_EQ(options_.target, "10.0.0.1:8471");
  EXPECT_EQ(options_.num_connections, 3);
}

TEST_F(ConnectionFlagsTest, FilesBecomeOptions) {
  const absl::Status status =
      Options({"--tls", "--tls_ca_file=" + Write("ca", authority_.certificate()),
               "--tls_cert_file=" + Write("cert", mine_.certificate),
               "--tls_key_file=" + Write("key", mine_.key), "--tls_server_name=a.example",
               "--token_file=" + Write("token", "abc.def==\r\n"), "--load_balancing=round_robin"});
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_TRUE(options_.tls.has_value());
  EXPECT_EQ(options_.tls->root_certificates, authority_.certificate());
  EXPECT_EQ(options_.tls->certificate_chain, mine_.certificate);
  EXPECT_EQ(options_.tls->private_key, mine_.key);
  EXPECT_EQ(options_.tls->server_name, "a.example");
  EXPECT_EQ(options_.bearer_token, "abc.def==");
  EXPECT_EQ(options_.load_balancing, LoadBalancing::kRoundRobin);
  EXPECT_TRUE(AttentionClient::Create(options_).ok());
}

TEST_F(ConnectionFlagsTest, TlsAloneTrustsTheSystem) {
  ASSERT_TRUE(Options({"--tls"}).ok());
  ASSERT_TRUE(options_.tls.has_value());
  EXPECT_EQ(options_.tls->root_certificates, "");
}

TEST_F(ConnectionFlagsTest, FlagsThatExcludeEachOther) {
  EXPECT_THAT(MessageOf({"--load_balancing=random"}),
              HasSubstr("--load_balancing is 'random'; accepted: pick_first, round_robin"));
  for (const std::string flag :
       {"--tls_ca_file", "--tls_cert_file", "--tls_key_file", "--tls_server_name"}) {
    EXPECT_EQ(Options({flag + "=x"}), absl::InvalidArgumentError(flag + " is given without --tls"));
  }
  for (const std::string flag : {"--tls_cert_file", "--tls_key_file"}) {
    EXPECT_THAT(MessageOf({"--tls", flag + "=x"}),
                HasSubstr("--tls_cert_file and --tls_key_file are given together"));
  }
  EXPECT_THAT(MessageOf({"--tls", "--tls_server_name=a:1"}),
              HasSubstr("--tls_server_name is 'a:1'; accepted: a host name"));
  EXPECT_THAT(MessageOf({"--token_file=/nowhere/token"}),
              HasSubstr("--token_file is given without --tls for the target '10.0.0.1:8471'"));
}

TEST_F(ConnectionFlagsTest, ErrorsNameFlagAndFile) {
  const absl::Status missing = Options({"--tls", "--tls_ca_file=/nowhere/ca.pem"});
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()),
              HasSubstr("--tls_ca_file: /nowhere/ca.pem: cannot read"));
  EXPECT_THAT(MessageOf({"--tls", "--token_file=/nowhere/token"}),
              HasSubstr("--token_file: /nowhere/token: cannot read"));

  const std::string key = Write("key", mine_.key);
  const std::string cert = Write("cert", mine_.certificate);
  EXPECT_THAT(MessageOf({"--tls", "--tls_ca_file=" + key}),
              HasSubstr("--tls_ca_file: " + key + " holds no certificate"));
  EXPECT_THAT(MessageOf({"--tls", "--tls_cert_file=" + key, "--tls_key_file=" + key}),
              HasSubstr("--tls_cert_file: " + key + " holds no certificate"));
  const std::string other = Write("other", TestAuthority::MakeKey());
  EXPECT_THAT(MessageOf({"--tls", "--tls_cert_file=" + cert, "--tls_key_file=" + other}),
              HasSubstr("--tls_key_file: " + other +
                        " is not the key of the first certificate of --tls_cert_file: " + cert));
  EXPECT_FALSE(options_.tls.has_value());
}

TEST_F(ConnectionFlagsTest, ATokenIsNeverShown) {
  const std::string token = Write("token", "secret secret\n");
  EXPECT_THAT(
      MessageOf({"--tls", "--token_file=" + token}),
      AllOf(HasSubstr("--token_file: " + token + ": byte 7 of 13"), Not(HasSubstr("secret"))));
  EXPECT_THAT(MessageOf({"--tls", "--token_file=" + Write("blank", " \n")}),
              HasSubstr("holds no token"));
}

TEST_F(ConnectionFlagsTest, HelpListsThem) {
  const std::string text = ConnectionFlagsHelp();
  for (const char* flag : {"--tls ", "--tls_ca_file", "--tls_cert_file", "--tls_key_file",
                           "--tls_server_name", "--token_file", "--load_balancing"}) {
    EXPECT_THAT(text, HasSubstr(flag));
  }
}

}  // namespace
}  // namespace flashbias::client

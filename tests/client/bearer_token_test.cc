#include "client/bearer_token.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashbias::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(BearerTokenTest, AcceptsRfc6750Tokens) {
  for (const char* token : {"a", "mF_9.B5f-4.1JqM", "AZaz09-._~+/", "eyJh.eyJz.c2ln==", "x="}) {
    EXPECT_TRUE(ValidateBearerToken(token, "bearer_token").ok()) << token;
  }
}

TEST(BearerTokenTest, RefusesOthersWithoutShowingThem) {
  for (const std::string& token :
       {std::string("secret token"), std::string("secret\n"), std::string("secret\r\nx: y"),
        std::string("secret\0", 7), std::string("secret=x"),
        std::string("s\xc3\xa9"
                    "cret"),
        std::string("secret,"), std::string("\"secret\"")}) {
    const absl::Status status = ValidateBearerToken(token, "bearer_token");
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("bearer_token: byte "), HasSubstr("accepted: letters, digits"),
                      Not(HasSubstr("secret"))));
  }
  EXPECT_THAT(std::string(ValidateBearerToken("ab cd", "--token_file").message()),
              HasSubstr("--token_file: byte 3 of 5 belongs in no token"));
  for (const char* token : {"", "=", "=="}) {
    EXPECT_THAT(std::string(ValidateBearerToken(token, "bearer_token").message()),
                HasSubstr("bearer_token holds no token"));
  }
}

TEST(BearerTokenTest, KnowsTheTargetsOfThisHost) {
  for (const char* target :
       {"unix:/run/s", "unix:s", "unix:///run/s", "unix-abstract:s", "localhost:8471", "localhost",
        "LocalHost:1", "127.0.0.1:8471", "127.255.0.3:1", "[::1]:8471", "[::1]", "[0:0::1]:1",
        "dns:///localhost:8471", "dns:127.0.0.1:8471", "dns:///[::1]:1",
        "ipv4:127.0.0.1:8471,127.0.0.2:8471"}) {
    EXPECT_TRUE(IsTargetOnThisHost(target)) << target;
  }
  for (const std::string& target : {std::string(),
                                    std::string("10.0.0.1:1"),
                                    std::string("example.org:8471"),
                                    std::string("localhost.example.org:1"),
                                    std::string("127.0.0.1.example.org:1"),
                                    std::string("127.1:1"),
                                    std::string("0.0.0.0:1"),
                                    std::string("[::]:1"),
                                    std::string("[fe80::1]:1"),
                                    std::string("[::ffff:10.0.0.1]:1"),
                                    std::string("[::1"),
                                    std::string("::1"),
                                    std::string("localhost:x"),
                                    std::string("localhost:"),
                                    std::string("localhost:1,10.0.0.1:1"),
                                    std::string("dns://10.0.0.1/localhost:1"),
                                    std::string("dns:///10.0.0.1:1"),
                                    std::string("ipv4:127.0.0.1:1,10.0.0.1:1"),
                                    std::string("ipv4:10.0.0.1:1,127.0.0.1:1"),
                                    std::string("ipv4:localhost:1"),
                                    std::string("ipv4:"),
                                    std::string("ipv4:127.0.0.1:1,"),
                                    std::string("xds:///localhost:1"),
                                    std::string("localhost\0.example.org:1", 24),
                                    std::string("127.0.0.1:1/x"),
                                    std::string("user@localhost:1"),
                                    std::string(" localhost:1")}) {
    EXPECT_FALSE(IsTargetOnThisHost(target)) << target;
  }
}

TEST(BearerTokenTest, OnlyTlsCarriesTokensToOtherHosts) {
  EXPECT_TRUE(CheckTokenStaysPrivate("10.0.0.1:1", true, "bearer_token", "tls").ok());
  EXPECT_TRUE(CheckTokenStaysPrivate("localhost:1", false, "bearer_token", "tls").ok());
  const absl::Status status = CheckTokenStaysPrivate("10.0.0.1:1", false, "bearer_token", "tls");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("bearer_token is given without tls for the target '10.0.0.1:1'"),
                    HasSubstr("accepted: tls, or a target on this host: unix:PATH, localhost")));
}

}  // namespace
}  // namespace flashbias::client

#include "client/call/call_command.h"

#include <cstdio>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "client/call/npy.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/alibi.h"
#include "tests/client/fake_server.h"

namespace flashbias::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CallCommandTest : public testing::Test {
 protected:
  CallCommandTest()
      : server_(
            [this](int, grpc::ServerContext*, const v1::AttendRequest& request,
                   v1::AttendResponse* response) {
              received_ = request;
              return Echo(request, response);
            },
            [this](int, grpc::ServerContext*, const v1::AttendBackwardRequest& request,
                   v1::AttendBackwardResponse* response) {
              received_backward_ = request;
              return Echo(request, response);
            }) {}
  ~CallCommandTest() override {
    for (const std::string& path : written_) std::remove(path.c_str());
  }

  // A path that is removed at the end.
  std::string Path(const std::string& name) {
    // Named after the test: its neighbours run beside it.
    written_.push_back(testing::TempDir() + "call_command_test_" +
                       testing::UnitTest::GetInstance()->current_test_info()->name() + "_" + name);
    return written_.back();
  }

  template <typename T>
  std::string Write(const std::string& name, NpyType type, const std::vector<int64_t>& shape,
                    const std::vector<T>& values) {
    const std::string path = Path(name);
    const absl::string_view bytes(reinterpret_cast<const char*>(values.data()),
                                  values.size() * sizeof(T));
    EXPECT_TRUE(WriteNpy(path, type, shape, bytes).ok());
    return path;
  }

  // A command over files of 2 queries, 3 keys, 2 heads, head_dim 2.
  CallCommand Command() {
    CallCommand command{.client = {.target = server_.target()}};
    command.q = Write<float>("q", NpyType::kFloat32, {2, 2, 2}, {1, 2, 3, 4, 5, 6, 7, 8});
    command.k = Write<float>("k", NpyType::kFloat32, {3, 2, 2}, std::vector<float>(12, 1));
    command.v = Write<float>("v", NpyType::kFloat32, {3, 2, 2}, std::vector<float>(12, 2));
    return command;
  }

  absl::Status Run(const CallCommand& command) {
    if (absl::Status status = CheckCallCommand(command); !status.ok()) return status;
    return RunCallCommand(command, out_);
  }

  std::vector<std::string> written_;
  v1::AttendRequest received_;
  v1::AttendBackwardRequest received_backward_;
  std::ostringstream out_;
  FakeServer server_;
};

TEST_F(CallCommandTest, SendsTheFilesAndWritesTheAnswer) {
  CallCommand command = Command();
  command.alibi = Write<double>("slopes", NpyType::kFloat64, {2}, {0.5, 0.25});
  command.causal = false;
  command.left_window = 2;
  command.query_start = {7};
  command.eps = 0;
  command.out = Path("o");
  command.lse = Path("lse");
  ASSERT_TRUE(Run(command).ok());
  EXPECT_EQ(received_.mask(), v1::MASK_FULL);
  EXPECT_EQ(received_.left_window(), 2);
  EXPECT_THAT(received_.query_start(), ElementsAre(7));
  float slopes[2];
  ASSERT_EQ(received_.alibi().slopes().data().size(), sizeof(slopes));
  std::memcpy(slopes, received_.alibi().slopes().data().data(), sizeof(slopes));
  EXPECT_THAT(slopes, ElementsAre(0.5f, 0.25f));
  const auto o = ReadNpy(command.out);
  ASSERT_TRUE(o.ok()) << o.status();
  EXPECT_EQ(o->type, NpyType::kFloat32);
  EXPECT_EQ(o->shape, (std::vector<int64_t>{2, 2, 2}));
  EXPECT_EQ(o->data, received_.q().data());
  const auto lse = ReadNpy(command.lse);
  ASSERT_TRUE(lse.ok()) << lse.status();
  EXPECT_EQ(lse->shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(out_.str(), "");
}

TEST_F(CallCommandTest, WithTheGradientOfOItWritesGradients) {
  CallCommand command = Command();
  command.alibi = "seed";
  command.d_o = Write<float>("d_o", NpyType::kFloat32, {2, 2, 2}, {8, 7, 6, 5, 4, 3, 2, 1});
  command.dq = Path("dq");
  command.dv = Path("dv");
  command.dslopes = Path("dslopes");
  const absl::Status status = Run(command);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(server_.calls(), 2);
  EXPECT_EQ(received_backward_.o().data(), received_.q().data()) << "what the server answered";
  EXPECT_EQ(received_backward_.lse().data().size(), 16u);
  EXPECT_TRUE(received_backward_.want_bias_gradient());
  const auto dq = ReadNpy(command.dq);
  ASSERT_TRUE(dq.ok()) << dq.status();
  EXPECT_EQ(dq->shape, (std::vector<int64_t>{2, 2, 2}));
  EXPECT_EQ(dq->data, received_backward_.d_o().data());
  const auto dv = ReadNpy(command.dv);
  ASSERT_TRUE(dv.ok()) << dv.status();
  EXPECT_EQ(dv->shape, (std::vector<int64_t>{3, 2, 2}));
  const auto dslopes = ReadNpy(command.dslopes);
  ASSERT_TRUE(dslopes.ok()) << dslopes.status();
  EXPECT_EQ(dslopes->data, received_.alibi().slopes().data());
  EXPECT_EQ(out_.str(), "");

  command.alibi = "";
  EXPECT_THAT(std::string(CheckCallCommand(command).message()), HasSubstr("without --alibi"));
  command = Command();
  command.dk = Path("dk");
  EXPECT_THAT(std::string(CheckCallCommand(command).message()),
              HasSubstr("--dk is given without --d_o"));
}

TEST_F(CallCommandTest, NamedSlopesAndConversionToTheWire) {
  CallCommand command = Command();
  command.alibi = "standard";
  command.dtype = DType::kBFloat16;
  command.out = Path("o");
  ASSERT_TRUE(Run(command).ok());
  EXPECT_EQ(received_.q().dtype(), v1::DTYPE_BFLOAT16);
  EXPECT_EQ(received_.mask(), v1::MASK_CAUSAL);
  const std::vector<float> slopes = StandardAlibiSlopes(2);
  EXPECT_EQ(0, std::memcmp(received_.alibi().slopes().data().data(), slopes.data(), 8));
  const auto o = ReadNpy(command.out);
  ASSERT_TRUE(o.ok());
  EXPECT_EQ(o->type, NpyType::kFloat32);
}

TEST_F(CallCommandTest, LowRankFactors) {
  CallCommand command = Command();
  command.phi_q = Write<float>("phi_q", NpyType::kFloat32, {2, 1, 1}, {1, 2});
  command.phi_k = Write<float>("phi_k", NpyType::kFloat32, {3, 2, 1}, {1, 2, 3, 4, 5, 6});
  ASSERT_TRUE(Run(command).ok());
  EXPECT_THAT(received_.low_rank().phi_k().shape(), ElementsAre(3, 2, 1));
  EXPECT_EQ(received_.low_rank().phi_k().dtype(), v1::DTYPE_FLOAT32);
}

TEST_F(CallCommandTest, FactorsAreConvertedToTheirOwnDType) {
  CallCommand command = Command();
  command.phi_q = Write<double>("phi_q", NpyType::kFloat64, {2, 1, 1}, {1, 2});
  command.phi_k = Write<uint16_t>("phi_k", NpyType::kUint16, {3, 1, 1}, {0x3f80, 0, 0});
  command.dtype = DType::kFloat16;
  EXPECT_THAT(std::string(Run(command).message()), HasSubstr("with --phi_dtype="));
  command.phi_dtype = DType::kBFloat16;
  ASSERT_TRUE(Run(command).ok());
  EXPECT_EQ(received_.q().dtype(), v1::DTYPE_FLOAT16);
  EXPECT_EQ(received_.low_rank().phi_q().dtype(), v1::DTYPE_BFLOAT16);
  EXPECT_EQ(received_.low_rank().phi_q().data(), std::string("\x80\x3f\x00\x40", 4));
  EXPECT_EQ(received_.low_rank().phi_k().data(), std::string("\x80\x3f\0\0\0\0", 6));
}

TEST_F(CallCommandTest, AnAnswerThatIsNotWrittenIsPrinted) {
  ASSERT_TRUE(Run(Command()).ok());
  EXPECT_THAT(out_.str(), HasSubstr("float32 [2, 2, 2]"));
  EXPECT_THAT(out_.str(), HasSubstr("o      begins 1 2 3"));
}

TEST_F(CallCommandTest, OutputsAreOpenedBeforeTheCall) {
  CallCommand command = Command();
  command.out = Path("o");
  command.lse = "/nowhere/lse.npy";
  EXPECT_THAT(std::string(Run(command).message()), HasSubstr("/nowhere/lse.npy"));
  EXPECT_EQ(server_.calls(), 0);
  EXPECT_EQ(ReadNpy(command.out).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(CallCommandTest, CallsWithTheClientsOptions) {
  std::string authorization;
  const FakeServer server([&](int, grpc::ServerContext* context, const v1::AttendRequest& request,
                              v1::AttendResponse* response) {
    const auto& metadata = context->client_metadata();
    if (const auto it = metadata.find("authorization"); it != metadata.end()) {
      authorization = std::string(it->second.data(), it->second.size());
    }
    return Echo(request, response);
  });
  CallCommand command = Command();
  command.client = {.target = server.target(), .bearer_token = "abc"};
  const absl::Status status = Run(command);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(authorization, "Bearer abc");
  command.client.tls.emplace();
  EXPECT_EQ(Run(command).code(), absl::StatusCode::kUnavailable);
}

TEST_F(CallCommandTest, DemoMakesItsOwnInputAndPrints) {
  ASSERT_TRUE(Run({.client = {.target = server_.target()}, .demo = true, .demo_len = 4}).ok());
  EXPECT_THAT(received_.q().shape(), ElementsAre(4, 50, 32));
  EXPECT_EQ(received_.q().dtype(), v1::DTYPE_FLOAT16);
  const std::vector<float> slopes = SeedAlibiSlopes(50);
  EXPECT_EQ(0, std::memcmp(received_.alibi().slopes().data().data(), slopes.data(), 200));
  EXPECT_THAT(out_.str(), HasSubstr("float16 [4, 50, 32]"));
  EXPECT_THAT(out_.str(), HasSubstr("compute 250ms"));
  EXPECT_THAT(out_.str(), HasSubstr("lse    begins 0 1 2"));
}

TEST_F(CallCommandTest, ErrorsNameTheFlagOrTheFile) {
  const auto message = [this](const CallCommand& command) {
    const absl::Status status = Run(command);
    EXPECT_FALSE(status.ok());
    return std::string(status.message());
  };
  CallCommand command = Command();
  command.v = "";
  EXPECT_THAT(message(command), HasSubstr("--v is missing"));
  command = Command();
  command.phi_q = "x";
  EXPECT_THAT(message(command), HasSubstr("--phi_k"));
  command.phi_k = "y";
  command.alibi = "seed";
  EXPECT_THAT(message(command), HasSubstr("exclude"));
  command = Command();
  command.demo = true;
  EXPECT_THAT(message(command), HasSubstr("--demo"));
  command.q = command.k = command.v = "";
  command.alibi = "standart";
  EXPECT_THAT(message(command), HasSubstr("--alibi is 'standart'; accepted"));
  command = Command();
  command.alibi = "standart";
  EXPECT_THAT(message(command), HasSubstr("; accepted: standard, seed or a .npy file"));
  command.alibi = Write<uint16_t>("slopes_u2", NpyType::kUint16, {2}, {1, 2});
  EXPECT_THAT(message(command), HasSubstr("uint16 is not read here"));
  command = Command();
  command.client.target = "";
  EXPECT_THAT(message(command), HasSubstr("--target is empty"));
  command = Command();
  command.eps = 1;
  EXPECT_THAT(message(command), HasSubstr("--eps is 1; accepted: 0 to 2^-8"));
  command = Command();
  command.left_window = -1;
  EXPECT_THAT(message(command), HasSubstr("--left_window is -1"));
  command = Command();
  command.phi_dtype = DType::kFloat16;
  EXPECT_THAT(message(command), HasSubstr("--phi_dtype"));
  command = Command();
  command.out = command.lse = "x.npy";
  EXPECT_THAT(message(command), HasSubstr("--out and --lse"));
  command = Command();
  command.q_lens = {2};
  EXPECT_THAT(message(command), HasSubstr("--kv_lens"));
  command = Command();
  command.alibi = Write<float>("slopes", NpyType::kFloat32, {3}, {1, 2, 3});
  EXPECT_THAT(message(command), HasSubstr(command.alibi + ": shape [3] is for 3 heads"));
  command = Command();
  command.k = Write<int64_t>("k", NpyType::kFloat64, {1}, {1});
  EXPECT_THAT(message(command), HasSubstr(command.k + ": float64"));
  command = Command();
  command.k = command.q;
  EXPECT_THAT(message(command), HasSubstr("v.shape"));
  command = Command();
  command.out = "/nowhere/o.npy";
  EXPECT_THAT(message(command), HasSubstr("/nowhere/o.npy"));
}

}  // namespace
}  // namespace flashbias::client

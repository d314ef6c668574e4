// The example's model: its gradients against finite differences of its loss, its loss in training,
// and that --compare sees a wrong server.
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "client/examples/train_alibi_layer/language_model.h"
#include "client/examples/train_alibi_layer/local_attention.h"
#include "client/examples/train_alibi_layer/text.h"
#include "client/examples/train_alibi_layer/train_command.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/fake_server.h"

namespace flashbias::examples {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr ModelShape kSmall{.num_heads = 3, .head_dim = 4};
constexpr absl::string_view kSmallText = "a cat sat at a mat.";

// One of the model's parameters as a flat array.
struct Parameter {
  const char* name;
  std::function<absl::Span<float>(ModelWeights*)> of;
};

absl::Span<float> Flat(Matrix* matrix) {
  return {matrix->data(), static_cast<size_t>(matrix->size())};
}

std::vector<Parameter> Parameters() {
  return {{"embedding", [](ModelWeights* w) { return Flat(&w->embedding); }},
          {"wq", [](ModelWeights* w) { return Flat(&w->layer.wq); }},
          {"wk", [](ModelWeights* w) { return Flat(&w->layer.wk); }},
          {"wv", [](ModelWeights* w) { return Flat(&w->layer.wv); }},
          {"wo", [](ModelWeights* w) { return Flat(&w->layer.wo); }},
          {"slopes", [](ModelWeights* w) { return absl::MakeSpan(w->layer.slopes); }},
          {"output", [](ModelWeights* w) { return Flat(&w->output); }}};
}

// With an output matrix large enough that every parameter's gradient stands above float32's noise.
ModelWeights SmallWeights() {
  ModelWeights weights = InitialWeights(kSmall, /*seed=*/3);
  weights.output *= 10;
  return weights;
}

LossAndGradients Gradients(const ModelWeights& weights, bool want_dslopes = true) {
  LocalAttention attention;
  absl::StatusOr<LossAndGradients> result =
      ComputeGradients(weights, kSmallText, want_dslopes, &attention);
  EXPECT_TRUE(result.ok()) << result.status();
  return *std::move(result);
}

double Norm(absl::Span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * value;
  return std::sqrt(sum);
}

TEST(TrainAlibiLayerTest, GradientsAreTheSlopesOfTheLoss) {
  const ModelWeights weights = SmallWeights();
  LossAndGradients computed = Gradients(weights);
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal;
  for (const Parameter& parameter : Parameters()) {
    const absl::Span<const float> gradient = parameter.of(&computed.gradients);
    const double norm = Norm(gradient);
    EXPECT_GT(norm, 5e-3) << parameter.name;
    for (int trial = 0; trial < 12; ++trial) {
      // Along a random half of the gradient, and along directions that know nothing of it.
      std::vector<float> direction;
      for (const float value : gradient) {
        const float draw = normal(random);
        direction.push_back(trial % 2 == 0 ? draw : draw > 0 ? value : 0);
      }
      const double length = Norm(direction);
      if (length == 0) continue;
      constexpr double kStep = 0.02;
      double loss[2];
      for (const int side : {0, 1}) {
        ModelWeights moved = weights;
        const absl::Span<float> values = parameter.of(&moved);
        ASSERT_EQ(values.size(), direction.size()) << parameter.name;
        for (size_t n = 0; n < values.size(); ++n) {
          values[n] += static_cast<float>((side == 0 ? -kStep : kStep) * direction[n] / length);
        }
        loss[side] = Gradients(moved).loss;
      }
      double expected = 0;
      for (size_t n = 0; n < direction.size(); ++n) expected += gradient[n] * direction[n] / length;
      EXPECT_NEAR((loss[1] - loss[0]) / (2 * kStep), expected, 2e-3 * norm + 1e-5)
          << parameter.name << ", trial " << trial;
    }
  }
}

TEST(TrainAlibiLayerTest, SlopesStayWhereTheirGradientIsNotWanted) {
  const ModelWeights initial = SmallWeights();
  const LossAndGradients computed = Gradients(initial, /*want_dslopes=*/false);
  EXPECT_THAT(computed.gradients.layer.slopes, IsEmpty());
  ModelWeights weights = initial;
  Descend(computed.gradients, 0.1f, &weights);
  EXPECT_EQ(weights.layer.slopes, initial.layer.slopes);
  EXPECT_NE(weights.layer.wq, initial.layer.wq);
}

TEST(TrainAlibiLayerTest, LocalAttentionIsCausalAndPenalisesDistance) {
  AttentionInput input{.num_heads = 1,
                       .q = Matrix::Zero(3, 2),
                       .k = Matrix::Zero(3, 2),
                       .v = Matrix(3, 2),
                       .slopes = {std::log(2.0f)}};
  input.v << 1, 0, 0, 7, 14, 0;
  LocalAttention attention;
  const absl::StatusOr<AttentionOutput> output = attention.Forward(input);
  ASSERT_TRUE(output.ok()) << output.status();
  // A step further halves a key's weight.
  Matrix expected(3, 2);
  expected << 1, 0, 1.0f / 3, 14.0f / 3, 57.0f / 7, 2;
  EXPECT_TRUE(output->o.isApprox(expected, 1e-6f)) << output->o;
  EXPECT_NEAR(output->lse[2], std::log(1.75), 1e-6);
}

TEST(TrainAlibiLayerTest, TheLossFalls) {
  ModelWeights weights = InitialWeights(kSmall, /*seed=*/1);
  LocalAttention attention;
  double first = 0;
  double last = 0;
  for (int step = 0; step < 40; ++step) {
    const absl::StatusOr<LossAndGradients> result =
        ComputeGradients(weights, Text().substr(0, 65), true, &attention);
    ASSERT_TRUE(result.ok()) << result.status();
    if (step == 0) first = result->loss;
    last = result->loss;
    Descend(result->gradients, 0.3f, &weights);
  }
  EXPECT_NEAR(first, std::log(256.0), 0.1);
  EXPECT_LT(last, 3.5);
}

TEST(TrainAlibiLayerTest, CompareSeesAWrongServer) {
  client::FakeServer server(
      [](int, grpc::ServerContext*, const v1::AttendRequest& request,
         v1::AttendResponse* response) { return client::Echo(request, response); },
      [](int, grpc::ServerContext*, const v1::AttendBackwardRequest& request,
         v1::AttendBackwardResponse* response) { return client::Echo(request, response); });
  server.info()->add_dtypes(v1::DTYPE_FLOAT32);
  TrainCommand command{
      .target = server.target(), .shape = kSmall, .steps = 2, .seq_len = 16, .compare = true};
  ASSERT_TRUE(CheckTrainCommand(command).ok());
  std::ostringstream out;
  const absl::Status status = RunTrainCommand(command, out);
  EXPECT_TRUE(absl::IsInternal(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("losses differ by"));

  command.dtype = DType::kFloat16;
  const absl::Status refused = RunTrainCommand(command, out);
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("--dtype is float16; the server takes float32"));
}

TEST(TrainAlibiLayerTest, WrongFlagsAreNamed) {
  struct Wrong {
    std::function<void(TrainCommand*)> change;
    const char* message;
  };
  for (const Wrong& wrong :
       {Wrong{[](TrainCommand* c) { c->target = ""; }, "--target is empty; accepted: host:port"},
        Wrong{[](TrainCommand* c) { c->shape.num_heads = 0; }, "--heads is 0; accepted: 1 to 128"},
        Wrong{[](TrainCommand* c) { c->shape.head_dim = 129; }, "--head_dim is 129; accepted"},
        Wrong{[](TrainCommand* c) { c->steps = 0; }, "--steps is 0; accepted: 1 to"},
        Wrong{[](TrainCommand* c) { c->seq_len = 1 << 20; }, "--seq_len is 1048576; accepted"},
        Wrong{[](TrainCommand* c) { c->learning_rate = std::nan(""); }, "--learning_rate is nan"},
        Wrong{[](TrainCommand* c) { c->timeout = absl::ZeroDuration(); }, "--timeout is 0;"}}) {
    TrainCommand command{.target = "localhost:1"};
    ASSERT_TRUE(CheckTrainCommand(command).ok());
    wrong.change(&command);
    const absl::Status status = CheckTrainCommand(command);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(wrong.message));
  }
}

}  // namespace
}  // namespace flashbias::examples

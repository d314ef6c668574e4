// kernels/cuda/attention_planner.h on the host alone: no GPU, no driver.
#include "kernels/cuda/attention_planner.h"

#include <vector>

#include "gtest/gtest.h"
#include "tests/support/attention_case.h"

namespace flashbias::cuda {
namespace {

using support::AttentionCase;
using support::Describe;
using support::Materialise;
using support::OwnedProblem;

constexpr DeviceTraits kDevices[] = {{.ordinal = 0, .compute_capability = 90, .num_sms = 132},
                                     {.ordinal = 0, .compute_capability = 80, .num_sms = 108}};

// Of what planning does not read.
float* Address() {
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  return reinterpret_cast<float*>(uintptr_t{1} << 40);
}

// 16 bits, and aligned as the backend's tensors are.
AttentionCase OnDevice(AttentionCase c) {
  if (c.dtype == DType::kFloat32) c.dtype = DType::kFloat16;
  c.byte_offset = 0;
  return c;
}

std::vector<AttentionCase> Cases() {
  std::vector<AttentionCase> cases;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    cases.push_back(OnDevice(support::RandomCase(seed)));
    cases.push_back(OnDevice(support::BigRandomCase(seed)));
  }
  for (const int head_dim : {1, 7, 33, 64, 128}) {
    for (const int kv_heads : {1, 4, 16}) {
      for (const int64_t q_len : {1, 2, 5, 16, 17, 200}) {
        for (const int64_t kv_len : {0, 255, 1000, 9000}) {
          AttentionCase c;
          c.dtype = DType::kBFloat16;
          c.num_q_heads = 16;
          c.num_kv_heads = kv_heads;
          c.head_dim = head_dim;
          c.sequences = {{.q_len = q_len, .kv_len = kv_len}};
          c.bias = q_len % 2 == 0 ? BiasKind::kLowRank : BiasKind::kAlibi;
          cases.push_back(c);
        }
      }
    }
  }
  return cases;
}

// Both directions, the other one without reference results: planning reads no tensor.
std::vector<AttentionProblem> ProblemsOf(const AttentionProblem& forward) {
  AttentionProblem backward = forward;
  backward.direction = Direction::kBackward;
  backward.gradients = {};
  AttentionProblem with_bias = backward;
  if (forward.bias_kind == BiasKind::kAlibi) with_bias.gradients.dslopes = Address();
  if (forward.bias_kind == BiasKind::kLowRank) {
    with_bias.gradients.dphi_q = with_bias.gradients.dphi_k = Address();
  }
  return {forward, backward, with_bias};
}

// The memory that a run reserves before it has planned is enough, alone and in a batch.
TEST(CudaPlanner, WorkspacesStayWithinTheirBound) {
  for (const AttentionCase& c : Cases()) {
    const OwnedProblem owned = Materialise(c);
    AttentionProblem forward = owned.problem();
    forward.q = forward.k = forward.v = nullptr;  // aligned; planning reads no tensor
    for (const AttentionProblem& problem : ProblemsOf(forward)) {
      for (const DeviceTraits& device : kDevices) {
        for (const PlanOptions::Family family :
             {PlanOptions::Family::kFastest, PlanOptions::Family::kPortable}) {
          const AttentionPlanner planner(
              device, {.family = family, .skipping = PlanOptions::Skipping::kWhereverPossible});
          const auto launch = planner.Plan(absl::MakeConstSpan(&problem, 1));
          ASSERT_TRUE(launch.ok()) << launch.status() << " " << Describe(c);
          EXPECT_LE((*launch)->workspace_bytes(), planner.WorkspaceBound(problem)) << Describe(c);
          const std::vector<AttentionProblem> twice(2, problem);
          EXPECT_LE((*planner.Plan(twice))->workspace_bytes(), 2 * planner.WorkspaceBound(problem));
        }
      }
    }
  }
}

TEST(CudaPlanner, ProblemsOfEqualGroupsSharePlans) {
  const AttentionPlanner planner(kDevices[0]);
  std::vector<OwnedProblem> owned;
  std::vector<AttentionProblem> problems;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    owned.push_back(Materialise(OnDevice(support::RandomCase(seed))));
    for (const AttentionProblem& problem : ProblemsOf(owned.back().problem())) {
      problems.push_back(problem);
    }
  }
  int shared = 0;
  for (const AttentionProblem& a : problems) {
    for (const AttentionProblem& b : problems) {
      const AttentionProblem pair[] = {a, b};
      const bool same = planner.GroupOf(a) == planner.GroupOf(b);
      EXPECT_EQ(planner.Plan(pair).ok(), same);
      if (same) ++shared;
    }
  }
  EXPECT_GT(shared, 4 * 120);
}

}  // namespace
}  // namespace flashbias::cuda

#include "tests/integration/remote_problem.h"

#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"

namespace flashbias::integration {

client::AttendRequest RequestOf(const support::OwnedProblem& owned) {
  const AttentionProblem& p = owned.problem();
  client::AttendRequest request;
  request.q = {p.dtype, {p.total_q, p.num_q_heads, p.head_dim}, p.q};
  request.k = {p.dtype, {p.total_kv, p.num_kv_heads, p.head_dim}, p.k};
  request.v = {p.dtype, {p.total_kv, p.num_kv_heads, p.head_dim}, p.v};
  for (const Sequence& s : p.sequences) {
    request.q_lens.push_back(s.q_len);
    request.kv_lens.push_back(s.kv_len);
    request.query_start.push_back(s.query_start);
    request.key_start.push_back(s.key_start);
  }
  request.mask = p.mask.causal ? client::MaskKind::kCausal : client::MaskKind::kFull;
  request.left_window = p.mask.left_window;
  request.softmax_scale = p.softmax_scale;
  request.eps = p.eps;
  request.want_lse = p.lse != nullptr;
  if (p.bias_kind == BiasKind::kAlibi) {
    request.bias =
        client::AlibiSlopes{.slopes = {p.alibi.slopes, static_cast<size_t>(owned.num_slopes())}};
  } else if (p.bias_kind == BiasKind::kLowRank) {
    const LowRankBias& b = p.low_rank;
    request.bias =
        client::LowRankFactors{.phi_q = {b.dtype, {p.total_q, b.phi_q_heads, b.rank}, b.phi_q},
                               .phi_k = {b.dtype, {p.total_kv, b.phi_k_heads, b.rank}, b.phi_k}};
  }
  return request;
}

absl::Status StoreResult(const client::AttendResult& result, support::OwnedProblem* owned) {
  const AttentionProblem& p = owned->problem();
  const size_t o_bytes = static_cast<size_t>(owned->q_elements()) * SizeOf(p.dtype);
  const size_t lse_count = p.lse != nullptr ? static_cast<size_t>(owned->lse_elements()) : 0;
  if (result.dtype != p.dtype || result.o.size() != o_bytes || result.lse.size() != lse_count ||
      result.shape != std::vector<int64_t>{p.total_q, p.num_q_heads, p.head_dim}) {
    return absl::InternalError(absl::StrCat("the answer has ", result.o.size(), " bytes of o and ",
                                            result.lse.size(), " of lse, expected ", o_bytes,
                                            " and ", lse_count));
  }
  if (o_bytes != 0) std::memcpy(owned->mutable_problem().o, result.o.data(), o_bytes);
  if (lse_count != 0) {
    std::memcpy(owned->mutable_problem().lse, result.lse.data(), lse_count * sizeof(float));
  }
  return absl::OkStatus();
}

absl::StatusOr<client::AttendResult> AttendRemotely(client::AttentionClient& client,
                                                    support::OwnedProblem* owned,
                                                    const client::CallOptions& options) {
  owned->PoisonOutputs();
  absl::StatusOr<client::AttendResult> result = client.Attend(RequestOf(*owned), options);
  if (!result.ok()) return result.status();
  const absl::Status stored = StoreResult(*result, owned);
  if (!stored.ok()) return stored;
  return result;
}

client::AttendBackwardRequest BackwardRequestOf(const support::OwnedProblem& owned) {
  const AttentionProblem& p = owned.problem();
  const Gradients& g = p.gradients;
  client::AttendBackwardRequest request = {.forward = RequestOf(owned)};
  request.o = {p.dtype, request.forward.q.shape, p.o};
  request.lse = {p.lse, static_cast<size_t>(owned.lse_elements())};
  request.d_o = {p.dtype, request.forward.q.shape, g.d_o};
  request.want_bias_gradient = g.dslopes != nullptr || g.dphi_q != nullptr;
  return request;
}

client::GradientBuffers GradientBuffersOf(const support::OwnedProblem& owned) {
  const AttentionProblem& p = owned.problem();
  const Gradients& g = p.gradients;
  const auto bytes = [&](void* data, int64_t elements) {
    return absl::MakeSpan(static_cast<char*>(data),
                          static_cast<size_t>(elements) * SizeOf(p.dtype));
  };
  const auto floats = [](float* data, int64_t elements) {
    return absl::MakeSpan(data, data == nullptr ? 0 : static_cast<size_t>(elements));
  };
  return {.dq = bytes(g.dq, owned.q_elements()),
          .dk = bytes(g.dk, owned.kv_elements()),
          .dv = bytes(g.dv, owned.kv_elements()),
          .dslopes = floats(g.dslopes, owned.num_slopes()),
          .dphi_q = floats(g.dphi_q, owned.phi_q_elements()),
          .dphi_k = floats(g.dphi_k, owned.phi_k_elements())};
}

absl::StatusOr<client::AttendGradients> AttendBackwardRemotely(client::AttentionClient& client,
                                                               support::OwnedProblem* owned) {
  owned->PoisonOutputs();
  return client.AttendBackward(BackwardRequestOf(*owned), {.gradients = GradientBuffersOf(*owned)});
}

}  // namespace flashbias::integration

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

}  // namespace flashbias::integration

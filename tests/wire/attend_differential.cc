#include "tests/wire/attend_differential.h"

#include <bit>
#include <cstdint>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "flashbias/v1/attention.pb.h"
#include "server/attend_reader.h"
#include "wire/gather.h"

namespace flashbias {
namespace {

using server::AttendFields;
using server::WireBias;

std::string Bits(bool present, float value) {
  return present ? absl::StrCat(absl::Hex(std::bit_cast<uint32_t>(value))) : "absent";
}

std::string Describe(bool present, int dtype, const std::string& shape, uint64_t region,
                     uint64_t offset, const std::string& data) {
  if (!present) return "absent";
  return absl::StrCat("dtype ", dtype, " shape [", shape, "] region ", region, " + ", offset,
                      " data '", data, "'");
}

std::string Describe(const v1::Tensor& tensor, bool present) {
  return Describe(present, tensor.dtype(), absl::StrJoin(tensor.shape(), ","), tensor.region_id(),
                  tensor.region_offset(), tensor.data());
}

std::string Describe(bool present, uint64_t region, uint64_t offset) {
  return present ? absl::StrCat(region, " + ", offset) : "absent";
}

std::string Describe(const std::optional<wire::RegionPlace>& place) {
  const wire::RegionPlace read = place.value_or(wire::RegionPlace());
  return Describe(place.has_value(), read.region_id, read.offset);
}

std::string Describe(const v1::AttendRequest& m) {
  return absl::StrCat(
      "q_lens ", absl::StrJoin(m.q_lens(), ","), "\nkv_lens ", absl::StrJoin(m.kv_lens(), ","),
      "\nmask ", static_cast<int>(m.mask()), "\nleft_window ", m.left_window(), "\nquery_start ",
      absl::StrJoin(m.query_start(), ","), "\nkey_start ", absl::StrJoin(m.key_start(), ","),
      "\nscale ", Bits(m.has_softmax_scale(), m.softmax_scale()), "\neps ",
      Bits(m.has_eps(), m.eps()), "\nwant_lse ", m.want_lse(), "\nbias ",
      static_cast<int>(m.has_alibi()), static_cast<int>(m.has_low_rank()), "\nslopes ",
      Describe(m.alibi().slopes(), m.alibi().has_slopes()), "\nphi_q ",
      Describe(m.low_rank().phi_q(), m.low_rank().has_phi_q()), "\nphi_k ",
      Describe(m.low_rank().phi_k(), m.low_rank().has_phi_k()), "\nq ", Describe(m.q(), m.has_q()),
      "\nk ", Describe(m.k(), m.has_k()), "\nv ", Describe(m.v(), m.has_v()), "\no_place ",
      Describe(m.has_o_place(), m.o_place().region_id(), m.o_place().offset()), "\nlse_place ",
      Describe(m.has_lse_place(), m.lse_place().region_id(), m.lse_place().offset()));
}

std::string Describe(const v1::AttendBackwardRequest& m) {
  return absl::StrCat(
      Describe(m.forward()), "\nwant_bias_gradient ", m.want_bias_gradient(), "\nlse ",
      Describe(m.lse(), m.has_lse()), "\no ", Describe(m.o(), m.has_o()), "\nd_o ",
      Describe(m.d_o(), m.has_d_o()), "\ndq_place ",
      Describe(m.has_dq_place(), m.dq_place().region_id(), m.dq_place().offset()), "\ndk_place ",
      Describe(m.has_dk_place(), m.dk_place().region_id(), m.dk_place().offset()), "\ndv_place ",
      Describe(m.has_dv_place(), m.dv_place().region_id(), m.dv_place().offset()),
      "\ndphi_q_place ",
      Describe(m.has_dphi_q_place(), m.dphi_q_place().region_id(), m.dphi_q_place().offset()),
      "\ndphi_k_place ",
      Describe(m.has_dphi_k_place(), m.dphi_k_place().region_id(), m.dphi_k_place().offset()));
}

std::string Describe(const wire::TensorField& tensor, absl::Span<const grpc::Slice> slices) {
  std::string data;
  wire::AppendTo(slices, tensor.data, &data);
  std::string gathered(tensor.data.size, '\0');
  const wire::GatherItem item = {.from = tensor.data, .to = gathered.data()};
  wire::Gather(slices, {&item, 1}, nullptr);
  if (gathered != data) return "Gather and AppendTo differ";
  return Describe(tensor.present, tensor.dtype, absl::StrJoin(tensor.shape, ","),
                  tensor.place.region_id, tensor.place.offset, data);
}

std::string Describe(const AttendFields& f, absl::Span<const grpc::Slice> slices) {
  const std::string forward = absl::StrCat(
      "q_lens ", absl::StrJoin(f.q_lens, ","), "\nkv_lens ", absl::StrJoin(f.kv_lens, ","),
      "\nmask ", f.mask, "\nleft_window ", f.left_window, "\nquery_start ",
      absl::StrJoin(f.query_start, ","), "\nkey_start ", absl::StrJoin(f.key_start, ","),
      "\nscale ", Bits(f.softmax_scale.has_value(), f.softmax_scale.value_or(0)), "\neps ",
      Bits(f.eps.has_value(), f.eps.value_or(0)), "\nwant_lse ", f.want_lse, "\nbias ",
      static_cast<int>(f.bias == WireBias::kAlibi), static_cast<int>(f.bias == WireBias::kLowRank),
      "\nslopes ", Describe(f.slopes, slices), "\nphi_q ", Describe(f.phi_q, slices), "\nphi_k ",
      Describe(f.phi_k, slices), "\nq ", Describe(f.q, slices), "\nk ", Describe(f.k, slices),
      "\nv ", Describe(f.v, slices), "\no_place ", Describe(f.o_place), "\nlse_place ",
      Describe(f.lse_place));
  if (!f.backward.has_value()) return forward;
  const server::BackwardFields& b = *f.backward;
  return absl::StrCat(forward, "\nwant_bias_gradient ", b.want_bias_gradient, "\nlse ",
                      Describe(b.lse, slices), "\no ", Describe(b.o, slices), "\nd_o ",
                      Describe(b.d_o, slices), "\ndq_place ", Describe(b.dq_place), "\ndk_place ",
                      Describe(b.dk_place), "\ndv_place ", Describe(b.dv_place), "\ndphi_q_place ",
                      Describe(b.dphi_q_place), "\ndphi_k_place ", Describe(b.dphi_k_place));
}

template <typename Message>
std::string Difference(Direction direction, std::string_view bytes, absl::Span<const size_t> cuts) {
  const std::vector<grpc::Slice> slices = SlicesOf(bytes, cuts);
  const absl::StatusOr<AttendFields> fields = server::ReadAttendRequest(direction, slices);
  Message message;
  const bool parsed = message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
  if (!fields.ok() && absl::StrContains(fields.status().message(), "has more than")) return "";
  if (parsed != fields.ok()) {
    return absl::StrCat("the generated class ", parsed ? "takes" : "refuses",
                        " it, ours: ", fields.status().ToString());
  }
  if (!parsed) return "";
  const std::string want = Describe(message);
  const std::string got = Describe(*fields, slices);
  return want == got ? "" : absl::StrCat("generated:\n", want, "\nours:\n", got);
}

}  // namespace

std::vector<grpc::Slice> SlicesOf(std::string_view bytes, absl::Span<const size_t> cuts) {
  std::vector<grpc::Slice> slices;
  size_t begin = 0;
  const auto add = [&](size_t end) {
    auto* const copy = new std::vector<char>(bytes.begin() + static_cast<ptrdiff_t>(begin),
                                             bytes.begin() + static_cast<ptrdiff_t>(end));
    slices.emplace_back(
        copy->data(), copy->size(),
        [](void* held) { delete static_cast<std::vector<char>*>(held); }, copy);
    begin = end;
  };
  for (const size_t cut : cuts) add(cut);
  add(bytes.size());
  return slices;
}

std::string DifferenceFromGenerated(Direction direction, std::string_view bytes,
                                    absl::Span<const size_t> cuts) {
  return direction == Direction::kForward
             ? Difference<v1::AttendRequest>(direction, bytes, cuts)
             : Difference<v1::AttendBackwardRequest>(direction, bytes, cuts);
}

std::string ReadError(Direction direction, std::string_view bytes) {
  const std::vector<grpc::Slice> slices = SlicesOf(bytes, {});
  return std::string(server::ReadAttendRequest(direction, slices).status().message());
}

}  // namespace flashbias

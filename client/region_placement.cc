#include "client/region_placement.h"

#include <variant>

namespace flashbias::client {

RegionPlacement PlaceTensors(const AttendRequest& request, const ResultBuffers& buffers,
                             const RegionMap& regions) {
  RegionPlacement placement;
  const auto place = [&](const TensorView& tensor, std::optional<wire::RegionPlace>* to) {
    size_t bytes = SizeOf(tensor.dtype);
    // What lies in memory overflows no product; a size that nothing can have is in no region.
    for (const int64_t extent : tensor.shape) {
      if (__builtin_mul_overflow(bytes, static_cast<size_t>(extent), &bytes)) return;
    }
    *to = regions.Find(tensor.data, bytes);
    if (to->has_value()) placement.request_bytes += static_cast<int64_t>(bytes);
  };
  place(request.q, &placement.q);
  place(request.k, &placement.k);
  place(request.v, &placement.v);
  if (const auto* low_rank = std::get_if<LowRankFactors>(&request.bias)) {
    place(low_rank->phi_q, &placement.phi_q);
    place(low_rank->phi_k, &placement.phi_k);
  }
  placement.o = regions.Find(buffers.o.data(), buffers.o.size());
  if (placement.o.has_value()) placement.response_bytes += static_cast<int64_t>(buffers.o.size());
  const size_t lse_bytes = buffers.lse.size() * sizeof(float);
  placement.lse = regions.Find(buffers.lse.data(), lse_bytes);
  if (placement.lse.has_value()) placement.response_bytes += static_cast<int64_t>(lse_bytes);
  return placement;
}

}  // namespace flashbias::client

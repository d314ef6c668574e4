#include "client/region_placement.h"

#include <variant>

#include "absl/strings/str_cat.h"

namespace flashbias::client {
namespace {

// Finds the places of some tensors; the first error stays.
class Placer {
 public:
  explicit Placer(const RegionMap& regions) : regions_(regions) {}

  std::optional<wire::RegionPlace> Place(const char* name, const void* data, size_t bytes,
                                         int64_t* placed_bytes) {
    const std::optional<wire::RegionPlace> place = regions_.Find(data, bytes);
    if (place.has_value()) {
      *placed_bytes += static_cast<int64_t>(bytes);
      on_device_ = on_device_ || regions_.TouchesDevice(data, bytes);
    } else if (status_.ok() && regions_.TouchesDevice(data, bytes)) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat(name, " has ", bytes,
                       " bytes, of which some lie in a region on a device and some do not; "
                       "accepted: all or none"));
    }
    return place;
  }
  std::optional<wire::RegionPlace> Place(const char* name, const TensorView& tensor,
                                         int64_t* placed_bytes) {
    size_t bytes = SizeOf(tensor.dtype);
    // What lies in memory overflows no product; a size that nothing can have is in no region.
    for (const int64_t extent : tensor.shape) {
      if (__builtin_mul_overflow(bytes, static_cast<size_t>(extent), &bytes)) return std::nullopt;
    }
    return Place(name, tensor.data, bytes, placed_bytes);
  }

  // What comes in the answer is written by this process.
  void CheckOnHost(const char* name, const void* data, size_t bytes) {
    if (!status_.ok() || !regions_.TouchesDevice(data, bytes)) return;
    status_ = absl::InvalidArgumentError(
        absl::StrCat(name, " lies in a region on a device; accepted: host memory"));
  }

  const absl::Status& status() const { return status_; }
  bool on_device() const { return on_device_; }

 private:
  const RegionMap& regions_;
  absl::Status status_;
  bool on_device_ = false;
};

void PlaceInputs(const AttendRequest& request, Placer* placer, RegionPlacement* placement) {
  int64_t* const sent = &placement->request_bytes;
  placement->q = placer->Place("q", request.q, sent);
  placement->k = placer->Place("k", request.k, sent);
  placement->v = placer->Place("v", request.v, sent);
  if (const auto* low_rank = std::get_if<LowRankFactors>(&request.bias)) {
    placement->phi_q = placer->Place("low_rank.phi_q", low_rank->phi_q, sent);
    placement->phi_k = placer->Place("low_rank.phi_k", low_rank->phi_k, sent);
  }
}

void PlaceAnswer(Answer* answer, Placer* placer, RegionPlacement* placement) {
  for (AnswerTensor& tensor : answer->tensors) {
    const absl::Span<char> buffer = tensor.buffer;
    if (tensor.place_number == 0) {
      placer->CheckOnHost(tensor.buffer_name, buffer.data(), buffer.size());
      continue;
    }
    tensor.place =
        placer->Place(tensor.buffer_name, buffer.data(), buffer.size(), &placement->response_bytes);
  }
}

}  // namespace

absl::Status CheckSlopesOnHost(const AttendRequest& request, const RegionMap& regions) {
  const auto* alibi = std::get_if<AlibiSlopes>(&request.bias);
  if (alibi == nullptr ||
      !regions.TouchesDevice(alibi->slopes.data(), alibi->slopes.size() * sizeof(float))) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      "alibi.slopes lie in a region on a device; accepted: host memory");
}

absl::StatusOr<RegionPlacement> PlaceTensors(const AttendRequest& request, const RegionMap& regions,
                                             Answer* answer) {
  Placer placer(regions);
  RegionPlacement placement;
  PlaceInputs(request, &placer, &placement);
  PlaceAnswer(answer, &placer, &placement);
  if (!placer.status().ok()) return placer.status();
  placement.on_device = placer.on_device();
  return placement;
}

absl::StatusOr<RegionPlacement> PlaceTensors(const AttendBackwardRequest& request,
                                             const RegionMap& regions, Answer* answer) {
  Placer placer(regions);
  RegionPlacement placement;
  PlaceInputs(request.forward, &placer, &placement);
  int64_t* const sent = &placement.request_bytes;
  placement.lse = placer.Place("lse", request.lse.data(), request.lse.size() * sizeof(float), sent);
  placement.o = placer.Place("o", request.o, sent);
  placement.d_o = placer.Place("d_o", request.d_o, sent);
  PlaceAnswer(answer, &placer, &placement);
  if (!placer.status().ok()) return placer.status();
  placement.on_device = placer.on_device();
  return placement;
}

}  // namespace flashbias::client

#include "server/region_binding.h"

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flashbias::server {
namespace {

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// What backends use as float*; other tensors may lie at any address.
bool IsFloats(TensorSet tensor) {
  constexpr TensorSet kFloats = kTensorLse | kTensorDSlopes | kTensorDPhiQ | kTensorDPhiK;
  return (tensor & kFloats) != 0;
}

// One range of a region, named by the field that names it.
struct Range {
  const char* name;
  const char* region;  // where that begins
  uint64_t begin;
  uint64_t end;  // exclusive

  // By addresses: regions of one allocation on a device may overlap.
  bool Overlaps(const Range& other) const {
    return region + begin < other.region + other.end && other.region + other.begin < region + end;
  }
};

class Binder {
 public:
  explicit Binder(const RegionRegistry* registry) : registry_(registry) {}

  // `name`: of the field that says where, `offset_name` of the one that says at which byte.
  absl::StatusOr<char*> Bind(const char* name, const char* offset_name, const AttendTensor& tensor,
                             const wire::RegionPlace& place) {
    if (registry_ == nullptr) {
      return Invalid(name,
                     ".region_id is set; accepted: only in calls over the server's unix "
                     "socket, where --shared_memory is on");
    }
    std::shared_ptr<const Region> region = registry_->Find(place.region_id);
    if (region == nullptr) {
      return Invalid(name, ".region_id is ", absl::Hex(place.region_id),
                     "; accepted: the id of a region whose connection is open");
    }
    const auto size = static_cast<uint64_t>(tensor.bytes);
    if (place.offset > region->size() || size > region->size() - place.offset) {
      return Invalid(name, " takes ", size, " bytes from byte ", place.offset,
                     " of its region on; accepted: ranges within its ", region->size(), " bytes");
    }
    if (IsFloats(tensor.tensor) && place.offset % sizeof(float) != 0) {
      return Invalid(name, offset_name, " is ", place.offset, "; accepted: multiples of 4");
    }
    if (region->device() == kAnyDevice) {
      bytes_ += tensor.bytes;
    } else if (device_ == kAnyDevice || device_ == region->device()) {
      if (device_ == kAnyDevice) first_on_device_ = name;
      device_ = region->device();
      on_device_ |= tensor.tensor;
    } else {
      return Invalid(name, " lies in memory of another device than ", first_on_device_,
                     "; accepted: one device in a call");
    }
    char* const data = region->data() + place.offset;
    // No sum overflows: it was held against the region's size.
    ranges_.push_back({.name = name,
                       .region = region->data(),
                       .begin = place.offset,
                       .end = place.offset + size});
    regions_.push_back(std::move(region));
    return data;
  }

  // Null: it lies in no region.
  absl::StatusOr<char*> BindInput(const InputTensor& input) {
    if (input.place.region_id == 0) return nullptr;
    return Bind(input.name, ".region_offset", input, input.place);
  }

  absl::StatusOr<char*> BindOutput(const OutputTensor& tensor) {
    if (!tensor.place.has_value()) return nullptr;
    const char* const name = tensor.place_name;
    absl::StatusOr<char*> bound = Bind(name, ".offset", tensor, *tensor.place);
    if (!bound.ok()) return bound;
    const Range& output = ranges_.back();
    for (const Range& other : ranges_) {
      if (&other != &output && output.Overlaps(other)) {
        return Invalid(name, " is bytes ", output.begin, " to ", output.end,
                       " of its region and overlaps ", other.name, ", bytes ", other.begin, " to ",
                       other.end, "; accepted: places of its own");
      }
    }
    return bound;
  }

  std::vector<std::shared_ptr<const Region>> TakeRegions() { return std::move(regions_); }
  int64_t bytes() const { return bytes_; }
  TensorSet on_device() const { return on_device_; }
  int device() const { return device_; }

 private:
  const RegionRegistry* const registry_;
  std::vector<Range> ranges_;
  int64_t bytes_ = 0;
  TensorSet on_device_ = 0;
  int device_ = kAnyDevice;
  const char* first_on_device_ = "";
  std::vector<std::shared_ptr<const Region>> regions_;
};

}  // namespace

absl::StatusOr<RegionBinding> BindRegions(const AttendTensors& tensors,
                                          const RegionRegistry* registry) {
  Binder binder(registry);
  RegionBinding binding;
  for (const InputTensor& input : tensors.inputs) {
    const absl::StatusOr<char*> bound = binder.BindInput(input);
    if (!bound.ok()) return bound.status();
    binding.inputs.push_back(*bound);
  }
  for (const OutputTensor& output : tensors.outputs) {
    const absl::StatusOr<char*> bound = binder.BindOutput(output);
    if (!bound.ok()) return bound.status();
    binding.outputs.push_back(*bound);
  }
  binding.bytes = binder.bytes();
  binding.on_device = binder.on_device();
  binding.device = binder.device();
  binding.regions = binder.TakeRegions();
  return binding;
}

}  // namespace flashbias::server

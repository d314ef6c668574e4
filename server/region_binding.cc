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

  absl::StatusOr<char*> Bind(const char* name, TensorSet tensor, const wire::RegionPlace& place,
                             int64_t bytes) {
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
    const auto size = static_cast<uint64_t>(bytes);
    if (place.offset > region->size() || size > region->size() - place.offset) {
      return Invalid(name, " takes ", size, " bytes from byte ", place.offset,
                     " of its region on; accepted: ranges within its ", region->size(), " bytes");
    }
    if (region->device() == kAnyDevice) {
      bytes_ += bytes;
    } else if (device_ == kAnyDevice || device_ == region->device()) {
      if (device_ == kAnyDevice) first_on_device_ = name;
      device_ = region->device();
      on_device_ |= tensor;
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

  absl::Status BindInput(const char* name, TensorSet tensor, const wire::TensorField& field,
                         int64_t bytes, const char** data) {
    if (field.place.region_id == 0) return absl::OkStatus();
    const absl::StatusOr<char*> bound = Bind(name, tensor, field.place, bytes);
    if (bound.ok()) *data = *bound;
    return bound.status();
  }

  absl::Status BindOutput(const char* name, TensorSet tensor,
                          const std::optional<wire::RegionPlace>& place, int64_t bytes,
                          char** data) {
    if (!place.has_value()) return absl::OkStatus();
    const absl::StatusOr<char*> bound = Bind(name, tensor, *place, bytes);
    if (!bound.ok()) return bound.status();
    *data = *bound;
    const Range& output = ranges_.back();
    for (const Range& other : ranges_) {
      if (&other != &output && output.Overlaps(other)) {
        return Invalid(name, " is bytes ", output.begin, " to ", output.end,
                       " of its region and overlaps ", other.name, ", bytes ", other.begin, " to ",
                       other.end, "; accepted: places of its own");
      }
    }
    return absl::OkStatus();
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

// Of a tensor that ValidateAttend has checked: no product overflows.
int64_t BytesOf(DType dtype, const wire::TensorField& tensor) {
  auto bytes = static_cast<int64_t>(SizeOf(dtype));
  for (const int64_t extent : tensor.shape) bytes *= extent;
  return bytes;
}

}  // namespace

absl::StatusOr<RegionBinding> BindRegions(const AttendFields& fields, const ValidatedAttend& valid,
                                          const RegionRegistry* registry) {
  const AttentionProblem& problem = valid.problem;
  Binder binder(registry);
  RegionBinding binding;
  struct Input {
    const char* name;
    TensorSet tensor;
    const wire::TensorField& field;
    DType dtype;
    const char** data;
  };
  std::vector<Input> inputs = {{"q", kTensorQ, fields.q, problem.dtype, &binding.q},
                               {"k", kTensorK, fields.k, problem.dtype, &binding.k},
                               {"v", kTensorV, fields.v, problem.dtype, &binding.v}};
  if (problem.bias_kind == BiasKind::kLowRank) {
    const DType dtype = problem.low_rank.dtype;
    inputs.push_back({"low_rank.phi_q", kTensorPhiQ, fields.phi_q, dtype, &binding.phi_q});
    inputs.push_back({"low_rank.phi_k", kTensorPhiK, fields.phi_k, dtype, &binding.phi_k});
  }
  for (const Input& input : inputs) {
    const absl::Status bound = binder.BindInput(input.name, input.tensor, input.field,
                                                BytesOf(input.dtype, input.field), input.data);
    if (!bound.ok()) return bound;
  }
  absl::Status bound =
      binder.BindOutput("o_place", kTensorO, fields.o_place, valid.o_bytes, &binding.o);
  if (!bound.ok()) return bound;
  if (fields.lse_place.has_value()) {
    if (!fields.want_lse) return Invalid("lse_place is set; accepted: only with want_lse");
    if (fields.lse_place->offset % sizeof(float) != 0) {
      return Invalid("lse_place.offset is ", fields.lse_place->offset,
                     "; accepted: multiples of 4");
    }
  }
  bound =
      binder.BindOutput("lse_place", kTensorLse, fields.lse_place, valid.lse_bytes, &binding.lse);
  if (!bound.ok()) return bound;
  binding.bytes = binder.bytes();
  binding.on_device = binder.on_device();
  binding.device = binder.device();
  binding.regions = binder.TakeRegions();
  return binding;
}

}  // namespace flashbias::server

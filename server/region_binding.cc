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
  const Region* region;
  uint64_t begin;
  uint64_t end;  // exclusive

  bool Overlaps(const Range& other) const {
    return region == other.region && begin < other.end && other.begin < end;
  }
};

class Binder {
 public:
  explicit Binder(const RegionRegistry* registry) : registry_(registry) {}

  absl::StatusOr<char*> Bind(const char* name, const wire::RegionPlace& place, int64_t bytes) {
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
    char* const data = region->data() + place.offset;
    // No sum overflows: it was held against the region's size.
    ranges_.push_back(
        {.name = name, .region = region.get(), .begin = place.offset, .end = place.offset + size});
    regions_.push_back(std::move(region));
    bytes_ += bytes;
    return data;
  }

  absl::Status BindInput(const char* name, const wire::TensorField& tensor, int64_t bytes,
                         const char** data) {
    if (tensor.place.region_id == 0) return absl::OkStatus();
    const absl::StatusOr<char*> bound = Bind(name, tensor.place, bytes);
    if (bound.ok()) *data = *bound;
    return bound.status();
  }

  absl::Status BindOutput(const char* name, const std::optional<wire::RegionPlace>& place,
                          int64_t bytes, char** data) {
    if (!place.has_value()) return absl::OkStatus();
    const absl::StatusOr<char*> bound = Bind(name, *place, bytes);
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

 private:
  const RegionRegistry* const registry_;
  std::vector<Range> ranges_;
  int64_t bytes_ = 0;
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
    const wire::TensorField& tensor;
    DType dtype;
    const char** data;
  };
  std::vector<Input> inputs = {{"q", fields.q, problem.dtype, &binding.q},
                               {"k", fields.k, problem.dtype, &binding.k},
                               {"v", fields.v, problem.dtype, &binding.v}};
  if (problem.bias_kind == BiasKind::kLowRank) {
    inputs.push_back({"low_rank.phi_q", fields.phi_q, problem.low_rank.dtype, &binding.phi_q});
    inputs.push_back({"low_rank.phi_k", fields.phi_k, problem.low_rank.dtype, &binding.phi_k});
  }
  for (const Input& input : inputs) {
    const absl::Status bound =
        binder.BindInput(input.name, input.tensor, BytesOf(input.dtype, input.tensor), input.data);
    if (!bound.ok()) return bound;
  }
  absl::Status bound = binder.BindOutput("o_place", fields.o_place, valid.o_bytes, &binding.o);
  if (!bound.ok()) return bound;
  if (fields.lse_place.has_value()) {
    if (!fields.want_lse) return Invalid("lse_place is set; accepted: only with want_lse");
    if (fields.lse_place->offset % sizeof(float) != 0) {
      return Invalid("lse_place.offset is ", fields.lse_place->offset,
                     "; accepted: multiples of 4");
    }
  }
  bound = binder.BindOutput("lse_place", fields.lse_place, valid.lse_bytes, &binding.lse);
  if (!bound.ok()) return bound;
  binding.bytes = binder.bytes();
  binding.regions = binder.TakeRegions();
  return binding;
}

}  // namespace flashbias::server

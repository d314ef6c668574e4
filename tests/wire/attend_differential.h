// Holds ReadAttendRequest against the generated class, on any bytes.
#ifndef FLASHBIAS_TESTS_WIRE_ATTEND_DIFFERENTIAL_H_
#define FLASHBIAS_TESTS_WIRE_ATTEND_DIFFERENTIAL_H_

#include <grpcpp/support/slice.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"

namespace flashbias {

// `bytes` in slices that end at each of the `cuts` (ascending, within the bytes; equal ones give
// empty slices). Each slice has memory of its own, so that AddressSanitizer sees its end.
std::vector<grpc::Slice> SlicesOf(std::string_view bytes, absl::Span<const size_t> cuts);

// "" where both read the same fields, or both refuse; otherwise what differs. Lists beyond the
// contract's bounds, which only ours refuses, count as equal.
std::string DifferenceFromGenerated(std::string_view bytes, absl::Span<const size_t> cuts);

// What ours says of the bytes in one slice; "" where it reads them.
std::string ReadError(std::string_view bytes);

}  // namespace flashbias

#endif  // FLASHBIAS_TESTS_WIRE_ATTEND_DIFFERENTIAL_H_

// Holds ReadAttendRequest against the generated classes, on any bytes.
#ifndef FLASHBIAS_TESTS_WIRE_ATTEND_DIFFERENTIAL_H_
#define FLASHBIAS_TESTS_WIRE_ATTEND_DIFFERENTIAL_H_

#include <grpcpp/support/slice.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "kernels/attention_problem.h"

namespace flashbias {

// `bytes` in slices that end at each of the `cuts` (ascending, within the bytes; equal ones give
// empty slices). Each slice has memory of its own, so that AddressSanitizer sees its end.
std::vector<grpc::Slice> SlicesOf(std::string_view bytes, absl::Span<const size_t> cuts);

// Of the direction's request. "" where both read the same fields, or both refuse; otherwise what
// differs. Lists beyond the contract's bounds, which only ours refuses, count as equal.
std::string DifferenceFromGenerated(Direction direction, std::string_view bytes,
                                    absl::Span<const size_t> cuts);

// What ours says of the bytes in one slice; "" where it reads them.
std::string ReadError(Direction direction, std::string_view bytes);

}  // namespace flashbias

#endif  // FLASHBIAS_TESTS_WIRE_ATTEND_DIFFERENTIAL_H_

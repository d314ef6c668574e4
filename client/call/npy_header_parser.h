// The dict literal in a .npy header, as Python writes it.
//
// Pure function; thread-safe.
#ifndef FLASHBIAS_CLIENT_CALL_NPY_HEADER_PARSER_H_
#define FLASHBIAS_CLIENT_CALL_NPY_HEADER_PARSER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace flashbias::client {

struct NpyHeaderFields {
  std::string descr = {};   // as written: "<f4"
  bool structured = false;  // descr is a list or tuple; `descr` is then empty
  bool fortran_order = false;
  std::vector<int64_t> shape = {};  // not negative
};

// INVALID_ARGUMENT: not a dict with exactly the three keys.
absl::StatusOr<NpyHeaderFields> ParseNpyHeader(absl::string_view header);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_CALL_NPY_HEADER_PARSER_H_

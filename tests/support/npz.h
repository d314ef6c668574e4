// Reads numpy's .npy and uncompressed .npz files into doubles, and writes .npy files.
//
// Serves the golden vectors and the command-line tests: float16/32/64 and int32/64, little-endian,
// C order. Everything else is an error that names the file or member. Thread-safe: pure functions.
#ifndef FLASHBIAS_TESTS_SUPPORT_NPZ_H_
#define FLASHBIAS_TESTS_SUPPORT_NPZ_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace flashbias::support {

struct NpyArray {
  std::string descr;           // numpy's type string: "<f4"
  std::vector<int64_t> shape;  // empty: a scalar
  std::vector<double> values;  // row-major
};

// `what` names the source in error messages.
absl::StatusOr<NpyArray> ParseNpy(std::string_view bytes, std::string_view what);
absl::StatusOr<NpyArray> ReadNpy(const std::string& path);

// The members of an .npz by name, without their ".npy" ending.
absl::StatusOr<std::map<std::string, NpyArray>> ParseNpz(std::string_view bytes,
                                                         std::string_view what);
absl::StatusOr<std::map<std::string, NpyArray>> ReadNpz(const std::string& path);

// The bytes of an .npy file, format version 1.0. `data` is packed, little-endian, row-major.
std::string EncodeNpy(std::string_view descr, const std::vector<int64_t>& shape,
                      std::string_view data);

absl::StatusOr<std::string> ReadFile(const std::string& path);
absl::Status WriteFile(const std::string& path, std::string_view bytes);

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_NPZ_H_

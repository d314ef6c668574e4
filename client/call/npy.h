// Reads and writes .npy files: what numpy.save writes, and what numpy.load reads.
//
// Format: magic "\x93NUMPY", version, header length, a Python dict literal with descr,
// fortran_order and shape, then the elements (numpy.lib.format). Versions 1.0, 2.0 and 3.0.
// Pure functions; thread-safe. Every error is one line that begins with the file's name.
#ifndef FLASHBIAS_CLIENT_CALL_NPY_H_
#define FLASHBIAS_CLIENT_CALL_NPY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/flags/output_file.h"

namespace flashbias::client {

// Little-endian element types: '<f2', '<f4', '<f8', '<u2'.
enum class NpyType { kFloat16, kFloat32, kFloat64, kUint16 };

// "<f2" and so on.
const char* NpyDescr(NpyType type);
int64_t NpySizeOf(NpyType type);

struct NpyArray {
  NpyType type = NpyType::kFloat32;
  std::vector<int64_t> shape = {};  // empty: 0-d, one element
  std::string data = {};            // row-major, little-endian, exactly the elements
};

// Arrays in Fortran order, such as numpy writes for a transposed one, come out row-major.
// INVALID_ARGUMENT: not a .npy file, truncated, bytes after the array, an element type that is not
// served (big-endian, integers, objects, structured), or Fortran order with more than 3 dimensions.
// `name` is put before every message.
absl::StatusOr<NpyArray> ParseNpy(const std::string& name, std::string bytes);

// Reads a whole file; NOT_FOUND, PERMISSION_DENIED and the like as the system says, otherwise as
// ParseNpy.
absl::StatusOr<NpyArray> ReadNpy(const std::string& path);

// The bytes that stand before the elements: version 1.0, padded so that these begin at a multiple
// of 64 bytes.
std::string NpyHeader(NpyType type, const std::vector<int64_t>& shape);

// Writes an array to `file`. REQUIRES: data holds product(shape) elements of `type`.
absl::Status WriteNpy(OutputFile* file, NpyType type, const std::vector<int64_t>& shape,
                      absl::string_view data);

// The same to the file at `path`.
absl::Status WriteNpy(const std::string& path, NpyType type, const std::vector<int64_t>& shape,
                      absl::string_view data);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_CALL_NPY_H_

// The names of dtypes on command lines.
//
// Pure function; thread-safe.
#ifndef FLASHBIAS_CLIENT_FLAGS_DTYPE_FLAG_H_
#define FLASHBIAS_CLIENT_FLAGS_DTYPE_FLAG_H_

#include <optional>
#include <string>

#include "kernels/dtype.h"

namespace flashbias::client {

// nullopt: not the name of a dtype.
inline std::optional<DType> DTypeFromName(const std::string& name) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    if (name == Name(dtype)) return dtype;
  }
  return std::nullopt;
}

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_FLAGS_DTYPE_FLAG_H_

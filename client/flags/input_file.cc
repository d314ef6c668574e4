#include "client/flags/input_file.h"

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"

namespace flashbias::client {
namespace {

constexpr size_t kMaxBytes = size_t{16} << 20;

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

absl::Status SystemError(const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot read"));
}

}  // namespace

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rbe"));
  if (file == nullptr) return SystemError(path);
  std::string bytes;
  char buffer[4096];
  while (const size_t got = std::fread(buffer, 1, sizeof(buffer), file.get())) {
    bytes.append(buffer, got);
    if (bytes.size() > kMaxBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": has more than ", kMaxBytes, " bytes"));
    }
  }
  if (std::ferror(file.get()) != 0) return SystemError(path);
  if (bytes.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": is empty"));
  return bytes;
}

}  // namespace flashbias::client

#include "client/flags/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flashbias::client {
namespace {

absl::Status SystemError(const std::string& path, const char* action) {
  return absl::ErrnoToStatus(errno, absl::StrCat(path, ": ", action));
}

bool WriteAll(int descriptor, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

// Pipes and devices hold nothing to cut off.
bool Empty(int descriptor) {
  struct stat status = {};
  if (fstat(descriptor, &status) != 0) return false;
  return !S_ISREG(status.st_mode) || ftruncate(descriptor, 0) == 0;
}

}  // namespace

absl::StatusOr<OutputFile> OutputFile::Open(const std::string& path) {
  constexpr mode_t kMode = 0666;
  int descriptor = open(path.c_str(), O_WRONLY | O_CLOEXEC | O_CREAT | O_EXCL, kMode);
  const bool created = descriptor >= 0;
  if (!created && errno == EEXIST) {
    // O_CREAT once more: a link may point at a file that is not there.
    descriptor = open(path.c_str(), O_WRONLY | O_CLOEXEC | O_CREAT, kMode);
  }
  if (descriptor < 0) return SystemError(path, "cannot write");
  return OutputFile(path, descriptor, created);
}

OutputFile::OutputFile(std::string path, int descriptor, bool created)
    : path_(std::move(path)), descriptor_(descriptor), created_(created) {}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(other.path_),
      descriptor_(std::exchange(other.descriptor_, -1)),
      created_(std::exchange(other.created_, false)) {}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (created_) unlink(path_.c_str());
}

absl::Status OutputFile::Write(absl::Span<const absl::string_view> parts) {
  created_ = false;
  bool written = Empty(descriptor_);
  for (const absl::string_view part : parts) written = written && WriteAll(descriptor_, part);
  if (!written) return SystemError(path_, "cannot write");
  // Some file systems tell only here that the disk is full.
  if (close(std::exchange(descriptor_, -1)) != 0) return SystemError(path_, "cannot write");
  return absl::OkStatus();
}

}  // namespace flashbias::client

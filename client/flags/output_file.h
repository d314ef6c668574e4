// A file that a program is asked to write: opened before the work, written after it.
//
// Opening leaves what the file holds; one that was created and never written is removed again.
// Not thread-safe. Every error is one line that begins with the file's name.
#ifndef FLASHBIAS_CLIENT_FLAGS_OUTPUT_FILE_H_
#define FLASHBIAS_CLIENT_FLAGS_OUTPUT_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace flashbias::client {

class OutputFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED and the like, as the system says.
  static absl::StatusOr<OutputFile> Open(const std::string& path);
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile();

  // Replaces what the file holds with `parts`, one after the other, and closes it. To be called at
  // most once.
  absl::Status Write(absl::Span<const absl::string_view> parts);

 private:
  OutputFile(std::string path, int descriptor, bool created);

  const std::string path_;
  int descriptor_;  // -1: closed or moved from
  bool created_;    // and not written yet
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_FLAGS_OUTPUT_FILE_H_

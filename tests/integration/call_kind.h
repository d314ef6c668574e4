// Calls of every kind: inline over TCP or a unix socket, streamed, with tensors in shared memory.
// All of them send the same tensors and so get the same answer.
//
// Not thread-safe.
#ifndef FLASHBIAS_TESTS_INTEGRATION_CALL_KIND_H_
#define FLASHBIAS_TESTS_INTEGRATION_CALL_KIND_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/attention_client.h"

namespace flashbias::integration {

class KindOfCaller {
 public:
  // `kind`: "inline", "stream" or "shared", the last with a unix target. Tensors have `rows` KiB
  // each, the answer too. Errors are the client's.
  static absl::StatusOr<std::unique_ptr<KindOfCaller>> Create(const std::string& kind,
                                                              const std::string& target,
                                                              int64_t rows);

  // Blocks. A call is not tried again.
  absl::Status Call();
  // Of the last call that succeeded.
  absl::string_view answer() const { return {o_, bytes_}; }
  // Where answers are written; a streamed one as it comes.
  char* mutable_answer() { return o_; }

 private:
  explicit KindOfCaller(int64_t rows);

  const int64_t rows_;
  const size_t bytes_;  // of each tensor
  std::unique_ptr<client::AttentionClient> client_;
  std::unique_ptr<client::SharedRegion> region_;  // null: all is in memory_
  std::vector<char> memory_;
  const char* input_ = nullptr;  // q, k and v are the same
  char* o_ = nullptr;
};

}  // namespace flashbias::integration

#endif  // FLASHBIAS_TESTS_INTEGRATION_CALL_KIND_H_

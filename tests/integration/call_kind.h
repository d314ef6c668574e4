// Calls of every kind: inline over TCP or a unix socket, streamed, with tensors in shared memory,
// for attention or for gradients. All of one direction send the same tensors and so get the same
// answer.
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
  // `kind`: "inline", "stream" or "shared", the last with a unix target; with "backward_" in front
  // for gradients. Tensors have `rows` KiB each, each of the answer too. Errors are the client's.
  static absl::StatusOr<std::unique_ptr<KindOfCaller>> Create(const std::string& kind,
                                                              const std::string& target,
                                                              int64_t rows);

  // Blocks. A call is not tried again.
  absl::Status Call();
  // Of the last call that succeeded.
  absl::string_view answer() const { return {answer_, answer_bytes_}; }
  // Where answers are written; a streamed one as it comes.
  char* mutable_answer() { return answer_; }

 private:
  KindOfCaller(int64_t rows, bool backward);

  absl::Status Forward();

  const int64_t rows_;
  const bool backward_;
  const size_t bytes_;         // of each tensor
  const size_t answer_bytes_;  // o; or dq, dk and dv
  std::unique_ptr<client::AttentionClient> client_;
  std::unique_ptr<client::SharedRegion> region_;  // null: all is in memory_
  std::vector<char> memory_;
  const char* input_ = nullptr;  // q, k, v and d_o are the same
  char* answer_ = nullptr;
  // Of a forward call that is made first.
  char* o_ = nullptr;
  float* lse_ = nullptr;
};

}  // namespace flashbias::integration

#endif  // FLASHBIAS_TESTS_INTEGRATION_CALL_KIND_H_

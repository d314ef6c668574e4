// Which request of a load an answer is of, and what is kept of the answer to be verified.
//
// Plain values.
#ifndef FLASHBIAS_CLIENT_LOAD_REQUESTS_ANSWER_SAMPLE_H_
#define FLASHBIAS_CLIENT_LOAD_REQUESTS_ANSWER_SAMPLE_H_

#include <cstdint>
#include <vector>

namespace flashbias::client {

struct PlannedRequest {
  int entry = 0;
  int input = 0;  // of the entry's workload
  int64_t q_len = 0;
  int64_t kv_len = 0;
  int forward = -1;  // of kBackward: which of forward_calls(entry) it takes the gradients of
};

enum class GradientOf { kQ, kK, kV };

// Some rows of one answer.
struct AnswerSample {
  struct Row {
    int64_t row = 0;
    int head = 0;
    std::vector<float> o = {};  // [head_dim]
    float lse = 0;              // 0 when not asked for
  };
  // Of one of the gradients.
  struct GradientRow {
    GradientOf which = GradientOf::kQ;
    int64_t row = 0;
    int head = 0;
    std::vector<float> values = {};  // [head_dim]
  };
  PlannedRequest request = {};                  // that was answered
  std::vector<Row> rows = {};                   // of a forward call
  std::vector<GradientRow> gradient_rows = {};  // of a backward call
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REQUESTS_ANSWER_SAMPLE_H_

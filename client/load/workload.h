// The requests that the load generator sends: pre-generated inputs of one shape.
//
// Thread-safety: const after Create, so any thread may read. Ownership: a Workload owns the memory
// that its requests and problems point at.
#ifndef FLASHBIAS_CLIENT_LOAD_WORKLOAD_H_
#define FLASHBIAS_CLIENT_LOAD_WORKLOAD_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "client/attention_types.h"
#include "client/request_validation.h"
#include "kernels/attention_problem.h"
#include "kernels/dtype.h"

namespace flashbias::client {

// What a request of the load is.
enum class LoadDirection {
  kForward,
  kBackward,  // of a forward call that was made before the load
  kBoth,      // a forward call, and the backward call of its answer
};
std::string Name(LoadDirection direction);

struct WorkloadOptions {
  LoadDirection direction = LoadDirection::kForward;
  int64_t heads = 50;      // of q; at least 1
  int64_t kv_heads = 0;    // 0: as many as heads
  int64_t head_dim = 32;   // 1 to 128
  int64_t seq_len = 1024;  // keys; at least 1
  int64_t q_len = 0;       // queries, at the end of the keys; 0: seq_len
  DType dtype = DType::kFloat16;
  std::string alibi = "seed";  // "standard", "seed" or "none"
  bool causal = true;
  std::optional<float> eps = {};  // absent: the server's default
  bool want_lse = false;          // always with backward calls
  bool bias_gradient = false;     // of backward calls; needs slopes
  int num_inputs = 4;             // sent in turn, so that answers differ; 1 to 64
  uint64_t seed = 1;              // of the standard normal q, k, v and d_o
};

class Workload {
 public:
  // INVALID_ARGUMENT: an option is out of its range; the message names its flag.
  static absl::StatusOr<std::unique_ptr<Workload>> Create(const WorkloadOptions& options);
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  int num_inputs() const { return static_cast<int>(inputs_.size()); }
  const AttendRequest& request(int input) const { return inputs_[input]->request; }
  // The same as the backends see it, without o and lse; backward where there are backward calls.
  AttentionProblem problem(int input) const;
  // The gradients of a forward call that gave `result`; refers to that.
  AttendBackwardRequest backward_request(int input, const AttendResult& result) const;
  // What the load's backward calls are of. Not while it runs.
  void SetForwardResult(int input, AttendResult result) {
    inputs_[input]->result = std::move(result);
  }
  const AttendResult& forward_result(int input) const { return inputs_[input]->result; }
  LoadDirection direction() const { return options_.direction; }
  // Of each request; the bytes of kBoth are those of both calls.
  const RequestSummary& summary() const { return summary_; }

 private:
  struct Input {
    std::string q, k, v, d_o;
    AttendRequest request;
    AttendResult result;
  };

  absl::StatusOr<RequestSummary> Summarize() const;

  explicit Workload(const WorkloadOptions& options) : options_(options) {}
  void Generate();

  const WorkloadOptions options_;
  std::vector<float> slopes_;
  std::vector<std::unique_ptr<Input>> inputs_;
  RequestSummary summary_;
  Sequence sequence_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_WORKLOAD_H_

// The requests of one kind that the load generator sends: pre-generated inputs of one shape but for
// their lengths.
//
// Tensors are token-major, so the first rows of an input are an input of a smaller length. Memory
// is held for the largest length, and a request of any other is a view of it: nothing is copied.
//
// Thread-safety: const after Create, so any thread may read. Ownership: a Workload owns the memory
// that its requests and problems point at.
#ifndef FLASHBIAS_CLIENT_LOAD_REQUESTS_WORKLOAD_H_
#define FLASHBIAS_CLIENT_LOAD_REQUESTS_WORKLOAD_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>
#include "absl/strings/string_view.h"

#include "absl/status/statusor.h"
#include "absl/types/span.h"
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
  int64_t seq_len = 1024;  // keys, the largest number; at least 1
  int64_t q_len = 0;       // queries, at the end of the keys, the largest number; 0: seq_len
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
  // Bytes of one input, for the largest length. d_o is empty without backward calls.
  struct Input {
    std::string q, k, v, d_o;
  };
  // Of tensors, of one call or, of kBoth, of the two together.
  struct CallBytes {
    int64_t request = 0;
    int64_t response = 0;
  };

  // INVALID_ARGUMENT: an option is out of its range; the message calls it `field_prefix` and its
  // name ("--heads", "entries[2].heads").
  static absl::StatusOr<std::unique_ptr<Workload>> Create(const WorkloadOptions& options,
                                                          absl::string_view field_prefix = "--");
  // What Create would give each input in bytes; errors as there. Makes none.
  static absl::StatusOr<int64_t> InputBytes(const WorkloadOptions& options,
                                            absl::string_view field_prefix = "--");
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  int num_inputs() const { return static_cast<int>(inputs_.size()); }
  const Input& input(int input) const { return inputs_[input]; }
  LoadDirection direction() const { return options_.direction; }
  // With every 0 resolved.
  const WorkloadOptions& options() const { return options_; }

  // In what follows REQUIRES: 1 <= q_len <= options().q_len, 1 <= kv_len <= options().seq_len.
  //
  // Of the first rows of an input.
  AttendRequest request(int input, int64_t q_len, int64_t kv_len) const;
  // The gradients of that, which gave `o` and `lse`; refers to them.
  AttendBackwardRequest backward_request(int input, int64_t q_len, int64_t kv_len, const void* o,
                                         absl::Span<const float> lse) const;
  static Sequence sequence(int64_t q_len, int64_t kv_len);
  // The request of such a sequence as the backends see it, without o and lse; backward where there
  // are backward calls. Refers to `sequence`.
  AttentionProblem problem(int input, const Sequence& sequence) const;
  CallBytes bytes(int64_t q_len, int64_t kv_len) const;
  // Of requests of the largest length; the bytes of kBoth are those of both calls.
  const RequestSummary& summary() const { return summary_; }

 private:
  explicit Workload(const WorkloadOptions& options) : options_(options) {}
  void Generate();
  absl::StatusOr<RequestSummary> Summarize() const;

  const WorkloadOptions options_;
  std::vector<float> slopes_;
  std::vector<Input> inputs_;
  RequestSummary summary_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_LOAD_REQUESTS_WORKLOAD_H_

// An AttentionProblem, forward or backward, that owns its tensors, built to catch a backend that
// strays.
//
// Inputs are sized exactly, so that AddressSanitizer sees the first byte read beyond them, and may
// start at an odd byte address. Outputs are filled with a signalling NaN that no computation
// yields, with guard bytes on both sides.
//
// Movable; the problem's pointers survive a move. Not thread-safe, but disjoint problems are
// independent.
#ifndef FLASHBIAS_TESTS_SUPPORT_OWNED_PROBLEM_H_
#define FLASHBIAS_TESTS_SUPPORT_OWNED_PROBLEM_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/attention_problem.h"

namespace flashbias::support {

class OwnedProblem {
 public:
  // Allocates for `shape`, whose pointers and sequences are ignored. `byte_offset` (0 .. 63) shifts
  // all tensors but the slopes away from alignment; those in float stay aligned to 4 bytes. A
  // backward problem has lse, wanted or not; `want_bias_gradient`: that of the bias that it has.
  OwnedProblem(const AttentionProblem& shape, std::vector<Sequence> sequences, bool want_lse,
               int byte_offset, bool want_bias_gradient = true);
  OwnedProblem(OwnedProblem&&) = default;
  OwnedProblem& operator=(OwnedProblem&&) = default;

  const AttentionProblem& problem() const { return problem_; }
  // For tests that change a value (eps, scale, mask) but no shape.
  AttentionProblem& mutable_problem() { return problem_; }

  // Writable inputs; null where the problem has none.
  void* q() { return q_.data(); }
  void* k() { return k_.data(); }
  void* v() { return v_.data(); }
  float* slopes() { return slopes_.data(); }
  void* phi_q() { return phi_q_.data(); }
  void* phi_k() { return phi_k_.data(); }
  // Of a backward problem.
  void* d_o() { return d_o_.data(); }
  void* o_input() { return o_input_.data(); }
  float* lse_input() { return reinterpret_cast<float*>(lse_input_.data()); }

  // Of a backward problem: o and lse as the fp64 reference gives them for the other inputs, rounded
  // to their types. To be called again when those change.
  void SetForwardResults();

  int64_t num_slopes() const { return static_cast<int64_t>(slopes_.size()); }
  int64_t q_elements() const;    // of q and of o, d_o and dq
  int64_t kv_elements() const;   // of k, and of v, dk and dv
  int64_t lse_elements() const;  // of lse, wanted or not
  int64_t phi_q_elements() const;
  int64_t phi_k_elements() const;

  // The same problem with q, k, v and d_o rounded to `dtype`; outputs are fresh, as are o and lse
  // of a backward problem.
  OwnedProblem RoundedTo(DType dtype) const;

  // Fills the outputs with poison again, so that the problem can be run once more.
  void PoisonOutputs();

  // Empty when every output element was written and every guard byte is intact, else what is wrong.
  std::string CheckOutputs() const;

  // The outputs' bytes, for bitwise comparisons.
  std::string OutputBytes() const;

 private:
  // `size` bytes that end where their allocation ends.
  class Input {
   public:
    Input() = default;
    Input(size_t size, int byte_offset) : offset_(byte_offset), bytes_(size + byte_offset) {}
    void* data() { return bytes_.empty() ? nullptr : bytes_.data() + offset_; }
    int offset() const { return offset_; }

   private:
    int offset_ = 0;
    std::vector<char> bytes_;
  };

  // `size` bytes between two guards.
  class Output {
   public:
    Output() = default;
    Output(size_t size, int byte_offset);
    char* data() { return bytes_.empty() ? nullptr : bytes_.data() + begin_; }
    const char* data() const { return bytes_.empty() ? nullptr : bytes_.data() + begin_; }
    size_t size() const { return size_; }
    bool GuardsIntact() const;

   private:
    size_t begin_ = 0;
    size_t size_ = 0;
    std::vector<char> bytes_;
  };

  struct NamedOutput {
    const char* name;
    DType dtype;
    Output output;
  };

  bool backward() const { return problem_.direction == Direction::kBackward; }
  // A new output's memory.
  char* AddOutput(const char* name, DType dtype, int64_t elements, int byte_offset);
  void AllocateGradients(int byte_offset, bool want_bias_gradient);

  AttentionProblem problem_;
  std::vector<Sequence> sequences_;
  Input q_, k_, v_, phi_q_, phi_k_;
  Input d_o_, o_input_, lse_input_;  // of a backward problem
  std::vector<float> slopes_;
  std::vector<NamedOutput> outputs_;
};

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_OWNED_PROBLEM_H_

// The tensors of a problem as a list: for whoever moves them and need not know what each is.
//
// Thread-safety: pure functions on their arguments. Nothing is owned.
#ifndef FLASHBIAS_KERNELS_PROBLEM_TENSORS_H_
#define FLASHBIAS_KERNELS_PROBLEM_TENSORS_H_

#include <cstddef>
#include <cstdint>

#include "absl/container/inlined_vector.h"
#include "kernels/attention_problem.h"
#include "kernels/dtype.h"

namespace flashbias {

struct ProblemTensor {
  TensorSet tensor = 0;  // which one, a single bit
  bool is_input = true;  // read; else written
  const char* name = "";
  DType dtype = DType::kFloat32;
  size_t bytes = 0;
  void* data = nullptr;  // an input's is only read
};

using ProblemTensors = absl::InlinedVector<ProblemTensor, 14>;

// Those that the problem has, wherever they lie: first what is read, then what is written, both in
// the order in which servers lay them out. Slopes and sequences are no tensors here.
ProblemTensors TensorsOf(const AttentionProblem& problem);

// Makes the problem's pointer to one tensor point at `data`.
void PointAt(TensorSet tensor, void* data, AttentionProblem* problem);

// Where the problem's pointer to one output points; null: to none.
void* OutputOf(const AttentionProblem& problem, TensorSet tensor);

}  // namespace flashbias

#endif  // FLASHBIAS_KERNELS_PROBLEM_TENSORS_H_

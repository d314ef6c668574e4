// The matrix type of the example: float32, row-major as the tensors of a call are.
#ifndef FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_MATRIX_H_
#define FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_MATRIX_H_

#include <Eigen/Core>

namespace flashbias::examples {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

}  // namespace flashbias::examples

#endif  // FLASHBIAS_CLIENT_EXAMPLES_TRAIN_ALIBI_LAYER_MATRIX_H_

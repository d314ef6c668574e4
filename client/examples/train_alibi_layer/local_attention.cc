#include "client/examples/train_alibi_layer/local_attention.h"

#include <algorithm>
#include <cmath>

namespace flashbias::examples {
namespace {

using MatrixXd = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Columns of one head.
MatrixXd HeadOf(const Matrix& tensor, int head, int64_t head_dim) {
  return tensor.middleCols(head * head_dim, head_dim).cast<double>();
}

// One head in double precision.
struct Head {
  Head(const AttentionInput& input, int head)
      : head_dim(input.q.cols() / input.num_heads),
        scale(1 / std::sqrt(static_cast<double>(head_dim))),
        slope(input.slopes[head]),
        q(HeadOf(input.q, head, head_dim)),
        k(HeadOf(input.k, head, head_dim)),
        v(HeadOf(input.v, head, head_dim)) {}

  double Logit(int64_t i, int64_t j) const {
    return scale * q.row(i).dot(k.row(j)) - slope * static_cast<double>(i - j);
  }

  const int64_t head_dim;
  const double scale;
  const double slope;
  const MatrixXd q, k, v;  // [n, head_dim]
};

}  // namespace

absl::StatusOr<AttentionOutput> LocalAttention::Forward(const AttentionInput& input) {
  const int64_t n = input.q.rows();
  AttentionOutput output{.o = Matrix::Zero(n, input.q.cols()),
                         .lse = std::vector<float>(n * input.num_heads)};
  std::vector<double> logits(n);
  for (int h = 0; h < input.num_heads; ++h) {
    const Head head(input, h);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j <= i; ++j) logits[j] = head.Logit(i, j);
      const double largest = *std::max_element(logits.begin(), logits.begin() + i + 1);
      double sum = 0;
      Eigen::RowVectorXd o = Eigen::RowVectorXd::Zero(head.head_dim);
      for (int64_t j = 0; j <= i; ++j) {
        const double weight = std::exp(logits[j] - largest);
        sum += weight;
        o += weight * head.v.row(j);
      }
      output.o.row(i).segment(h * head.head_dim, head.head_dim) = (o / sum).cast<float>();
      output.lse[i * input.num_heads + h] = static_cast<float>(largest + std::log(sum));
    }
  }
  return output;
}

absl::StatusOr<AttentionGradients> LocalAttention::Backward(const AttentionInput& input,
                                                            const AttentionOutput& output,
                                                            const Matrix& d_o, bool want_dslopes) {
  const int64_t n = input.q.rows();
  const int64_t channels = input.q.cols();
  AttentionGradients gradients{
      .dq = Matrix(n, channels), .dk = Matrix(n, channels), .dv = Matrix(n, channels)};
  for (int h = 0; h < input.num_heads; ++h) {
    const Head head(input, h);
    const MatrixXd o = HeadOf(output.o, h, head.head_dim);
    const MatrixXd d_oh = HeadOf(d_o, h, head.head_dim);
    MatrixXd dq = MatrixXd::Zero(n, head.head_dim);
    MatrixXd dk = dq;
    MatrixXd dv = dq;
    double dslope = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double delta = d_oh.row(i).dot(o.row(i));
      for (int64_t j = 0; j <= i; ++j) {
        const double p = std::exp(head.Logit(i, j) - output.lse[i * input.num_heads + h]);
        const double ds = p * (d_oh.row(i).dot(head.v.row(j)) - delta);
        dq.row(i) += head.scale * ds * head.k.row(j);
        dk.row(j) += head.scale * ds * head.q.row(i);
        dv.row(j) += p * d_oh.row(i);
        dslope -= ds * static_cast<double>(i - j);
      }
    }
    gradients.dq.middleCols(h * head.head_dim, head.head_dim) = dq.cast<float>();
    gradients.dk.middleCols(h * head.head_dim, head.head_dim) = dk.cast<float>();
    gradients.dv.middleCols(h * head.head_dim, head.head_dim) = dv.cast<float>();
    if (want_dslopes) gradients.dslopes.push_back(static_cast<float>(dslope));
  }
  return gradients;
}

}  // namespace flashbias::examples

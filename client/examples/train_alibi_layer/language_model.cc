#include "client/examples/train_alibi_layer/language_model.h"

#include <cmath>
#include <random>
#include <utility>

#include "kernels/alibi.h"

namespace flashbias::examples {
namespace {

constexpr int kBytes = 256;

Matrix RandomNormal(int rows, int cols, double deviation, std::mt19937_64* random) {
  Matrix matrix(rows, cols);
  std::normal_distribution<float> normal(0, static_cast<float>(deviation));
  for (int64_t n = 0; n < matrix.size(); ++n) matrix.data()[n] = normal(*random);
  return matrix;
}

int64_t ByteAt(absl::string_view text, int64_t at) {
  return static_cast<unsigned char>(text[static_cast<size_t>(at)]);
}

// Mean cross-entropy of the rows of `logits` with the bytes from text[1] on; then turns each row
// into its gradient, (softmax - one_hot) / n.
double CrossEntropy(absl::string_view text, Matrix* logits) {
  const int64_t n = logits->rows();
  double loss = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Eigen::RowVectorXd row = logits->row(i).cast<double>();
    const double largest = row.maxCoeff();
    Eigen::RowVectorXd gradient = (row.array() - largest).exp();
    const double sum = gradient.sum();
    const int64_t next = ByteAt(text, i + 1);
    loss += largest + std::log(sum) - row(next);
    gradient /= sum;
    gradient(next) -= 1;
    logits->row(i) = (gradient / static_cast<double>(n)).cast<float>();
  }
  return loss / static_cast<double>(n);
}

}  // namespace

ModelWeights InitialWeights(const ModelShape& shape, uint64_t seed) {
  std::mt19937_64 random(seed);
  const int channels = shape.channels();
  const double deviation = 1 / std::sqrt(channels);
  ModelWeights weights;
  weights.embedding = RandomNormal(kBytes, channels, 1, &random);
  weights.layer.wq = RandomNormal(channels, channels, deviation, &random);
  weights.layer.wk = RandomNormal(channels, channels, deviation, &random);
  weights.layer.wv = RandomNormal(channels, channels, deviation, &random);
  weights.layer.wo = RandomNormal(channels, channels, deviation, &random);
  weights.layer.slopes = SeedAlibiSlopes(shape.num_heads);
  // Small, so that the first predictions are near uniform.
  weights.output = RandomNormal(channels, kBytes, 0.1 * deviation, &random);
  return weights;
}

absl::StatusOr<LossAndGradients> ComputeGradients(const ModelWeights& weights,
                                                  absl::string_view text, bool want_dslopes,
                                                  Attention* attention) {
  const int64_t n = static_cast<int64_t>(text.size()) - 1;
  Matrix x(n, weights.embedding.cols());
  for (int64_t i = 0; i < n; ++i) x.row(i) = weights.embedding.row(ByteAt(text, i));
  const absl::StatusOr<LayerActivations> activations =
      LayerForward(weights.layer, std::move(x), attention);
  if (!activations.ok()) return activations.status();
  Matrix d_logits = activations->y * weights.output;
  LossAndGradients result;
  result.loss = CrossEntropy(text, &d_logits);

  result.gradients.output = activations->y.transpose() * d_logits;
  const Matrix dy = d_logits * weights.output.transpose();
  absl::StatusOr<LayerGradients> of_layer =
      LayerBackward(weights.layer, *activations, dy, want_dslopes, attention);
  if (!of_layer.ok()) return of_layer.status();
  result.gradients.layer = std::move(of_layer->weights);
  result.gradients.embedding = Matrix::Zero(weights.embedding.rows(), weights.embedding.cols());
  for (int64_t i = 0; i < n; ++i) {
    result.gradients.embedding.row(ByteAt(text, i)) += of_layer->dx.row(i);
  }
  return result;
}

void Descend(const ModelWeights& gradients, float learning_rate, ModelWeights* weights) {
  weights->embedding -= learning_rate * gradients.embedding;
  weights->layer.wq -= learning_rate * gradients.layer.wq;
  weights->layer.wk -= learning_rate * gradients.layer.wk;
  weights->layer.wv -= learning_rate * gradients.layer.wv;
  weights->layer.wo -= learning_rate * gradients.layer.wo;
  weights->output -= learning_rate * gradients.output;
  for (size_t h = 0; h < gradients.layer.slopes.size(); ++h) {
    weights->layer.slopes[h] -= learning_rate * gradients.layer.slopes[h];
  }
}

}  // namespace flashbias::examples

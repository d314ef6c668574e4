// A gRPC server in this process whose answers a test scripts.
#ifndef FLASHBIAS_TESTS_CLIENT_FAKE_SERVER_H_
#define FLASHBIAS_TESTS_CLIENT_FAKE_SERVER_H_

#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "flashbias/v1/attention.grpc.pb.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "kernels/attention_problem.h"
#include "kernels/reference/reference_attention.h"
#include "kernels/reference/reference_gradients.h"

namespace flashbias::client {

class FakeServer final : public v1::AttentionService::Service {
 public:
  // `call` counts Attend calls from 0.
  using Handler =
      std::function<grpc::Status(int call, grpc::ServerContext* context,
                                 const v1::AttendRequest& request, v1::AttendResponse* response)>;

  // The same for AttendBackward, whose calls count too.
  using BackwardHandler = std::function<grpc::Status(int call, grpc::ServerContext* context,
                                                     const v1::AttendBackwardRequest& request,
                                                     v1::AttendBackwardResponse* response)>;

  explicit FakeServer(BackwardHandler backward) : FakeServer(Handler(), std::move(backward)) {}
  explicit FakeServer(Handler handler, BackwardHandler backward = nullptr)
      : handler_(std::move(handler)), backward_(std::move(backward)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.SetMaxReceiveMessageSize(std::numeric_limits<int>::max());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeServer() override { server_->Shutdown(absl::ToChronoTime(absl::Now() + absl::Seconds(1))); }

  std::string target() const { return absl::StrCat("127.0.0.1:", port_); }
  int calls() const { return calls_; }
  // Addresses of the connections that Attend calls came over.
  size_t connections() {
    absl::MutexLock lock(&mutex_);
    return peers_.size();
  }
  v1::GetServerInfoResponse* info() { return &info_; }

  grpc::Status Attend(grpc::ServerContext* context, const v1::AttendRequest* request,
                      v1::AttendResponse* response) override {
    {
      absl::MutexLock lock(&mutex_);
      peers_.insert(context->peer());
    }
    return handler_(calls_++, context, *request, response);
  }

  grpc::Status AttendBackward(grpc::ServerContext* context,
                              const v1::AttendBackwardRequest* request,
                              v1::AttendBackwardResponse* response) override {
    return backward_(calls_++, context, *request, response);
  }

  grpc::Status GetServerInfo(grpc::ServerContext* /*context*/,
                             const v1::GetServerInfoRequest* /*request*/,
                             v1::GetServerInfoResponse* response) override {
    *response = info_;
    return grpc::Status::OK;
  }

 private:
  const Handler handler_;
  const BackwardHandler backward_;
  v1::GetServerInfoResponse info_;
  int port_ = 0;
  std::atomic<int> calls_{0};
  absl::Mutex mutex_;
  std::set<std::string> peers_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<grpc::Server> server_;
};

// An answer of the right shape: o is q, lse counts up from 0.
inline grpc::Status Echo(const v1::AttendRequest& request, v1::AttendResponse* response) {
  *response->mutable_o() = request.q();
  if (request.want_lse()) {
    v1::Tensor* lse = response->mutable_lse();
    lse->set_dtype(v1::DTYPE_FLOAT32);
    lse->add_shape(request.q().shape(0));
    lse->add_shape(request.q().shape(1));
    std::vector<float> values(request.q().shape(0) * request.q().shape(1));
    for (size_t n = 0; n < values.size(); ++n) values[n] = static_cast<float>(n);
    lse->set_data(values.data(), values.size() * sizeof(float));
  }
  response->mutable_timing()->set_compute_seconds(0.25);
  response->mutable_timing()->set_upload_seconds(0.0625);
  response->mutable_timing()->set_kernel_seconds(0.125);
  response->mutable_timing()->set_download_seconds(0.03125);
  response->mutable_timing()->set_batch_requests(3);
  response->mutable_timing()->set_tiles_computed(7);
  response->mutable_timing()->set_tiles_skipped(1);
  return grpc::Status::OK;
}

// Gradients of the right shapes: dq is d_o, dk is k, dv is v, those of the bias are it.
inline grpc::Status Echo(const v1::AttendBackwardRequest& request,
                         v1::AttendBackwardResponse* response) {
  const v1::AttendRequest& forward = request.forward();
  *response->mutable_dq() = request.d_o();
  *response->mutable_dk() = forward.k();
  *response->mutable_dv() = forward.v();
  if (request.want_bias_gradient() && forward.has_alibi()) {
    *response->mutable_dslopes() = forward.alibi().slopes();
  }
  if (request.want_bias_gradient() && forward.has_low_rank()) {
    *response->mutable_dphi_q() = forward.low_rank().phi_q();
    *response->mutable_dphi_k() = forward.low_rank().phi_k();
  }
  response->mutable_timing()->set_batch_requests(3);
  response->mutable_timing()->set_tiles_computed(7);
  return grpc::Status::OK;
}

inline Sequence SequenceOf(const v1::AttendRequest& request) {
  const int64_t q_len = request.q().shape(0);
  const int64_t kv_len = request.k().shape(0);
  return {.q_len = q_len, .kv_len = kv_len, .query_start = kv_len - q_len};
}

// Of a request of one sequence with ALiBi slopes or none; refers to both.
inline AttentionProblem ProblemOf(const v1::AttendRequest& request, const Sequence& sequence) {
  AttentionProblem problem;
  problem.dtype = request.q().dtype() == v1::DTYPE_FLOAT16    ? DType::kFloat16
                  : request.q().dtype() == v1::DTYPE_BFLOAT16 ? DType::kBFloat16
                                                              : DType::kFloat32;
  problem.total_q = sequence.q_len;
  problem.total_kv = sequence.kv_len;
  problem.num_q_heads = static_cast<int>(request.q().shape(1));
  problem.num_kv_heads = static_cast<int>(request.k().shape(1));
  problem.head_dim = static_cast<int>(request.q().shape(2));
  problem.q = request.q().data().data();
  problem.k = request.k().data().data();
  problem.v = request.v().data().data();
  problem.sequences = absl::MakeConstSpan(&sequence, 1);
  problem.mask.causal = request.mask() == v1::MASK_CAUSAL;
  problem.softmax_scale = request.has_softmax_scale()
                              ? request.softmax_scale()
                              : static_cast<float>(1.0 / std::sqrt(problem.head_dim));
  if (request.has_alibi()) {
    problem.bias_kind = BiasKind::kAlibi;
    problem.alibi.slopes = reinterpret_cast<const float*>(request.alibi().slopes().data().data());
  }
  return problem;
}

// The right answer to such a request, head by head.
inline grpc::Status TrueAnswer(const v1::AttendRequest& request, v1::AttendResponse* response) {
  Echo(request, response);
  const Sequence sequence = SequenceOf(request);
  const AttentionProblem problem = ProblemOf(request, sequence);
  for (int64_t row = 0; row < problem.total_q; ++row) {
    for (int head = 0; head < problem.num_q_heads; ++head) {
      const ReferenceRow reference = ReferenceAttentionRow(problem, 0, row, head);
      const int64_t index = row * problem.num_q_heads + head;
      for (int d = 0; d < problem.head_dim; ++d) {
        StoreElement(problem.dtype, response->mutable_o()->mutable_data()->data(),
                     index * problem.head_dim + d, static_cast<float>(reference.o[d]));
      }
      if (request.want_lse()) {
        StoreElement(DType::kFloat32, response->mutable_lse()->mutable_data()->data(), index,
                     static_cast<float>(reference.lse));
      }
    }
  }
  return grpc::Status::OK;
}

// The right gradients, but for those of the slopes.
inline grpc::Status TrueGradients(const v1::AttendBackwardRequest& request,
                                  v1::AttendBackwardResponse* response) {
  Echo(request, response);
  const Sequence sequence = SequenceOf(request.forward());
  AttentionProblem problem = ProblemOf(request.forward(), sequence);
  problem.direction = Direction::kBackward;
  problem.gradients.d_o = request.d_o().data().data();
  const ReferenceGradients gradients = ComputeReferenceGradients(problem);
  const auto store = [&](const std::vector<double>& values, v1::Tensor* to) {
    for (size_t n = 0; n < values.size(); ++n) {
      StoreElement(problem.dtype, to->mutable_data()->data(), static_cast<int64_t>(n),
                   static_cast<float>(values[n]));
    }
  };
  store(gradients.dq, response->mutable_dq());
  store(gradients.dk, response->mutable_dk());
  store(gradients.dv, response->mutable_dv());
  return grpc::Status::OK;
}

}  // namespace flashbias::client

#endif  // FLASHBIAS_TESTS_CLIENT_FAKE_SERVER_H_

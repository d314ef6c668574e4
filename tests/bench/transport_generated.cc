#include <grpcpp/grpcpp.h>

#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flashbias/v1/attention.grpc.pb.h"
#include "tests/bench/transport_subject.h"

namespace flashbias::bench {
namespace {

class GeneratedService final : public v1::AttentionService::CallbackService {
 public:
  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* context,
                                   const v1::AttendRequest* request,
                                   v1::AttendResponse* response) override {
    v1::Tensor* const o = response->mutable_o();
    o->set_dtype(request->q().dtype());
    *o->mutable_shape() = request->q().shape();
    o->set_data(request->q().data());
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

class GeneratedSubject final : public TransportSubject {
 public:
  explicit GeneratedSubject(const TransportSetup& setup) : setup_(setup) {
    const auto bytes = static_cast<size_t>(setup.tokens * kTensorBytesPerToken);
    for (std::string* tensor : {&q_, &k_, &v_}) tensor->assign(bytes, 'x');
  }
  ~GeneratedSubject() override {
    if (server_ != nullptr) server_->Shutdown();
  }

  absl::Status Start() {
    constexpr int kNoLimit = std::numeric_limits<int>::max();
    int port = 0;
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(kNoLimit);
    builder.AddListeningPort(
        setup_.unix_path.empty() ? "127.0.0.1:0" : absl::StrCat("unix:", setup_.unix_path),
        grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return absl::UnavailableError("the generated server does not start");
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kNoLimit);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const std::string target = setup_.unix_path.empty() ? absl::StrCat("127.0.0.1:", port)
                                                        : absl::StrCat("unix:", setup_.unix_path);
    for (int n = 0; n < setup_.connections; ++n) {
      stubs_.push_back(v1::AttentionService::NewStub(
          grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments)));
    }
    return absl::OkStatus();
  }

  absl::Status Call(int lane, std::optional<ServerTime>* /*time*/) override {
    v1::AttendRequest request;
    request.set_mask(v1::MASK_CAUSAL);
    Fill(q_, request.mutable_q());
    Fill(k_, request.mutable_k());
    Fill(v_, request.mutable_v());
    v1::AttendResponse response;
    grpc::ClientContext context;
    const grpc::Status status =
        stubs_[static_cast<size_t>(lane) % stubs_.size()]->Attend(&context, request, &response);
    if (!status.ok()) return absl::UnavailableError(status.error_message());
    return response.o().data().size() == q_.size() ? absl::OkStatus()
                                                   : absl::InternalError("o has another size");
  }

 private:
  void Fill(const std::string& data, v1::Tensor* tensor) const {
    tensor->set_dtype(v1::DTYPE_FLOAT16);
    for (const int64_t extent : {setup_.tokens, kHeads, kHeadDim}) tensor->add_shape(extent);
    tensor->set_data(data);
  }

  const TransportSetup setup_;
  std::string q_, k_, v_;
  GeneratedService service_;
  std::unique_ptr<grpc::Server> server_;
  std::vector<std::unique_ptr<v1::AttentionService::Stub>> stubs_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TransportSubject>> MakeGeneratedSubject(
    const TransportSetup& setup) {
  auto subject = std::make_unique<GeneratedSubject>(setup);
  if (absl::Status status = subject->Start(); !status.ok()) return status;
  return subject;
}

}  // namespace flashbias::bench

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "flashbias/v1/attention.grpc.pb.h"
#include "tests/bench/transport_subject.h"
#include "wire/transport_options.h"

namespace flashbias::bench {
namespace {

// Copies all slices of `message` to `to`; returns how many bytes.
size_t GatherAll(const grpc::ByteBuffer& message, char* to) {
  std::vector<grpc::Slice> slices;
  if (!message.Dump(&slices).ok()) return 0;
  size_t bytes = 0;
  for (const grpc::Slice& slice : slices) {
    std::memcpy(to + bytes, slice.begin(), slice.size());
    bytes += slice.size();
  }
  return bytes;
}

class EchoService final
    : public v1::AttentionService::WithRawCallbackMethod_Attend<v1::AttentionService::Service> {
 public:
  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* request,
                                   grpc::ByteBuffer* response) override {
    const size_t bytes = request->Length();
    auto* const staging = new std::vector<char>();
    staging->reserve(bytes);  // not filled
    GatherAll(*request, staging->data());
    const_cast<grpc::ByteBuffer*>(request)->Clear();
    const grpc::Slice answer(
        staging->data(), bytes / 3,
        [](void* held) { delete static_cast<std::vector<char>*>(held); }, staging);
    *response = grpc::ByteBuffer(&answer, 1);
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

class EchoSubject final : public TransportSubject {
 public:
  explicit EchoSubject(const TransportSetup& setup) : setup_(setup) {
    const auto bytes = static_cast<size_t>(setup.tokens * kTensorBytesPerToken);
    tensors_.assign(3, std::vector<char>(bytes));
    for (size_t n = 0; n < 3; ++n)
      FillWithValues(static_cast<uint32_t>(n), absl::MakeSpan(tensors_[n]));
    o_.assign(static_cast<size_t>(setup.lanes), std::vector<char>(bytes));
  }
  ~EchoSubject() override {
    stubs_.clear();
    if (server_ != nullptr) server_->Shutdown();
  }

  // With `external`, another server's host:port, no server of its own.
  absl::Status Start(const std::string& external) {
    constexpr int kNoLimit = std::numeric_limits<int>::max();
    int port = 0;
    grpc::ServerBuilder builder;
    grpc::ChannelArguments arguments;
    const auto set = [&](const std::string& name, int value) {
      builder.AddChannelArgument(name, value);
      arguments.SetInt(name, value);
    };
    for (const wire::ChannelArgument& argument : wire::kTransportArguments) {
      set(argument.name, argument.value);
    }
    for (const auto& [name, value] : setup_.channel_arguments) set(name, value);
    builder.SetMaxReceiveMessageSize(kNoLimit);
    if (external.empty()) {
      builder.AddListeningPort(
          setup_.unix_path.empty() ? "127.0.0.1:0" : absl::StrCat("unix:", setup_.unix_path),
          grpc::InsecureServerCredentials(), &port);
      builder.RegisterService(&service_);
      server_ = builder.BuildAndStart();
      if (server_ == nullptr) return absl::UnavailableError("the echo server does not start");
    }
    arguments.SetMaxReceiveMessageSize(kNoLimit);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    std::string target = external;
    if (external.empty()) {
      target = setup_.unix_path.empty() ? absl::StrCat("127.0.0.1:", port)
                                        : absl::StrCat("unix:", setup_.unix_path);
    }
    for (int n = 0; n < setup_.connections; ++n) {
      stubs_.push_back(std::make_unique<grpc::GenericStub>(
          grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments)));
    }
    return absl::OkStatus();
  }

  absl::Status Call(int lane, std::optional<ServerTime>* /*time*/) override {
    std::vector<grpc::Slice> slices;
    for (const std::vector<char>& tensor : tensors_) {
      slices.emplace_back(tensor.data(), tensor.size(), grpc::Slice::STATIC_SLICE);
    }
    const grpc::ByteBuffer request(slices.data(), slices.size());
    grpc::ByteBuffer response;
    grpc::ClientContext context;
    grpc::Status status;
    absl::Notification done;
    stubs_[static_cast<size_t>(lane) % stubs_.size()]->UnaryCall(
        &context, "/flashbias.v1.AttentionService/Attend", grpc::StubOptions(), &request, &response,
        [&](grpc::Status result) {
          status = std::move(result);
          done.Notify();
        });
    done.WaitForNotification();
    if (!status.ok()) return absl::UnavailableError(status.error_message());
    std::vector<char>& o = o_[static_cast<size_t>(lane)];
    if (response.Length() != o.size()) return absl::InternalError("o has another size");
    GatherAll(response, o.data());
    return absl::OkStatus();
  }

 private:
  const TransportSetup setup_;
  std::vector<std::vector<char>> tensors_;
  std::vector<std::vector<char>> o_;
  EchoService service_;
  std::unique_ptr<grpc::Server> server_;
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TransportSubject>> MakeEchoSubject(const TransportSetup& setup) {
  auto subject = std::make_unique<EchoSubject>(setup);
  if (absl::Status status = subject->Start(""); !status.ok()) return status;
  return subject;
}

absl::StatusOr<std::unique_ptr<TransportSubject>> MakePythonSubject(const TransportSetup& setup) {
  if (setup.python_target.empty()) {
    return absl::InvalidArgumentError("python_target is empty; accepted: host:port");
  }
  auto subject = std::make_unique<EchoSubject>(setup);
  if (absl::Status status = subject->Start(setup.python_target); !status.ok()) return status;
  return subject;
}

void FillWithValues(uint32_t seed, absl::Span<char> tensor) {
  uint32_t state = 2654435761U * (seed + 1);
  for (size_t at = 0; at + 1 < tensor.size(); at += 2) {
    state = state * 1664525U + 1013904223U;
    const auto bits = static_cast<uint16_t>((state >> 16 & 0x83ff) | 0x3800);
    std::memcpy(tensor.data() + at, &bits, sizeof(bits));
  }
}

}  // namespace flashbias::bench

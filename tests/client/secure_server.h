// A gRPC server in this process with any credentials, that remembers what the "authorization" of
// each call was. The first call of each method is UNAVAILABLE.
#ifndef FLASHBIAS_TESTS_CLIENT_SECURE_SERVER_H_
#define FLASHBIAS_TESTS_CLIENT_SECURE_SERVER_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "flashbias/v1/attention.grpc.pb.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "tests/client/fake_server.h"

namespace flashbias::client {

class SecureServer final : public v1::AttentionService::Service {
 public:
  explicit SecureServer(const std::shared_ptr<grpc::ServerCredentials>& credentials,
                        const std::string& address = "127.0.0.1:0") {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, credentials, &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~SecureServer() override {
    server_->Shutdown(absl::ToChronoTime(absl::Now() + absl::Seconds(1)));
  }

  int port() const { return port_; }

  // Of one method's calls, joined where a call had several; "": it had none.
  std::vector<std::string> authorizations(const std::string& method) {
    absl::MutexLock lock(&mutex_);
    return authorizations_[method];
  }

  grpc::Status GetServerInfo(grpc::ServerContext* context, const v1::GetServerInfoRequest*,
                             v1::GetServerInfoResponse*) override {
    return Remember("GetServerInfo", *context);
  }
  grpc::Status Attend(grpc::ServerContext* context, const v1::AttendRequest* request,
                      v1::AttendResponse* response) override {
    Echo(*request, response);
    return Remember("Attend", *context);
  }
  grpc::Status AttendBackward(grpc::ServerContext* context,
                              const v1::AttendBackwardRequest* request,
                              v1::AttendBackwardResponse* response) override {
    Echo(*request, response);
    return Remember("AttendBackward", *context);
  }
  // Streams end without an answer, which the client finds out.
  grpc::Status AttendStream(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::AttendStreamResponse, v1::AttendStreamRequest>*) override {
    return Remember("AttendStream", *context);
  }
  grpc::Status AttendBackwardStream(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::AttendBackwardStreamResponse, v1::AttendBackwardStreamRequest>*)
      override {
    return Remember("AttendBackwardStream", *context);
  }

 private:
  grpc::Status Remember(const std::string& method, const grpc::ServerContext& context) {
    std::string value;
    const auto [first, last] = context.client_metadata().equal_range("authorization");
    for (auto it = first; it != last; ++it) {
      absl::StrAppend(&value, it == first ? "" : "|",
                      absl::string_view(it->second.data(), it->second.size()));
    }
    absl::MutexLock lock(&mutex_);
    std::vector<std::string>& values = authorizations_[method];
    values.push_back(value);
    return values.size() > 1 ? grpc::Status::OK
                             : grpc::Status(grpc::StatusCode::UNAVAILABLE, "come again");
  }

  int port_ = 0;
  absl::Mutex mutex_;
  std::map<std::string, std::vector<std::string>> authorizations_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace flashbias::client

#endif  // FLASHBIAS_TESTS_CLIENT_SECURE_SERVER_H_

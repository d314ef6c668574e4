// AttentionService over gRPC: bytes in, scheduler, bytes out.
//
// Every call is answered exactly once: with its outcome, or, when the caller goes away or its
// deadline passes, at once (a callback call that is never finished would keep the gRPC server from
// shutting down). The backend never writes to memory of a call: it writes to the PendingRequest's,
// so a result that comes after the answer is harmless.
//
// Thread-safety: methods are called by gRPC's threads. The scheduler and the metrics must outlive
// the service, and the service every call (WaitUntilIdle).
#ifndef FLASHBIAS_SERVER_SERVICE_H_
#define FLASHBIAS_SERVER_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "flashbias/v1/attention.grpc.pb.h"
#include "kernels/attention_backend.h"
#include "kernels/host_memory.h"
#include "server/attend_stream.h"
#include "server/attend_validation.h"
#include "server/clock.h"
#include "server/dispatcher.h"
#include "server/metrics.h"
#include "server/mutex.h"
#include "server/options.h"
#include "server/region_registry.h"
#include "server/scheduler.h"
#include "wire/copy_pool.h"

namespace flashbias::server {

// The methods with tensors as bytes, the others as messages.
using RawAttentionService = v1::AttentionService::WithRawCallbackMethod_AttendBackwardStream<
    v1::AttentionService::WithRawCallbackMethod_AttendBackward<
        v1::AttentionService::WithRawCallbackMethod_AttendStream<
            v1::AttentionService::WithRawCallbackMethod_Attend<
                v1::AttentionService::WithCallbackMethod_GetServerInfo<
                    v1::AttentionService::Service>>>>>;

class Service final : public RawAttentionService {
 public:
  // Requests and results lie in memory of `host_allocator`, which must outlive the service and all
  // that it answered. `regions`, null or with the service's life, is where calls over the unix
  // socket may have theirs.
  Service(const ServerOptions& options, const BackendInfo& backend, HostAllocator* host_allocator,
          const Clock* clock, Scheduler* scheduler, const Dispatcher* dispatcher, Metrics* metrics,
          const RegionRegistry* regions);

  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* request,
                                   grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* AttendStream(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* AttendBackward(grpc::CallbackServerContext* context,
                                           const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* AttendBackwardStream(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* request,
                                          v1::GetServerInfoResponse* response) override;

  // Once the scheduler drains: ends the streams whose data still arrives, which it would refuse.
  void RefuseStreams() { streams_->RefuseIncomplete(); }

  // Whether by `deadline` gRPC is done with every call that has tensors: its answer is on the wire.
  bool WaitUntilIdle(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  class AttendCall;

  grpc::ServerUnaryReactor* BeginCall(Direction direction, grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* request, grpc::ByteBuffer* response);

  void CallBegins() ABSL_LOCKS_EXCLUDED(mutex_);
  void CallEnds() ABSL_LOCKS_EXCLUDED(mutex_);
  bool IdleLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return calls_ == 0; }

  // Constant after construction.
  const BackendInfo backend_;
  AttendLimits limits_;
  v1::GetServerInfoResponse info_;
  HostAllocator* const host_allocator_;
  const Clock* const clock_;
  Scheduler* const scheduler_;
  Metrics* const metrics_;
  const RegionRegistry* const regions_;
  wire::CopyPool copy_pool_;
  std::unique_ptr<AttendStreams> streams_;

  Mutex mutex_;
  int64_t calls_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_SERVICE_H_

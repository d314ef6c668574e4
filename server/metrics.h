// Everything the server counts, in Prometheus' terms (server/README.md lists the names).
//
// Thread-safety: all methods from any thread. All children exist from the start, so that a series
// begins at zero and recording never looks a label up.
#ifndef FLASHBIAS_SERVER_METRICS_H_
#define FLASHBIAS_SERVER_METRICS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/attention_backend.h"
#include "server/region_registry.h"

namespace prometheus {
class Collectable;
}

namespace flashbias::server {

enum class Method {
  kAttend,
  kAttendStream,
  kAttendBackward,
  kAttendBackwardStream,
  kGetServerInfo
};
// What a call came over.
enum class Transport { kTcp, kUnix };
// kUpload, kKernel and kDownload are parts of kCompute.
enum class Stage { kReceive, kQueue, kCompute, kUpload, kKernel, kDownload, kSend };
// kMemory: the answer would exceed the message limit, the request the memory of a device, or host
// memory is full.
enum class RejectReason { kQueue, kDeadline, kInvalid, kDraining, kMemory };
// kReceiving: before the whole message or stream had come. kSending: a stream's answer.
enum class CancelWhere { kReceiving, kQueue, kRunning, kSending };

// One device as a scrape finds it.
struct DeviceReading {
  std::string label;
  bool healthy = true;
  BackendUsage usage;
};

// What gauges are held against. Limits of devices come with their readings.
struct Limits {
  int64_t queue_requests = 0;
  int64_t queue_bytes = 0;
  int64_t stream_bytes = 0;
  int64_t message_bytes = 0;
  int64_t regions = 0;  // 0, as the next: regions are off
  int64_t region_bytes = 0;
};

class Metrics {
 public:
  // All devices; pinned and registered memory is that of the first, because they share it.
  using ReadDevices = std::function<std::vector<DeviceReading>()>;

  // Labels of build_info.
  Metrics(const std::string& version, const std::string& backend);
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;
  ~Metrics();

  // A call has begun, and has been answered (with `code`, `duration` after it began).
  void CallStarted();
  void CallFinished(Method method, Transport transport, absl::StatusCode code,
                    absl::Duration duration);

  void StageFinished(Stage stage, absl::Duration duration);
  void BatchStarted(int64_t requests, int64_t work, int64_t tokens);
  void Rejected(RejectReason reason);
  void Cancelled(CancelWhere where);
  void SetQueue(int64_t requests, int64_t bytes);
  void SetLimits(const Limits& limits);
  void TilesFinished(int64_t computed, int64_t skipped);
  // The message of a call, or all messages of a streamed one.
  void ReceivedMessage(int64_t bytes);
  void SentMessage(int64_t bytes);

  // From now on `read` is asked at every scrape, on its thread. Call it once, before the first one;
  // what it uses must live until the last one.
  void WatchDevices(ReadDevices read);
  // The same for regions; without it there are none. `read` lives as long as the metrics.
  void WatchRegions(std::function<RegionUsage()> read);
  // The same for the bytes of host memory that streams have reserved.
  void WatchStreams(std::function<int64_t()> read);

  // The text exposition format.
  std::string Serialize() const;
  // For the scrape endpoint.
  std::shared_ptr<prometheus::Collectable> collectable() const;

 private:
  struct Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace flashbias::server

#endif  // FLASHBIAS_SERVER_METRICS_H_

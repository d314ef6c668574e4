#include "server/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace flashbias::server {
namespace {

constexpr std::array kMethods = {"Attend", "AttendStream", "AttendBackward", "AttendBackwardStream",
                                 "GetServerInfo"};
constexpr std::array kStages = {"receive", "queue",    "compute", "upload",
                                "kernel",  "download", "send"};
constexpr std::array kReasons = {"queue", "deadline", "invalid", "draining", "memory"};
constexpr std::array kWheres = {"receiving", "queue", "running", "sending"};
constexpr std::array kTransports = {"tcp", "unix"};
constexpr int kStatusCodes = 17;  // OK to UNAUTHENTICATED

// 100 us to 60 s, 1.6x apart.
prometheus::Histogram::BucketBoundaries RequestSecondsBuckets() {
  prometheus::Histogram::BucketBoundaries bounds;
  for (int k = 0; k <= 28; ++k) bounds.push_back(100e-6 * std::pow(1.6, k));
  bounds.push_back(60);
  return bounds;
}

// 1 us to 60 s, 2.5x apart: a stage may take microseconds.
prometheus::Histogram::BucketBoundaries StageSecondsBuckets() {
  prometheus::Histogram::BucketBoundaries bounds;
  for (int k = 0; k <= 19; ++k) bounds.push_back(1e-6 * std::pow(2.5, k));
  bounds.push_back(60);
  return bounds;
}

// first, first * factor, ..., `count` bounds.
prometheus::Histogram::BucketBoundaries PowerBuckets(double first, double factor, int count) {
  prometheus::Histogram::BucketBoundaries bounds;
  for (int n = 0; n < count; ++n, first *= factor) bounds.push_back(first);
  return bounds;
}

template <typename Enum>
size_t Index(Enum value) {
  return static_cast<size_t>(value);
}

// What devices hold and have met, read anew at every scrape.
class DeviceMetrics {
 public:
  DeviceMetrics(Metrics::ReadDevices read, prometheus::Registry& registry)
      : read_(std::move(read)),
        healthy_(Gauge(registry, "device_healthy", "Whether the device computes: 1, or 0.")),
        memory_used_(Gauge(registry, "device_memory_used_bytes",
                           "Device memory that batches in flight and arriving streams hold.")),
        memory_size_(Gauge(registry, "device_memory_size_bytes",
                           "Device memory taken from the device, used or not.")),
        memory_limit_(Gauge(registry, "device_memory_limit_bytes",
                            "What device_memory_size_bytes may reach; 0: no such memory.")),
        pinned_used_(Gauge(registry, "pinned_pool_used_bytes",
                           "Pinned host memory that requests, results and batches hold.")
                         .Add({})),
        pinned_size_(Gauge(registry, "pinned_pool_size_bytes",
                           "Pinned host memory taken from the system, used or not.")
                         .Add({})),
        pinned_limit_(Gauge(registry, "pinned_pool_limit_bytes",
                            "What pinned_pool_size_bytes may reach; 0: no such memory.")
                          .Add({})),
        registered_(Gauge(registry, "registered_bytes",
                          "Memory shared with callers that is registered with the devices.")
                        .Add({})),
        errors_(prometheus::BuildCounter()
                    .Name("flashbias_cuda_errors_total")
                    .Help("Errors of CUDA calls, by their name; a series begins with its first.")
                    .Register(registry)) {
    Refresh();
  }

  void Refresh() {
    const std::vector<DeviceReading> devices = read_();
    const std::lock_guard<std::mutex> lock(mutex_);  // scrapes may overlap
    std::map<std::string, double> errors;
    for (const DeviceReading& device : devices) {
      const prometheus::Labels labels = {{"device", device.label}};
      healthy_.Add(labels).Set(device.healthy ? 1 : 0);
      memory_used_.Add(labels).Set(static_cast<double>(device.usage.device_memory_used_bytes));
      memory_size_.Add(labels).Set(static_cast<double>(device.usage.device_memory_size_bytes));
      memory_limit_.Add(labels).Set(static_cast<double>(device.usage.device_memory_limit_bytes));
      for (const auto& [code, count] : device.usage.errors) {
        errors[code] += static_cast<double>(count);
      }
    }
    if (!devices.empty()) {
      pinned_used_.Set(static_cast<double>(devices[0].usage.pinned_used_bytes));
      pinned_size_.Set(static_cast<double>(devices[0].usage.pinned_size_bytes));
      pinned_limit_.Set(static_cast<double>(devices[0].usage.pinned_limit_bytes));
      registered_.Set(static_cast<double>(devices[0].usage.registered_bytes));
    }
    for (const auto& [code, count] : errors) {
      prometheus::Counter& counter = errors_.Add({{"code", code}});
      counter.Increment(count - counter.Value());
    }
  }

 private:
  using GaugeFamily = prometheus::Family<prometheus::Gauge>;

  static GaugeFamily& Gauge(prometheus::Registry& registry, const std::string& name,
                            const std::string& help) {
    return prometheus::BuildGauge().Name("flashbias_" + name).Help(help).Register(registry);
  }

  const Metrics::ReadDevices read_;
  std::mutex mutex_;
  GaugeFamily& healthy_;
  GaugeFamily& memory_used_;
  GaugeFamily& memory_size_;
  GaugeFamily& memory_limit_;
  prometheus::Gauge& pinned_used_;
  prometheus::Gauge& pinned_size_;
  prometheus::Gauge& pinned_limit_;
  prometheus::Gauge& registered_;
  prometheus::Family<prometheus::Counter>& errors_;
};

// What a scrape gets: the registry, once the devices were asked.
class Source final : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    if (devices_ != nullptr) devices_->Refresh();
    if (read_regions_ != nullptr) {
      const RegionUsage usage = read_regions_();
      regions_.Set(static_cast<double>(usage.regions));
      region_bytes_.Set(static_cast<double>(usage.bytes));
      unregistered_.Set(static_cast<double>(usage.unregistered));
      device_regions_.Set(static_cast<double>(usage.device_regions));
      device_region_bytes_.Set(static_cast<double>(usage.device_bytes));
    }
    if (read_streams_ != nullptr) stream_bytes_.Set(static_cast<double>(read_streams_()));
    return registry_->Collect();
  }
  prometheus::Registry& registry() { return *registry_; }
  void WatchDevices(Metrics::ReadDevices read) {
    devices_ = std::make_unique<DeviceMetrics>(std::move(read), *registry_);
  }
  void WatchRegions(std::function<RegionUsage()> read) { read_regions_ = std::move(read); }
  void WatchStreams(std::function<int64_t()> read) { read_streams_ = std::move(read); }

 private:
  prometheus::Gauge& Gauge(const std::string& name, const std::string& help) {
    return prometheus::BuildGauge()
        .Name("flashbias_" + name)
        .Help(help)
        .Register(*registry_)
        .Add({});
  }

  const std::unique_ptr<prometheus::Registry> registry_ = std::make_unique<prometheus::Registry>();
  std::unique_ptr<DeviceMetrics> devices_;
  std::function<RegionUsage()> read_regions_;
  prometheus::Gauge& regions_ = Gauge(
      "shm_regions", "Regions of memory shared with callers, withdrawn ones in use included.");
  prometheus::Gauge& region_bytes_ = Gauge("shm_region_bytes", "Memory of these regions.");
  prometheus::Gauge& unregistered_ =
      Gauge("shm_unregistered_regions",
            "Regions that could not be registered with the devices: used through a copy.");
  prometheus::Gauge& device_regions_ =
      Gauge("device_regions",
            "Regions of callers' device memory that are open, withdrawn ones in use included.");
  prometheus::Gauge& device_region_bytes_ =
      Gauge("device_region_bytes", "Memory of these regions.");
  std::function<int64_t()> read_streams_;
  prometheus::Gauge& stream_bytes_ =
      Gauge("stream_reserved_bytes",
            "Host memory that streams have reserved, until their answers have left.");
};

}  // namespace

struct Metrics::Impl {
  const std::shared_ptr<Source> source = std::make_shared<Source>();
  prometheus::Registry* const registry = &source->registry();

  // Of one method over one transport.
  struct Calls {
    std::array<prometheus::Counter*, kStatusCodes> requests;
    prometheus::Histogram* duration;
  };
  std::array<std::array<Calls, kTransports.size()>, kMethods.size()> calls;
  std::array<prometheus::Histogram*, kStages.size()> stage_duration;
  prometheus::Histogram* batch_requests;
  prometheus::Histogram* batch_work;
  prometheus::Histogram* batch_tokens;
  prometheus::Histogram* request_bytes;
  prometheus::Histogram* response_bytes;
  std::array<prometheus::Counter*, kReasons.size()> rejected;
  std::array<prometheus::Counter*, kWheres.size()> cancelled;
  prometheus::Gauge* queue_requests;
  prometheus::Gauge* queue_bytes;
  prometheus::Gauge* inflight_requests;
  prometheus::Gauge* queue_limit_requests;
  prometheus::Gauge* queue_limit_bytes;
  prometheus::Gauge* stream_limit_bytes;
  prometheus::Gauge* message_limit_bytes;
  prometheus::Gauge* region_limit;
  prometheus::Gauge* region_limit_bytes;
  prometheus::Counter* tiles_computed;
  prometheus::Counter* tiles_skipped;
  prometheus::Counter* received_bytes;
  prometheus::Counter* sent_bytes;

  prometheus::Family<prometheus::Counter>& CounterFamily(const std::string& name,
                                                         const std::string& help) {
    return prometheus::BuildCounter().Name("flashbias_" + name).Help(help).Register(*registry);
  }
  prometheus::Family<prometheus::Histogram>& HistogramFamily(const std::string& name,
                                                             const std::string& help) {
    return prometheus::BuildHistogram().Name("flashbias_" + name).Help(help).Register(*registry);
  }
  prometheus::Gauge* AddGauge(const std::string& name, const std::string& help) {
    return &prometheus::BuildGauge()
                .Name("flashbias_" + name)
                .Help(help)
                .Register(*registry)
                .Add({});
  }
};

Metrics::Metrics(const std::string& version, const std::string& backend)
    : impl_(std::make_unique<Impl>()) {
  Impl& m = *impl_;

  auto& requests =
      m.CounterFamily("requests_total", "Calls answered, by method, transport and status code.");
  auto& request_duration = m.HistogramFamily("request_duration_seconds",
                                             "From the arrival of a call's message to its answer.");
  for (size_t method = 0; method < kMethods.size(); ++method) {
    for (size_t transport = 0; transport < kTransports.size(); ++transport) {
      const prometheus::Labels labels = {{"method", kMethods[method]},
                                         {"transport", kTransports[transport]}};
      Impl::Calls& calls = m.calls[method][transport];
      for (int code = 0; code < kStatusCodes; ++code) {
        prometheus::Labels with_code = labels;
        with_code["code"] = absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
        calls.requests[static_cast<size_t>(code)] = &requests.Add(with_code);
      }
      calls.duration = &request_duration.Add(labels, RequestSecondsBuckets());
    }
  }
  auto& stages =
      m.HistogramFamily("stage_duration_seconds", "Time that answered calls spent in each stage.");
  for (size_t stage = 0; stage < kStages.size(); ++stage) {
    m.stage_duration[stage] = &stages.Add({{"stage", kStages[stage]}}, StageSecondsBuckets());
  }

  m.batch_requests =
      &m.HistogramFamily("batch_requests", "Requests in a batch.").Add({}, PowerBuckets(1, 2, 11));
  m.batch_work = &m.HistogramFamily("batch_work", "Estimated score elements in a batch.")
                      .Add({}, PowerBuckets(1024, 4, 16));
  m.batch_tokens =
      &m.HistogramFamily("batch_tokens", "Query rows in a batch.").Add({}, PowerBuckets(1, 4, 14));
  m.request_bytes = &m.HistogramFamily("request_bytes", "Size of request messages.")
                         .Add({}, PowerBuckets(256, 4, 13));
  m.response_bytes = &m.HistogramFamily("response_bytes", "Size of response messages.")
                          .Add({}, PowerBuckets(256, 4, 13));

  auto& rejected = m.CounterFamily(
      "rejected_total", "Requests refused, or dropped from the queue by their deadline.");
  for (size_t reason = 0; reason < kReasons.size(); ++reason) {
    m.rejected[reason] = &rejected.Add({{"reason", kReasons[reason]}});
  }
  auto& cancelled =
      m.CounterFamily("cancelled_total", "Requests that were cancelled, by where they were.");
  for (size_t where = 0; where < kWheres.size(); ++where) {
    m.cancelled[where] = &cancelled.Add({{"where", kWheres[where]}});
  }

  m.queue_requests = m.AddGauge("queue_requests", "Requests that wait for a batch.");
  m.queue_bytes = m.AddGauge("queue_bytes", "Memory that waiting requests hold.");
  m.inflight_requests = m.AddGauge("inflight_requests", "Calls that have no answer yet.");
  m.queue_limit_requests =
      m.AddGauge("queue_limit_requests", "What queue_requests may reach: --max_queue_requests.");
  m.queue_limit_bytes =
      m.AddGauge("queue_limit_bytes", "What queue_bytes may reach: --max_queue_bytes.");
  m.stream_limit_bytes =
      m.AddGauge("stream_limit_bytes", "What stream_reserved_bytes may reach: --max_stream_bytes.");
  m.message_limit_bytes =
      m.AddGauge("message_limit_bytes", "Of one request or response message: --max_message_bytes.");
  m.region_limit = m.AddGauge("region_limit",
                              "What shm_regions and device_regions together may reach: "
                              "--max_regions; 0: there are no regions.");
  m.region_limit_bytes = m.AddGauge("shm_region_limit_bytes",
                                    "What shm_region_bytes may reach: --max_region_bytes; 0: there "
                                    "are no regions.");

  m.tiles_computed =
      &m.CounterFamily("tiles_computed_total", "(head, query tile, key tile) triples computed.")
           .Add({});
  m.tiles_skipped = &m.CounterFamily("tiles_skipped_total",
                                     "Triples that the mask admits and the eps bound left out.")
                         .Add({});
  m.received_bytes = &m.CounterFamily("received_bytes_total", "Bytes of request messages.").Add({});
  m.sent_bytes = &m.CounterFamily("sent_bytes_total", "Bytes of response messages.").Add({});

  prometheus::BuildGauge()
      .Name("flashbias_build_info")
      .Help("1; what runs is in the labels.")
      .Register(*m.registry)
      .Add({{"version", version}, {"backend", backend}})
      .Set(1);
}

Metrics::~Metrics() = default;

void Metrics::CallStarted() { impl_->inflight_requests->Increment(); }

void Metrics::CallFinished(Method method, Transport transport, absl::StatusCode code,
                           absl::Duration duration) {
  const int index = static_cast<int>(code);
  const bool known = index >= 0 && index < kStatusCodes;
  const Impl::Calls& calls = impl_->calls[Index(method)][Index(transport)];
  calls.requests[known ? index : static_cast<int>(absl::StatusCode::kUnknown)]->Increment();
  calls.duration->Observe(absl::ToDoubleSeconds(duration));
  impl_->inflight_requests->Decrement();
}

void Metrics::StageFinished(Stage stage, absl::Duration duration) {
  impl_->stage_duration[Index(stage)]->Observe(absl::ToDoubleSeconds(duration));
}

void Metrics::BatchStarted(int64_t requests, int64_t work, int64_t tokens) {
  impl_->batch_requests->Observe(static_cast<double>(requests));
  impl_->batch_work->Observe(static_cast<double>(work));
  impl_->batch_tokens->Observe(static_cast<double>(tokens));
}

void Metrics::Rejected(RejectReason reason) { impl_->rejected[Index(reason)]->Increment(); }

void Metrics::Cancelled(CancelWhere where) { impl_->cancelled[Index(where)]->Increment(); }

void Metrics::SetQueue(int64_t requests, int64_t bytes) {
  impl_->queue_requests->Set(static_cast<double>(requests));
  impl_->queue_bytes->Set(static_cast<double>(bytes));
}

void Metrics::SetLimits(const Limits& limits) {
  impl_->queue_limit_requests->Set(static_cast<double>(limits.queue_requests));
  impl_->queue_limit_bytes->Set(static_cast<double>(limits.queue_bytes));
  impl_->stream_limit_bytes->Set(static_cast<double>(limits.stream_bytes));
  impl_->message_limit_bytes->Set(static_cast<double>(limits.message_bytes));
  impl_->region_limit->Set(static_cast<double>(limits.regions));
  impl_->region_limit_bytes->Set(static_cast<double>(limits.region_bytes));
}

void Metrics::TilesFinished(int64_t computed, int64_t skipped) {
  impl_->tiles_computed->Increment(static_cast<double>(computed));
  impl_->tiles_skipped->Increment(static_cast<double>(skipped));
}

void Metrics::ReceivedMessage(int64_t bytes) {
  impl_->request_bytes->Observe(static_cast<double>(bytes));
  impl_->received_bytes->Increment(static_cast<double>(bytes));
}

void Metrics::SentMessage(int64_t bytes) {
  impl_->response_bytes->Observe(static_cast<double>(bytes));
  impl_->sent_bytes->Increment(static_cast<double>(bytes));
}

std::string Metrics::Serialize() const {
  return prometheus::TextSerializer().Serialize(impl_->source->Collect());
}

std::shared_ptr<prometheus::Collectable> Metrics::collectable() const { return impl_->source; }

void Metrics::WatchRegions(std::function<RegionUsage()> read) {
  impl_->source->WatchRegions(std::move(read));
}

void Metrics::WatchStreams(std::function<int64_t()> read) {
  impl_->source->WatchStreams(std::move(read));
}

void Metrics::WatchDevices(ReadDevices read) { impl_->source->WatchDevices(std::move(read)); }

}  // namespace flashbias::server

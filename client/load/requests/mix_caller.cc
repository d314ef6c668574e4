#include "client/load/requests/mix_caller.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numbers>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "client/load/engine/pacing.h"
#include "client/load/requests/counter_random.h"
#include "client/load/requests/region_plan.h"

namespace flashbias::client {
namespace {

enum RandomStream : uint64_t { kPhase, kSampleDraw };

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

absl::Status NamingTarget(const absl::Status& status, absl::string_view target) {
  if (status.ok()) return status;
  return {status.code(), absl::StrCat(target, ": ", status.message())};
}

absl::Status CheckOptions(const MixCallerOptions& options, const Verifier* verifier) {
  if (options.clients.empty()) return Invalid("--target is empty; accepted: at least one server");
  if (options.slots < 1) return Invalid("slots is ", options.slots, "; accepted: at least 1");
  if (!(options.verify_share >= 0 && options.verify_share <= 1)) {
    return Invalid("--verify is ", options.verify_share, "; accepted: 0 to 1");
  }
  if (options.verify_share > 0 && verifier == nullptr) {
    return Invalid("--verify is ", options.verify_share, " without a verifier; accepted: 0");
  }
  if (options.timeout <= absl::ZeroDuration()) {
    return Invalid("--timeout is ", absl::FormatDuration(options.timeout),
                   "; accepted: positive durations");
  }
  if (options.transport != LoadTransport::kSharedMemory) return absl::OkStatus();
  for (const AttentionClient::Options& client : options.clients) {
    if (!absl::StartsWith(client.target, "unix:")) {
      return Invalid("--target is '", client.target,
                     "'; accepted with --transport=shared_memory: unix:PATH");
    }
  }
  return absl::OkStatus();
}

// Whether the server may be at work on the request still.
bool MayBeRunning(const absl::Status& status) {
  return absl::IsDeadlineExceeded(status) || absl::IsCancelled(status) ||
         absl::IsUnavailable(status) || absl::IsInternal(status) || absl::IsUnknown(status);
}

}  // namespace

std::string Name(LoadTransport transport) {
  switch (transport) {
    case LoadTransport::kInline:
      return "inline";
    case LoadTransport::kStream:
      return "stream";
    case LoadTransport::kSharedMemory:
      return "shared_memory";
  }
  return "";
}

class MixCaller::Impl {
 public:
  Impl(const MixCallerOptions& options, const RequestMix* mix, const Verifier* verifier)
      : options_(options),
        mix_(*mix),
        verifier_(verifier),
        phase_(RandomUnit(options.seed, RandomStream::kPhase, 0)) {
    if (options.transport == LoadTransport::kSharedMemory) plan_.emplace(*mix, options.slots);
  }

  ~Impl() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &Impl::Idle));
  }

  absl::Status Connect();
  // What backward calls of kBackward entries take.
  absl::Status MakeForwardCalls();

  int num_entries() const { return mix_.num_entries(); }
  int num_targets() const { return static_cast<int>(targets_.size()); }
  const std::vector<ServerInfo>& servers() const { return servers_; }

  void Start(int64_t index, int slot, DoneCallback done) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Target {
    std::string name;
    std::unique_ptr<AttentionClient> client;
    std::unique_ptr<SharedRegion> region;  // null: no shared memory
    // [slots] Those that a server may still write to.
    std::vector<std::atomic<bool>> retired;
  };

  // A forward answer, wherever it lies.
  struct ForwardAnswer {
    const void* o = nullptr;
    absl::Span<const float> lse = {};
  };

  // One request on its way.
  struct Request {
    int64_t index = 0;
    int slot = 0;
    bool placed = false;  // its results go to the slot's memory
    PlannedRequest plan;
    Target* target = nullptr;
    DoneCallback done;
    CallOutcome outcome;
    AttendResult forward;
    AttendGradients backward;
  };

  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return in_flight_ == 0; }

  absl::Status MakeRegion(Target* target);
  // Has the tensors of a request where the target's server sees them.
  void PlaceInputs(const Target& target, const PlannedRequest& plan, AttendRequest* request) const;
  ResultBuffers BuffersAt(const Target& target, const RegionPlan::Answer& at,
                          const PlannedRequest& plan) const;
  ResultBuffers ForwardBuffers(const Request& request) const;
  GradientBuffers BackwardBuffers(const Request& request) const;
  ForwardAnswer AnswerOf(const Request& request) const;

  void CallForward(std::unique_ptr<Request> request);
  void CallBackward(std::unique_ptr<Request> request);
  void Finish(std::unique_ptr<Request> request, absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  bool IsSampled(int64_t index) const;
  void Sample(Request* request) const;

  const MixCallerOptions options_;
  const RequestMix& mix_;
  const Verifier* const verifier_;
  const double phase_;  // of the sampling
  std::optional<RegionPlan> plan_;

  absl::Mutex mutex_;
  int64_t in_flight_ ABSL_GUARDED_BY(mutex_) = 0;

  // Constant once connected.
  std::vector<ServerInfo> servers_;
  std::vector<std::vector<AttendResult>> forward_answers_;  // [entries][forward_calls]
  // After the mutex, so that the clients go first: they wait for the ends of their callbacks.
  std::vector<std::unique_ptr<Target>> targets_;
};

absl::Status MixCaller::Impl::Connect() {
  for (AttentionClient::Options client : options_.clients) {
    auto target = std::make_unique<Target>();
    target->name = client.target;
    if (options_.transport == LoadTransport::kStream) client.stream_above_bytes = 0;
    absl::StatusOr<std::unique_ptr<AttentionClient>> made =
        AttentionClient::Create(std::move(client));
    if (!made.ok()) return NamingTarget(made.status(), target->name);
    target->client = *std::move(made);
    absl::StatusOr<ServerInfo> info = target->client->GetServerInfo({.timeout = options_.timeout});
    if (!info.ok()) return NamingTarget(info.status(), target->name);
    servers_.push_back(*std::move(info));
    if (plan_.has_value()) {
      if (auto s = MakeRegion(target.get()); !s.ok()) return NamingTarget(s, target->name);
    }
    targets_.push_back(std::move(target));
  }
  return absl::OkStatus();
}

absl::Status MixCaller::Impl::MakeRegion(Target* target) {
  absl::StatusOr<std::unique_ptr<SharedRegion>> region =
      target->client->CreateRegion(static_cast<size_t>(plan_->bytes()));
  if (!region.ok()) return region.status();
  target->region = *std::move(region);
  target->retired = std::vector<std::atomic<bool>>(options_.slots);
  char* const base = target->region->data();
  for (int entry = 0; entry < mix_.num_entries(); ++entry) {
    for (int n = 0; n < mix_.workload(entry).num_inputs(); ++n) {
      const Workload::Input& from = mix_.workload(entry).input(n);
      const RegionPlan::Input& to = plan_->input(entry, n);
      std::copy(from.q.begin(), from.q.end(), base + to.q);
      std::copy(from.k.begin(), from.k.end(), base + to.k);
      std::copy(from.v.begin(), from.v.end(), base + to.v);
      std::copy(from.d_o.begin(), from.d_o.end(), base + to.d_o);
    }
  }
  return absl::OkStatus();
}

absl::Status MixCaller::Impl::MakeForwardCalls() {
  forward_answers_.resize(mix_.num_entries());
  size_t turn = 0;
  for (int entry = 0; entry < mix_.num_entries(); ++entry) {
    const std::vector<PlannedRequest>& calls = mix_.forward_calls(entry);
    for (size_t n = 0; n < calls.size(); ++n) {
      const PlannedRequest& plan = calls[n];
      const Target& target = *targets_[turn++ % targets_.size()];
      AttendRequest request = mix_.workload(entry).request(plan.input, plan.q_len, plan.kv_len);
      PlaceInputs(target, plan, &request);
      CallOptions call{.timeout = options_.timeout};
      if (plan_.has_value()) {
        call.result = BuffersAt(target, plan_->forward(entry, static_cast<int>(n)), plan);
      }
      absl::StatusOr<AttendResult> result = target.client->Attend(request, call);
      if (!result.ok()) return NamingTarget(result.status(), target.name);
      forward_answers_[entry].push_back(*std::move(result));
      for (const std::unique_ptr<Target>& other : targets_) {
        if (!plan_.has_value() || other.get() == &target) continue;
        const ResultBuffers to =
            BuffersAt(*other, plan_->forward(entry, static_cast<int>(n)), plan);
        std::memcpy(to.o.data(), call.result.o.data(), to.o.size());
        std::copy(call.result.lse.begin(), call.result.lse.end(), to.lse.begin());
      }
    }
  }
  return absl::OkStatus();
}

void MixCaller::Impl::PlaceInputs(const Target& target, const PlannedRequest& plan,
                                  AttendRequest* request) const {
  if (target.region == nullptr) return;
  const RegionPlan::Input& at = plan_->input(plan.entry, plan.input);
  request->q.data = target.region->data() + at.q;
  request->k.data = target.region->data() + at.k;
  request->v.data = target.region->data() + at.v;
}

ResultBuffers MixCaller::Impl::BuffersAt(const Target& target, const RegionPlan::Answer& at,
                                         const PlannedRequest& plan) const {
  const WorkloadOptions& shape = mix_.workload(plan.entry).options();
  const auto rows = static_cast<size_t>(plan.q_len * shape.heads);
  char* const base = target.region->data();
  ResultBuffers buffers;
  buffers.o = {base + at.o, rows * static_cast<size_t>(shape.head_dim) * SizeOf(shape.dtype)};
  if (shape.want_lse) buffers.lse = {reinterpret_cast<float*>(base + at.lse), rows};
  return buffers;
}

ResultBuffers MixCaller::Impl::ForwardBuffers(const Request& request) const {
  if (!request.placed) return {};
  const RegionPlan::Results at = plan_->results(request.plan.entry, request.slot);
  return BuffersAt(*request.target, {.o = at.o, .lse = at.lse}, request.plan);
}

GradientBuffers MixCaller::Impl::BackwardBuffers(const Request& request) const {
  if (!request.placed) return {};
  const PlannedRequest& plan = request.plan;
  const RegionPlan::Results at = plan_->results(plan.entry, request.slot);
  const WorkloadOptions& shape = mix_.workload(plan.entry).options();
  const auto element = static_cast<int64_t>(SizeOf(shape.dtype));
  const auto q_bytes = static_cast<size_t>(plan.q_len * shape.heads * shape.head_dim * element);
  const auto kv_bytes =
      static_cast<size_t>(plan.kv_len * shape.kv_heads * shape.head_dim * element);
  char* const base = request.target->region->data();
  GradientBuffers buffers;
  buffers.dq = {base + at.dq, q_bytes};
  buffers.dk = {base + at.dk, kv_bytes};
  buffers.dv = {base + at.dv, kv_bytes};
  return buffers;
}

MixCaller::Impl::ForwardAnswer MixCaller::Impl::AnswerOf(const Request& request) const {
  const PlannedRequest& plan = request.plan;
  if (plan.forward >= 0 && request.target->region != nullptr) {
    const ResultBuffers prepared =
        BuffersAt(*request.target, plan_->forward(plan.entry, plan.forward), plan);
    return {.o = prepared.o.data(), .lse = prepared.lse};
  }
  if (plan.forward >= 0) {
    const AttendResult& prepared = forward_answers_[plan.entry][plan.forward];
    return {.o = prepared.o.data(), .lse = prepared.lse};
  }
  if (request.placed) {
    const ResultBuffers placed = ForwardBuffers(request);
    return {.o = placed.o.data(), .lse = placed.lse};
  }
  return {.o = request.forward.o.data(), .lse = request.forward.lse};
}

void MixCaller::Impl::Start(int64_t index, int slot, DoneCallback done) {
  {
    absl::MutexLock lock(&mutex_);
    ++in_flight_;
  }
  auto request = std::make_unique<Request>();
  request->index = index;
  request->slot = slot;
  request->plan = mix_.At(index);
  request->done = std::move(done);
  const int target = static_cast<int>(index % num_targets());
  request->target = targets_[target].get();
  request->outcome.entry = request->plan.entry;
  request->outcome.target = target;
  if (slot < 0 || slot >= options_.slots) {
    return Finish(std::move(request),
                  absl::InternalError(
                      absl::StrCat("slot is ", slot, "; accepted: 0 to ", options_.slots - 1)));
  }
  request->placed = plan_.has_value() && !request->target->retired[slot];
  if (mix_.workload(request->plan.entry).direction() == LoadDirection::kBackward) {
    CallBackward(std::move(request));
  } else {
    CallForward(std::move(request));
  }
}

void MixCaller::Impl::CallForward(std::unique_ptr<Request> request) {
  const PlannedRequest& plan = request->plan;
  const Target& target = *request->target;
  AttendRequest call = mix_.workload(plan.entry).request(plan.input, plan.q_len, plan.kv_len);
  PlaceInputs(target, plan, &call);
  const CallOptions options{.timeout = options_.timeout, .result = ForwardBuffers(*request)};
  target.client->AttendAsync(
      call, options,
      [this, request = std::move(request)](absl::StatusOr<AttendResult> result) mutable {
        if (!result.ok()) return Finish(std::move(request), result.status());
        request->forward = *std::move(result);
        request->outcome.stages.Add(request->forward.timing);
        if (mix_.workload(request->plan.entry).direction() == LoadDirection::kBoth) {
          CallBackward(std::move(request));
        } else {
          Finish(std::move(request), absl::OkStatus());
        }
      });
}

void MixCaller::Impl::CallBackward(std::unique_ptr<Request> request) {
  const PlannedRequest& plan = request->plan;
  const Target& target = *request->target;
  const ForwardAnswer answer = AnswerOf(*request);
  AttendBackwardRequest call =
      mix_.workload(plan.entry)
          .backward_request(plan.input, plan.q_len, plan.kv_len, answer.o, answer.lse);
  PlaceInputs(target, plan, &call.forward);
  if (target.region != nullptr) {
    call.d_o.data = target.region->data() + plan_->input(plan.entry, plan.input).d_o;
  }
  const CallOptions options{.timeout = options_.timeout, .gradients = BackwardBuffers(*request)};
  target.client->AttendBackwardAsync(
      call, options,
      [this, request = std::move(request)](absl::StatusOr<AttendGradients> result) mutable {
        if (!result.ok()) return Finish(std::move(request), result.status());
        request->backward = *std::move(result);
        request->outcome.stages.Add(request->backward.timing);
        Finish(std::move(request), absl::OkStatus());
      });
}

void MixCaller::Impl::Finish(std::unique_ptr<Request> request, absl::Status status) {
  // What follows is no part of the latency.
  request->outcome.answered = MonotonicNow();
  if (status.ok()) {
    const PlannedRequest& plan = request->plan;
    const Workload::CallBytes bytes = mix_.workload(plan.entry).bytes(plan.q_len, plan.kv_len);
    request->outcome.bytes = bytes.request + bytes.response;
    request->outcome.tokens = plan.q_len;
    if (IsSampled(request->index)) Sample(request.get());
  } else {
    if (request->placed && MayBeRunning(status)) request->target->retired[request->slot] = true;
    request->outcome.status =
        num_targets() > 1 ? NamingTarget(status, request->target->name) : std::move(status);
  }
  std::move(request->done)(std::move(request->outcome));
  request.reset();
  absl::MutexLock lock(&mutex_);
  --in_flight_;
}

bool MixCaller::Impl::IsSampled(int64_t index) const {
  if (options_.verify_share <= 0) return false;
  // Multiples of the golden ratio: any stretch of requests has its share, whatever the period in
  // which targets take turns.
  const double place =
      std::fmod(phase_ + static_cast<double>(index) * (std::numbers::phi - 1), 1.0);
  return index == 0 || place < options_.verify_share;
}

void MixCaller::Impl::Sample(Request* request) const {
  const LoadDirection direction = mix_.workload(request->plan.entry).direction();
  AnswerView view;
  if (direction != LoadDirection::kBackward) {
    const ForwardAnswer answer = AnswerOf(*request);
    view.o = answer.o;
    view.lse = answer.lse.data();
  }
  if (direction != LoadDirection::kForward) {
    const GradientBuffers placed = BackwardBuffers(*request);
    view.dq = request->placed ? placed.dq.data() : request->backward.dq.data();
    view.dk = request->placed ? placed.dk.data() : request->backward.dk.data();
    view.dv = request->placed ? placed.dv.data() : request->backward.dv.data();
  }
  AnswerSample sample{.request = request->plan};
  verifier_->Sample(
      view,
      RandomBits(options_.seed, RandomStream::kSampleDraw, static_cast<uint64_t>(request->index)),
      &sample);
  request->outcome.sample = std::move(sample);
}

MixCaller::MixCaller(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MixCaller::~MixCaller() = default;

absl::StatusOr<std::unique_ptr<MixCaller>> MixCaller::Create(const MixCallerOptions& options,
                                                             const RequestMix* mix,
                                                             const Verifier* verifier) {
  if (absl::Status status = CheckOptions(options, verifier); !status.ok()) return status;
  auto impl = std::make_unique<Impl>(options, mix, verifier);
  if (absl::Status status = impl->Connect(); !status.ok()) return status;
  if (absl::Status status = impl->MakeForwardCalls(); !status.ok()) return status;
  return std::unique_ptr<MixCaller>(new MixCaller(std::move(impl)));
}

int MixCaller::num_entries() const { return impl_->num_entries(); }
int MixCaller::num_targets() const { return impl_->num_targets(); }
const std::vector<ServerInfo>& MixCaller::servers() const { return impl_->servers(); }

void MixCaller::Start(int64_t index, int slot, DoneCallback done) {
  impl_->Start(index, slot, std::move(done));
}

}  // namespace flashbias::client

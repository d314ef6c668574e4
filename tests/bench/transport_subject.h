// One way to carry attention tensors to a server and back, in this process; most compute nothing.
//
// Thread-safety: Call may be called from several threads at once; each names its own lane.
#ifndef FLASHBIAS_TESTS_BENCH_TRANSPORT_SUBJECT_H_
#define FLASHBIAS_TESTS_BENCH_TRANSPORT_SUBJECT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace flashbias::bench {

// What one call of a subject is; backward and both only of those that are the service.
enum class Calls {
  kForward,
  kBackward,  // of one forward call that is made before
  kBoth,      // a forward call, and the backward call of its answer
};

struct TransportSetup {
  Calls calls = Calls::kForward;
  std::string unix_path = {};  // empty: loopback TCP
  int connections = 1;
  int lanes = 1;       // threads that call at once
  int64_t tokens = 0;  // of q, k and v; o has as many
  // On top of what the product sets; for the ByteBuffer echo only.
  std::vector<std::pair<std::string, int>> channel_arguments = {};
  int copy_threads = 0;            // of the service
  int64_t stream_above_bytes = 0;  // of the client; 0: its default
  absl::Duration run_time = {};    // of a batch where nothing is computed
  std::string python_target = {};  // host:port of peers/python_service.py
};

// float16, 50 heads x 32.
inline constexpr int64_t kHeads = 50;
inline constexpr int64_t kHeadDim = 32;
inline constexpr int64_t kTensorBytesPerToken = kHeads * kHeadDim * 2;

// Where the server says that a call's time went, from the request's arrival to the answer's
// departure.
struct ServerTime {
  absl::Duration receive = {};  // reading the message, the copy of its tensors included
  absl::Duration queue = {};
  absl::Duration upload = {};
  absl::Duration kernel = {};
  absl::Duration download = {};
  absl::Duration rest = {};  // of the batch on the backend, neither copies nor kernels
  absl::Duration send = {};

  // What the service adds to copies and kernels.
  absl::Duration own() const { return queue + rest + send; }
};

class TransportSubject {
 public:
  virtual ~TransportSubject() = default;
  // Sends q, k and v (and o, lse and d_o) and has o (and dq, dk and dv) in the caller's memory when
  // it returns. Fills `time` where the subject is one that tells.
  virtual absl::Status Call(int lane, std::optional<ServerTime>* time) = 0;
};

// The service and the client library, with a backend that computes nothing.
absl::StatusOr<std::unique_ptr<TransportSubject>> MakeServiceSubject(const TransportSetup& setup);
// The same with q, k, v and o in memory that client and server share; needs unix_path.
absl::StatusOr<std::unique_ptr<TransportSubject>> MakeSharedSubject(const TransportSetup& setup);
// Both on the machine's GPUs: ALiBi with seed slopes, causal. NOT_FOUND where there are none.
absl::StatusOr<std::unique_ptr<TransportSubject>> MakeGpuSubject(const TransportSetup& setup);
absl::StatusOr<std::unique_ptr<TransportSubject>> MakeSharedGpuSubject(const TransportSetup& setup);
// The same with q, k, v and o in device memory of this process, and the server in another; needs
// unix_path.
absl::StatusOr<std::unique_ptr<TransportSubject>> MakeIpcGpuSubject(const TransportSetup& setup);
// A callback server and a stub of the generated classes, gRPC's own settings.
absl::StatusOr<std::unique_ptr<TransportSubject>> MakeGeneratedSubject(const TransportSetup& setup);
// Bare ByteBuffers: slices over the caller's memory, gathered once into a staging buffer on each
// side; the product's channel settings.
absl::StatusOr<std::unique_ptr<TransportSubject>> MakeEchoSubject(const TransportSetup& setup);
// The echo's client in front of peers/python_service.py, which computes; over TCP only.
absl::StatusOr<std::unique_ptr<TransportSubject>> MakePythonSubject(const TransportSetup& setup);

// float16 values of magnitude 0.5 to 1, different for each seed.
void FillWithValues(uint32_t seed, absl::Span<char> tensor);

}  // namespace flashbias::bench

#endif  // FLASHBIAS_TESTS_BENCH_TRANSPORT_SUBJECT_H_

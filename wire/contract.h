// Field and enum numbers of proto/flashbias/v1/attention.proto, for code that reads and writes its
// messages without the generated classes. tests/wire/contract_test.cc holds them against those.
#ifndef FLASHBIAS_WIRE_CONTRACT_H_
#define FLASHBIAS_WIRE_CONTRACT_H_

#include <optional>

#include "kernels/dtype.h"

namespace flashbias::wire {

// The methods' paths, as HTTP/2 has them.
inline constexpr char kAttendMethod[] = "/flashbias.v1.AttentionService/Attend";
inline constexpr char kAttendStreamMethod[] = "/flashbias.v1.AttentionService/AttendStream";
inline constexpr char kAttendBackwardMethod[] = "/flashbias.v1.AttentionService/AttendBackward";
inline constexpr char kAttendBackwardStreamMethod[] =
    "/flashbias.v1.AttentionService/AttendBackwardStream";

// Key of the server's initial metadata once it has taken a stream's header.
inline constexpr char kStreamAccepted[] = "flashbias-stream-accepted";

// enum DType; 0 is unspecified.
inline constexpr int kFloat16 = 1;
inline constexpr int kBFloat16 = 2;
inline constexpr int kFloat32 = 3;

// enum Mask; 0 is unspecified.
inline constexpr int kMaskCausal = 1;
inline constexpr int kMaskFull = 2;

// enum StreamTensor; 0 is unspecified.
inline constexpr int kStreamQ = 1;
inline constexpr int kStreamK = 2;
inline constexpr int kStreamV = 3;
inline constexpr int kStreamPhiQ = 4;
inline constexpr int kStreamPhiK = 5;
inline constexpr int kStreamO = 6;
inline constexpr int kStreamLse = 7;
inline constexpr int kStreamDO = 8;
inline constexpr int kStreamDQ = 9;
inline constexpr int kStreamDK = 10;
inline constexpr int kStreamDV = 11;
inline constexpr int kStreamDSlopes = 12;
inline constexpr int kStreamDPhiQ = 13;
inline constexpr int kStreamDPhiK = 14;

struct TensorNumber {
  static constexpr int kDType = 1;
  static constexpr int kShape = 2;
  static constexpr int kRegionId = 3;
  static constexpr int kRegionOffset = 4;
  static constexpr int kData = 15;
};

struct PlaceNumber {
  static constexpr int kRegionId = 1;
  static constexpr int kOffset = 2;
};

struct AlibiNumber {
  static constexpr int kSlopes = 1;
};

struct LowRankNumber {
  static constexpr int kPhiQ = 1;
  static constexpr int kPhiK = 2;
};

struct RequestNumber {
  static constexpr int kQLens = 1;
  static constexpr int kKvLens = 2;
  static constexpr int kMask = 3;
  static constexpr int kLeftWindow = 4;
  static constexpr int kQueryStart = 5;
  static constexpr int kKeyStart = 6;
  static constexpr int kSoftmaxScale = 7;
  static constexpr int kEps = 8;
  static constexpr int kWantLse = 9;
  static constexpr int kAlibi = 10;
  static constexpr int kLowRank = 11;
  static constexpr int kQ = 13;
  static constexpr int kK = 14;
  static constexpr int kV = 15;
  static constexpr int kOPlace = 16;
  static constexpr int kLsePlace = 17;
};

struct ResponseNumber {
  static constexpr int kTiming = 1;
  static constexpr int kLse = 14;
  static constexpr int kO = 15;
};

struct BackwardRequestNumber {
  static constexpr int kForward = 1;
  static constexpr int kWantBiasGradient = 2;
  static constexpr int kLse = 12;
  static constexpr int kO = 13;
  static constexpr int kDO = 14;
  static constexpr int kDQPlace = 15;
  static constexpr int kDKPlace = 16;
  static constexpr int kDVPlace = 17;
  static constexpr int kDPhiQPlace = 18;
  static constexpr int kDPhiKPlace = 19;
};

// kTiming is ResponseNumber's.
struct BackwardResponseNumber {
  static constexpr int kDSlopes = 10;
  static constexpr int kDPhiQ = 11;
  static constexpr int kDPhiK = 12;
  static constexpr int kDQ = 13;
  static constexpr int kDK = 14;
  static constexpr int kDV = 15;
};

struct TimingNumber {
  static constexpr int kReceiveSeconds = 1;
  static constexpr int kQueueSeconds = 2;
  static constexpr int kComputeSeconds = 3;
  static constexpr int kSendSeconds = 4;
  static constexpr int kBatchRequests = 5;
  static constexpr int kTilesComputed = 6;
  static constexpr int kTilesSkipped = 7;
  static constexpr int kUploadSeconds = 8;
  static constexpr int kKernelSeconds = 9;
  static constexpr int kDownloadSeconds = 10;
};

// AttendStreamRequest, AttendStreamResponse and their backward forms; the last is the requests'.
struct StreamNumber {
  static constexpr int kHeader = 1;
  static constexpr int kChunk = 2;
  static constexpr int kMaxChunkBytes = 3;
};

struct ChunkNumber {
  static constexpr int kTensor = 1;
  static constexpr int kOffset = 2;
  static constexpr int kData = 15;
};

constexpr int ToWire(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return kFloat16;
    case DType::kBFloat16:
      return kBFloat16;
    case DType::kFloat32:
      return kFloat32;
  }
  return 0;
}

// nullopt: unspecified, or no dtype of the contract.
constexpr std::optional<DType> DTypeFromWire(int number) {
  switch (number) {
    case kFloat16:
      return DType::kFloat16;
    case kBFloat16:
      return DType::kBFloat16;
    case kFloat32:
      return DType::kFloat32;
    default:
      return std::nullopt;
  }
}

}  // namespace flashbias::wire

#endif  // FLASHBIAS_WIRE_CONTRACT_H_

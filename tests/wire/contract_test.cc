#include "wire/contract.h"

#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "flashbias/v1/attention.pb.h"

namespace flashbias::wire {
namespace {

static_assert(v1::DTYPE_FLOAT16 == kFloat16 && v1::DTYPE_BFLOAT16 == kBFloat16 &&
              v1::DTYPE_FLOAT32 == kFloat32);
static_assert(v1::MASK_CAUSAL == kMaskCausal && v1::MASK_FULL == kMaskFull);

using Tensor = v1::Tensor;
static_assert(Tensor::kDtypeFieldNumber == TensorNumber::kDType &&
              Tensor::kShapeFieldNumber == TensorNumber::kShape &&
              Tensor::kRegionIdFieldNumber == TensorNumber::kRegionId &&
              Tensor::kRegionOffsetFieldNumber == TensorNumber::kRegionOffset &&
              Tensor::kDataFieldNumber == TensorNumber::kData);
using Place = v1::RegionPlace;
static_assert(Place::kRegionIdFieldNumber == PlaceNumber::kRegionId &&
              Place::kOffsetFieldNumber == PlaceNumber::kOffset);
static_assert(v1::AlibiBias::kSlopesFieldNumber == AlibiNumber::kSlopes);
static_assert(v1::LowRankBias::kPhiQFieldNumber == LowRankNumber::kPhiQ &&
              v1::LowRankBias::kPhiKFieldNumber == LowRankNumber::kPhiK);
using Request = v1::AttendRequest;
static_assert(Request::kQLensFieldNumber == RequestNumber::kQLens &&
              Request::kKvLensFieldNumber == RequestNumber::kKvLens &&
              Request::kMaskFieldNumber == RequestNumber::kMask &&
              Request::kLeftWindowFieldNumber == RequestNumber::kLeftWindow &&
              Request::kQueryStartFieldNumber == RequestNumber::kQueryStart &&
              Request::kKeyStartFieldNumber == RequestNumber::kKeyStart &&
              Request::kSoftmaxScaleFieldNumber == RequestNumber::kSoftmaxScale &&
              Request::kEpsFieldNumber == RequestNumber::kEps &&
              Request::kWantLseFieldNumber == RequestNumber::kWantLse &&
              Request::kAlibiFieldNumber == RequestNumber::kAlibi &&
              Request::kLowRankFieldNumber == RequestNumber::kLowRank &&
              Request::kQFieldNumber == RequestNumber::kQ &&
              Request::kKFieldNumber == RequestNumber::kK &&
              Request::kVFieldNumber == RequestNumber::kV &&
              Request::kOPlaceFieldNumber == RequestNumber::kOPlace &&
              Request::kLsePlaceFieldNumber == RequestNumber::kLsePlace);
using Response = v1::AttendResponse;
static_assert(Response::kTimingFieldNumber == ResponseNumber::kTiming &&
              Response::kLseFieldNumber == ResponseNumber::kLse &&
              Response::kOFieldNumber == ResponseNumber::kO);
using BackwardRequest = v1::AttendBackwardRequest;
static_assert(BackwardRequest::kForwardFieldNumber == BackwardRequestNumber::kForward &&
              BackwardRequest::kWantBiasGradientFieldNumber ==
                  BackwardRequestNumber::kWantBiasGradient &&
              BackwardRequest::kLseFieldNumber == BackwardRequestNumber::kLse &&
              BackwardRequest::kOFieldNumber == BackwardRequestNumber::kO &&
              BackwardRequest::kDOFieldNumber == BackwardRequestNumber::kDO &&
              BackwardRequest::kDqPlaceFieldNumber == BackwardRequestNumber::kDQPlace &&
              BackwardRequest::kDkPlaceFieldNumber == BackwardRequestNumber::kDKPlace &&
              BackwardRequest::kDvPlaceFieldNumber == BackwardRequestNumber::kDVPlace &&
              BackwardRequest::kDphiQPlaceFieldNumber == BackwardRequestNumber::kDPhiQPlace &&
              BackwardRequest::kDphiKPlaceFieldNumber == BackwardRequestNumber::kDPhiKPlace);
using BackwardResponse = v1::AttendBackwardResponse;
static_assert(BackwardResponse::kTimingFieldNumber == ResponseNumber::kTiming &&
              BackwardResponse::kDslopesFieldNumber == BackwardResponseNumber::kDSlopes &&
              BackwardResponse::kDphiQFieldNumber == BackwardResponseNumber::kDPhiQ &&
              BackwardResponse::kDphiKFieldNumber == BackwardResponseNumber::kDPhiK &&
              BackwardResponse::kDqFieldNumber == BackwardResponseNumber::kDQ &&
              BackwardResponse::kDkFieldNumber == BackwardResponseNumber::kDK &&
              BackwardResponse::kDvFieldNumber == BackwardResponseNumber::kDV);
using Timing = v1::Timing;
static_assert(Timing::kReceiveSecondsFieldNumber == TimingNumber::kReceiveSeconds &&
              Timing::kQueueSecondsFieldNumber == TimingNumber::kQueueSeconds &&
              Timing::kComputeSecondsFieldNumber == TimingNumber::kComputeSeconds &&
              Timing::kSendSecondsFieldNumber == TimingNumber::kSendSeconds &&
              Timing::kBatchRequestsFieldNumber == TimingNumber::kBatchRequests &&
              Timing::kTilesComputedFieldNumber == TimingNumber::kTilesComputed &&
              Timing::kTilesSkippedFieldNumber == TimingNumber::kTilesSkipped &&
              Timing::kUploadSecondsFieldNumber == TimingNumber::kUploadSeconds &&
              Timing::kKernelSecondsFieldNumber == TimingNumber::kKernelSeconds &&
              Timing::kDownloadSecondsFieldNumber == TimingNumber::kDownloadSeconds);

using StreamRequest = v1::AttendStreamRequest;
static_assert(StreamRequest::kHeaderFieldNumber == StreamNumber::kHeader &&
              StreamRequest::kChunkFieldNumber == StreamNumber::kChunk &&
              StreamRequest::kMaxChunkBytesFieldNumber == StreamNumber::kMaxChunkBytes);
using StreamResponse = v1::AttendStreamResponse;
static_assert(StreamResponse::kHeaderFieldNumber == StreamNumber::kHeader &&
              StreamResponse::kChunkFieldNumber == StreamNumber::kChunk);
using BackwardStreamRequest = v1::AttendBackwardStreamRequest;
static_assert(BackwardStreamRequest::kHeaderFieldNumber == StreamNumber::kHeader &&
              BackwardStreamRequest::kChunkFieldNumber == StreamNumber::kChunk &&
              BackwardStreamRequest::kMaxChunkBytesFieldNumber == StreamNumber::kMaxChunkBytes);
using BackwardStreamResponse = v1::AttendBackwardStreamResponse;
static_assert(BackwardStreamResponse::kHeaderFieldNumber == StreamNumber::kHeader &&
              BackwardStreamResponse::kChunkFieldNumber == StreamNumber::kChunk);
static_assert(v1::Chunk::kTensorFieldNumber == ChunkNumber::kTensor &&
              v1::Chunk::kOffsetFieldNumber == ChunkNumber::kOffset &&
              v1::Chunk::kDataFieldNumber == ChunkNumber::kData);
static_assert(v1::STREAM_TENSOR_Q == kStreamQ && v1::STREAM_TENSOR_K == kStreamK &&
              v1::STREAM_TENSOR_V == kStreamV && v1::STREAM_TENSOR_PHI_Q == kStreamPhiQ &&
              v1::STREAM_TENSOR_PHI_K == kStreamPhiK && v1::STREAM_TENSOR_O == kStreamO &&
              v1::STREAM_TENSOR_LSE == kStreamLse && v1::STREAM_TENSOR_D_O == kStreamDO &&
              v1::STREAM_TENSOR_DQ == kStreamDQ && v1::STREAM_TENSOR_DK == kStreamDK &&
              v1::STREAM_TENSOR_DV == kStreamDV && v1::STREAM_TENSOR_DSLOPES == kStreamDSlopes &&
              v1::STREAM_TENSOR_DPHI_Q == kStreamDPhiQ && v1::STREAM_TENSOR_DPHI_K == kStreamDPhiK);

// A field that is added to the contract must be added to the readers.
TEST(ContractTest, EveryFieldIsKnown) {
  EXPECT_EQ(Request::descriptor()->field_count(), 16);
  EXPECT_EQ(Response::descriptor()->field_count(), 3);
  EXPECT_EQ(Timing::descriptor()->field_count(), 10);
  EXPECT_EQ(Tensor::descriptor()->field_count(), 5);
  EXPECT_EQ(Place::descriptor()->field_count(), 2);
  EXPECT_EQ(StreamRequest::descriptor()->field_count(), 3);
  EXPECT_EQ(StreamResponse::descriptor()->field_count(), 2);
  EXPECT_EQ(BackwardRequest::descriptor()->field_count(), 10);
  EXPECT_EQ(BackwardResponse::descriptor()->field_count(), 7);
  EXPECT_EQ(BackwardStreamRequest::descriptor()->field_count(), 3);
  EXPECT_EQ(BackwardStreamResponse::descriptor()->field_count(), 2);
  EXPECT_EQ(v1::Chunk::descriptor()->field_count(), 3);
}

TEST(ContractTest, TheMethodsAreThoseOfTheService) {
  const auto* const service = Request::descriptor()->file()->FindServiceByName("AttentionService");
  ASSERT_NE(service, nullptr);
  const auto path = [&](const char* method) {
    return absl::StrCat("/", service->full_name(), "/", service->FindMethodByName(method)->name());
  };
  EXPECT_EQ(path("Attend"), kAttendMethod);
  EXPECT_EQ(path("AttendStream"), kAttendStreamMethod);
  EXPECT_EQ(path("AttendBackward"), kAttendBackwardMethod);
  EXPECT_EQ(path("AttendBackwardStream"), kAttendBackwardStreamMethod);
}

TEST(ContractTest, DTypesGoThereAndBack) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    EXPECT_EQ(DTypeFromWire(ToWire(dtype)), dtype);
  }
  EXPECT_EQ(DTypeFromWire(0), std::nullopt);
  EXPECT_EQ(DTypeFromWire(4), std::nullopt);
}

}  // namespace
}  // namespace flashbias::wire

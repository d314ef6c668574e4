// What a call expects to come back, and where it goes: the one description that checking buffers,
// asking for places, receiving and handing over go through.
//
// Plain values and free functions; thread-safe as those. Ownership: an Answer owns the tensors that
// the caller gave no buffer for.
#ifndef FLASHBIAS_CLIENT_ANSWER_H_
#define FLASHBIAS_CLIENT_ANSWER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/attention_types.h"
#include "wire/tensor_field.h"

namespace flashbias::client {

struct AnswerTensor {
  const char* name = "";         // for errors; a literal, as the next
  const char* buffer_name = "";  // of the field of CallOptions that may say where it goes
  int response_number = 0;       // of its field in the response (wire/contract.h)
  int stream_number = 0;         // of its chunks
  int place_number = 0;          // of the request's field for its place; 0: there is none
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape = {};
  int64_t bytes = 0;  // saturated: a request may be larger than any memory

  // The caller's memory: of `bytes` bytes, or empty.
  absl::Span<char> buffer = {};
  // Where that is in a region: the server writes there, and nothing of it comes.
  std::optional<wire::RegionPlace> place = {};
  // Where there is no buffer. Results hand out 16-bit and 32-bit tensors as bytes, what is float32
  // whatever the request's dtype as floats.
  bool as_floats = false;
  std::string own_bytes = {};
  std::vector<float> own_floats = {};

  // Where the elements go; makes room where that is here. REQUIRES: `bytes` are known to come.
  char* Allocate();
};

struct Answer {
  std::vector<AnswerTensor> tensors = {};  // by ascending place_number; without ones last
  Timing timing = {};

  // Saturates.
  int64_t bytes() const;
};

// INVALID_ARGUMENT: a buffer was given that has not the size of what is to go there. REQUIRES:
// SummarizeRequest(request) is OK.
absl::StatusOr<Answer> ExpectAnswer(const AttendRequest& request, const ResultBuffers& buffers);
absl::StatusOr<Answer> ExpectAnswer(const AttendBackwardRequest& request,
                                    const GradientBuffers& buffers);

// The fields of a response: of each tensor of an Answer one, in its order, and the timing.
struct AnswerFields {
  std::vector<wire::TensorField> tensors = {};
  Timing timing = {};
};

// INTERNAL: dtypes, shapes or sizes are not those expected, or a tensor is not at its place.
// `data_follows`: the header of a stream, whose tensors have no elements yet.
absl::Status CheckAnswer(const Answer& expected, const AnswerFields& fields, bool data_follows);

// What a caller gets of a whole answer.
AttendResult TakeResult(Answer answer);
AttendGradients TakeGradients(Answer answer);

}  // namespace flashbias::client

#endif  // FLASHBIAS_CLIENT_ANSWER_H_

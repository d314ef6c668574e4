#include "server/attend_tensors.h"

namespace flashbias::server {

int64_t AttendTensors::bytes() const {
  int64_t bytes = 0;
  for (const InputTensor& input : inputs) bytes += input.bytes;
  for (const OutputTensor& output : outputs) bytes += output.bytes;
  return bytes;
}

}  // namespace flashbias::server

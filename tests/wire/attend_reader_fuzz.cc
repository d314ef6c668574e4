// libFuzzer: whatever the bytes, ReadAttendRequest and the generated class agree, however the
// message is cut into slices. The first byte chooses the cuts and, by its lowest bit, the
// direction.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "tests/wire/attend_differential.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto direction =
      data[0] % 2 == 0 ? flashbias::Direction::kForward : flashbias::Direction::kBackward;
  const size_t step = data[0] / 2;
  const std::string_view bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  std::vector<size_t> cuts;
  for (size_t at = step; step > 0 && at < bytes.size(); at += step) cuts.push_back(at);
  const std::string difference = flashbias::DifferenceFromGenerated(direction, bytes, cuts);
  if (!difference.empty()) {
    std::fprintf(stderr, "%s\n", difference.c_str());
    std::abort();
  }
  return 0;
}

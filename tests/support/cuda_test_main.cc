#include "tests/support/cuda_test_main.h"

#include <cuda_runtime_api.h>

#include <iostream>
#include <string_view>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device_traits.h"

namespace flashbias::support {
namespace {

using Family = cuda::PlanOptions::Family;

constexpr std::string_view kFlag = "--family=";

Family chosen = Family::kFastest;

bool Choose(std::string_view name) {
  if (name == "fastest") chosen = Family::kFastest;
  if (name == "hopper") chosen = Family::kHopper;
  if (name == "portable") chosen = Family::kPortable;
  return name == "fastest" || name == "hopper" || name == "portable";
}

int Main(int argc, char** argv) {
  ::testing::InitGoogleMock(&argc, argv);  // removes the flags that are gtest's
  for (int n = 1; n < argc; ++n) {
    const std::string_view argument = argv[n];
    if (!argument.starts_with(kFlag) || !Choose(argument.substr(kFlag.size()))) {
      std::cerr << "unknown argument '" << argument
                << "'; known: --family=fastest|hopper|portable and gtest's flags\n";
      return 2;
    }
  }
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::cout << "no CUDA device: skipped ("
              << (error != cudaSuccess ? cudaGetErrorString(error) : "none found") << ")\n";
    return kSkipped;
  }
  cuda::DeviceTraits device;
  if (chosen == Family::kHopper && cuda::ReadDeviceTraits(0, &device) == cudaSuccess &&
      device.compute_capability != 90) {
    std::cout << "device of compute capability " << device.compute_capability
              << ", not 90: skipped\n";
    return kSkipped;
  }
  return RUN_ALL_TESTS();
}

}  // namespace

cuda::PlanOptions::Family ChosenFamily() { return chosen; }

}  // namespace flashbias::support

int main(int argc, char** argv) { return flashbias::support::Main(argc, argv); }

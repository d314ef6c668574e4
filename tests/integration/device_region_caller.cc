// A caller that computes in device memory until it is killed.
//
//   device_region_caller TARGET HANDLE_BYTE     prints "calling" once its first answer has come
//
// For device_regions_test, whose fake device knows memory of 1 MiB by a handle of such bytes. The
// client library never touches the memory, so any address will do here.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "client/attention_client.h"

namespace flashbias::client {
namespace {

int Main(const char* target, int handle_byte) {
  const auto client = AttentionClient::Create({.target = target});
  if (!client.ok()) return 1;
  constexpr size_t kBytes = 1 << 20;
  const std::vector<uint8_t> handle(64, static_cast<uint8_t>(handle_byte));
  char* const data = reinterpret_cast<char*>(uintptr_t{1} << 40);
  const auto region =
      (*client)->RegisterDeviceMemory({.data = data, .bytes = kBytes, .ipc_handle = handle});
  if (!region.ok()) return 1;
  const TensorView tensor = {.dtype = DType::kFloat16, .shape = {16, 2, 32}, .data = data};
  const AttendRequest request = {.q = tensor, .k = tensor, .v = tensor, .mask = MaskKind::kFull};
  for (bool told = false;; told = true) {
    if (!(*client)->Attend(request, {.result = {.o = {data + kBytes / 2, 2048}}}).ok()) return 1;
    if (told) continue;
    std::puts("calling");
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace flashbias::client

int main(int argc, char** argv) {
  return argc == 3 ? flashbias::client::Main(argv[1], std::atoi(argv[2])) : 2;
}

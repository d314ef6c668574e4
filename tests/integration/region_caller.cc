// A caller that computes in shared memory until it is killed.
//
//   region_caller TARGET      prints "calling" once its first answer has come
//
// For shared_memory_test: what a killed caller leaves in the server.
#include <cstdio>
#include <memory>

#include "client/attention_client.h"

namespace flashbias::client {
namespace {

int Main(const char* target) {
  const auto client = AttentionClient::Create({.target = target});
  if (!client.ok()) return 1;
  const auto region = (*client)->CreateRegion(1 << 20);
  const auto idle = (*client)->CreateRegion(4096);
  if (!region.ok() || !idle.ok()) return 1;
  const TensorView tensor = {
      .dtype = DType::kFloat32, .shape = {64, 4, 32}, .data = (*region)->data()};
  const AttendRequest request = {.q = tensor, .k = tensor, .v = tensor, .mask = MaskKind::kFull};
  char* const o = (*region)->data() + (1 << 19);
  for (bool told = false;; told = true) {
    if (!(*client)->Attend(request, {.result = {.o = {o, 64 * 4 * 32 * 4}}}).ok()) return 1;
    if (told) continue;
    std::puts("calling");
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace flashbias::client

int main(int argc, char** argv) { return argc == 2 ? flashbias::client::Main(argv[1]) : 2; }

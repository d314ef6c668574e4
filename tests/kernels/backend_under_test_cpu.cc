#include "tests/kernels/backend_under_test.h"
#include "tests/kernels/new_cpu_backend.h"

namespace flashbias {

AttentionBackend& BackendUnderTest() {
  static AttentionBackend* const backend = NewCpuBackend(2).release();
  return *backend;
}

}  // namespace flashbias

#include "tests/kernels/backend_under_test.h"
#include "tests/kernels/new_cuda_backend.h"

namespace flashbias {

AttentionBackend& BackendUnderTest() {
  static AttentionBackend* const backend = NewCudaBackend().release();
  return *backend;
}

}  // namespace flashbias

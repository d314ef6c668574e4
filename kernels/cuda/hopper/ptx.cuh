// The PTX instructions of Hopper that the attention kernel is made of, one wrapper each.
//
// PTX ISA 8.3 and up: wgmma (9.7.15), cp.async.bulk.tensor (9.7.9.25), mbarrier (9.7.13.15),
// setmaxnreg (9.7.19.5), griddepcontrol (9.7.13.13). Device code, private to this folder.
#ifndef FLASHBIAS_KERNELS_CUDA_HOPPER_PTX_CUH_
#define FLASHBIAS_KERNELS_CUDA_HOPPER_PTX_CUH_

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace flashbias::cuda::hopper {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- mbarrier: `barrier` is the shared-memory address of a 64-bit word ---

__device__ __forceinline__ void MbarrierInit(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void MbarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void MbarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void MbarrierArriveExpectBytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Waits until the phase of that parity has completed. The time limit (in ns) lets the warp sleep
// that long at most; with the default one, waiting warps take issue slots from working ones.
__device__ __forceinline__ void MbarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1, %2;\n"
      "@done bra.uni out;\n"
      "bra.uni again;\n"
      "out:\n"
      "}\n" ::"r"(barrier),
      "r"(parity), "r"(10'000'000)
      : "memory");
}

// --- Named barriers, 1 to 15; `threads` counts those that wait and those that only arrive ---

__device__ __forceinline__ void NamedBarrierSync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void NamedBarrierArrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Brings a tensor map nearer before its first use.
__device__ __forceinline__ void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// --- Bulk tensor copies ---

// Before the first use of a tensor map that was written to global memory.
__device__ __forceinline__ void AcquireTensorMap(const CUtensorMap* map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
}

// Loads one box whose first element is (column, head, row); completes on `barrier`.
__device__ __forceinline__ void LoadBox(uint32_t to, const CUtensorMap* map, uint32_t barrier,
                                        int column, int head, int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(head), "r"(row)
      : "memory");
}

// Loads contiguous bytes: a multiple of 16, as both addresses are.
__device__ __forceinline__ void LoadBytes(uint32_t to, const void* from, uint32_t barrier,
                                          uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %3, [%2];" ::
          "r"(to),
      "l"(__cvta_generic_to_global(from)), "r"(barrier), "r"(bytes)
      : "memory");
}

// Orders shared-memory stores of this thread before reads by the tensor cores.
__device__ __forceinline__ void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- Counters in global memory ---

// Not aggregated over the warp, and waited for only where the result is used.
__device__ __forceinline__ unsigned FetchAdd(unsigned* counter, unsigned value) {
  unsigned before;
  asm volatile("atom.global.relaxed.gpu.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(value)
               : "memory");
  return before;
}

__device__ __forceinline__ void Add(unsigned long long* counter, unsigned long long value) {
  asm volatile("red.global.relaxed.gpu.add.u64 [%0], %1;" ::"l"(counter), "l"(value) : "memory");
}

// --- Registers, launches, scheduling ---

template <int kRegisters>
__device__ __forceinline__ void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Waits until the launch before this one has completed and its writes are visible.
__device__ __forceinline__ void WaitForPreviousLaunch() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Lets the launch after this one begin once every thread block has said so or ended.
__device__ __forceinline__ void StartNextLaunch() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Keeps the assembler from moving instructions across; costs next to nothing.
__device__ __forceinline__ void SchedulingFence() { asm volatile("pmevent 0;" ::: "memory"); }

// To about 2^-23, subnormal numbers too.
__device__ __forceinline__ float SquareRoot(float x) {
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// --- wgmma ---

__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most so many of the last committed groups are under way.
template <int kGroups>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// Tells the compiler that registers were touched here, so that no access moves across.
template <int kCount>
__device__ __forceinline__ void Pin(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

template <int kCount>
__device__ __forceinline__ void Pin(uint32_t (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

enum class Swizzle : uint32_t { k128Bytes = 1, k64Bytes = 2, k32Bytes = 3 };

// A matrix descriptor: byte offsets between panels (leading) and between groups of 8 rows (stride).
// The upper word is a constant, so that moving the matrix is one addition to the lower.
template <int kStride, Swizzle kSwizzle>
__device__ __forceinline__ uint64_t MatrixDescriptor(uint32_t address, uint32_t leading) {
  constexpr uint64_t kUpper =
      static_cast<uint64_t>(kStride >> 4 | static_cast<uint32_t>(kSwizzle) << 30) << 32;
  return kUpper | (address >> 4 | leading << 12);
}

// D = A B (Set) or D += A B (Add) for a warpgroup: 64 rows, kColumns columns, 16 deep, fp32
// results. D: element 4 n + j of a lane is row (lane / 4 + 8 (j / 2)), column 8 n + 2 (lane % 4) +
// j % 2 of its warp's 16 rows. A from registers: {row, +8 rows} x {columns 0-7, 8-15}, two columns
// a lane.
template <typename Element>
struct Wgmma;

// The same instructions for both element types, whose names differ in PTX.
#define FLASHBIAS_WGMMA(Element, type)                                                          \
  template <>                                                                                   \
  struct Wgmma<Element> {                                                                       \
    /* Scores: A and B in shared memory, both with the depth contiguous. */                     \
    static __device__ __forceinline__ void SetScores(float (&d)[64], uint64_t a, uint64_t b) {  \
      asm volatile(                                                                             \
          "{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\n"                                            \
          "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                          \
          " {"                                                                                  \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "              \
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "    \
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "    \
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "   \
          "%64, %65, p, 1, 1, 0, 0;\n}\n"                                                       \
          : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]), "=f"(d[4]), "=f"(d[5]), "=f"(d[6]), \
            "=f"(d[7]), "=f"(d[8]), "=f"(d[9]), "=f"(d[10]), "=f"(d[11]), "=f"(d[12]),          \
            "=f"(d[13]), "=f"(d[14]), "=f"(d[15]), "=f"(d[16]), "=f"(d[17]), "=f"(d[18]),       \
            "=f"(d[19]), "=f"(d[20]), "=f"(d[21]), "=f"(d[22]), "=f"(d[23]), "=f"(d[24]),       \
            "=f"(d[25]), "=f"(d[26]), "=f"(d[27]), "=f"(d[28]), "=f"(d[29]), "=f"(d[30]),       \
            "=f"(d[31]), "=f"(d[32]), "=f"(d[33]), "=f"(d[34]), "=f"(d[35]), "=f"(d[36]),       \
            "=f"(d[37]), "=f"(d[38]), "=f"(d[39]), "=f"(d[40]), "=f"(d[41]), "=f"(d[42]),       \
            "=f"(d[43]), "=f"(d[44]), "=f"(d[45]), "=f"(d[46]), "=f"(d[47]), "=f"(d[48]),       \
            "=f"(d[49]), "=f"(d[50]), "=f"(d[51]), "=f"(d[52]), "=f"(d[53]), "=f"(d[54]),       \
            "=f"(d[55]), "=f"(d[56]), "=f"(d[57]), "=f"(d[58]), "=f"(d[59]), "=f"(d[60]),       \
            "=f"(d[61]), "=f"(d[62]), "=f"(d[63])                                               \
          : "l"(a), "l"(b));                                                                    \
    }                                                                                           \
    /* The same, added. */                                                                      \
    static __device__ __forceinline__ void AddScores(float (&d)[64], uint64_t a, uint64_t b) {  \
      asm volatile(                                                                             \
          "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                            \
          "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                          \
          " {"                                                                                  \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "              \
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "    \
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "    \
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "   \
          "%64, %65, p, 1, 1, 0, 0;\n}\n"                                                       \
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
            "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),          \
            "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),       \
            "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),       \
            "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),       \
            "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),       \
            "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),       \
            "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),       \
            "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),       \
            "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]),       \
            "+f"(d[61]), "+f"(d[62]), "+f"(d[63])                                               \
          : "l"(a), "l"(b));                                                                    \
    }                                                                                           \
    /* Both for half a tile. */                                                                 \
    static __device__ __forceinline__ void SetScores(float (&d)[32], uint64_t a, uint64_t b) {  \
      asm volatile(                                                                             \
          "{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\n"                                            \
          "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                           \
          " {"                                                                                  \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "              \
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "   \
          "%32, %33, p, 1, 1, 0, 0;\n}\n"                                                       \
          : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]), "=f"(d[4]), "=f"(d[5]), "=f"(d[6]), \
            "=f"(d[7]), "=f"(d[8]), "=f"(d[9]), "=f"(d[10]), "=f"(d[11]), "=f"(d[12]),          \
            "=f"(d[13]), "=f"(d[14]), "=f"(d[15]), "=f"(d[16]), "=f"(d[17]), "=f"(d[18]),       \
            "=f"(d[19]), "=f"(d[20]), "=f"(d[21]), "=f"(d[22]), "=f"(d[23]), "=f"(d[24]),       \
            "=f"(d[25]), "=f"(d[26]), "=f"(d[27]), "=f"(d[28]), "=f"(d[29]), "=f"(d[30]),       \
            "=f"(d[31])                                                                         \
          : "l"(a), "l"(b));                                                                    \
    }                                                                                           \
    static __device__ __forceinline__ void AddScores(float (&d)[32], uint64_t a, uint64_t b) {  \
      asm volatile(                                                                             \
          "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                            \
          "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                           \
          " {"                                                                                  \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "              \
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "   \
          "%32, %33, p, 1, 1, 0, 0;\n}\n"                                                       \
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
            "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),          \
            "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),       \
            "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),       \
            "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),       \
            "+f"(d[31])                                                                         \
          : "l"(a), "l"(b));                                                                    \
    }                                                                                           \
    /* Values: B in shared memory with the columns contiguous. */                               \
    static __device__ __forceinline__ void AddValues(float (&d)[20], const uint32_t (&a)[4],    \
                                                     uint64_t b) {                              \
      asm volatile(                                                                             \
          "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                            \
          "wgmma.mma_async.sync.aligned.m64n40k16.f32." type "." type                           \
          " {"                                                                                  \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "              \
          "%16, %17, %18, %19}, "                                                               \
          "{%20, %21, %22, %23}, %24, p, 1, 1, 1;\n}\n"                                         \
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
            "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),          \
            "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),       \
            "+f"(d[19])                                                                         \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                \
    }                                                                                           \
    /* The same for 32 columns. */                                                              \
    static __device__ __forceinline__ void AddValues(float (&d)[16], const uint32_t (&a)[4],    \
                                                     uint64_t b) {                              \
      asm volatile(                                                                             \
          "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                            \
          "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                           \
          " {"                                                                                  \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "             \
          "{%16, %17, %18, %19}, %20, p, 1, 1, 1;\n}\n"                                         \
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
            "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),          \
            "+f"(d[13]), "+f"(d[14]), "+f"(d[15])                                               \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                \
    }                                                                                           \
    /* The same for 64 columns. */                                                              \
    static __device__ __forceinline__ void AddValues(float (&d)[32], const uint32_t (&a)[4],    \
                                                     uint64_t b) {                              \
      asm volatile(                                                                             \
          "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                            \
          "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                           \
          " {"                                                                                  \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "              \
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "   \
          "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"                                         \
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
            "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),          \
            "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),       \
            "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),       \
            "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),       \
            "+f"(d[31])                                                                         \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                \
    }                                                                                           \
    /* The same for 72 columns. */                                                              \
    static __device__ __forceinline__ void AddValues(float (&d)[36], const uint32_t (&a)[4],    \
                                                     uint64_t b) {                              \
      asm volatile(                                                                             \
          "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                            \
          "wgmma.mma_async.sync.aligned.m64n72k16.f32." type "." type                           \
          " {"                                                                                  \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "              \
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "    \
          "%32, %33, %34, %35}, "                                                               \
          "{%36, %37, %38, %39}, %40, p, 1, 1, 1;\n}\n"                                         \
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
            "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),          \
            "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),       \
            "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),       \
            "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),       \
            "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])                     \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                \
    }                                                                                           \
    /* The same for 128 columns. */                                                             \
    static __device__ __forceinline__ void AddValues(float (&d)[64], const uint32_t (&a)[4],    \
                                                     uint64_t b) {                              \
      asm volatile(                                                                             \
          "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                            \
          "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                          \
          " {"                                                                                  \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "              \
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "    \
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "    \
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "   \
          "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"                                         \
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
            "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),          \
            "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),       \
            "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),       \
            "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),       \
            "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),       \
            "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),       \
            "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),       \
            "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),       \
            "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]),       \
            "+f"(d[61]), "+f"(d[62]), "+f"(d[63])                                               \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                \
    }                                                                                           \
  }

FLASHBIAS_WGMMA(__half, "f16");
FLASHBIAS_WGMMA(__nv_bfloat16, "bf16");

#undef FLASHBIAS_WGMMA

}  // namespace flashbias::cuda::hopper

#endif  // FLASHBIAS_KERNELS_CUDA_HOPPER_PTX_CUH_

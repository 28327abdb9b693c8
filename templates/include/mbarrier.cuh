// Barriers in shared memory that count arrivals (sm_90 and newer): how the warps of a pipeline hand stages to each
// other.
#pragma once

#include <stdint.h>

namespace normgate {

// As every thread that waits sees a barrier: its address in shared memory.
__device__ __forceinline__ uint32_t barrier_address(const uint64_t* barrier) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier_address(barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier_address(barrier)) : "memory");
}

// Makes barriers that this thread has initialized known to the cluster and to the copy engine.
__device__ __forceinline__ void barriers_are_initialized() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// The one arrival that a barrier waits for beside `bytes` of copies or pushes.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits for the end of the barrier's phase of this parity: phases alternate 0, 1, 0, ... What the cluster's CTAs have
// pushed and counted there can be read then.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier_address(barrier)),
      "r"(parity)
      : "memory");
}

// A barrier of `threads` threads of the CTA, whole warps, beside __syncthreads(), which is number 0.
__device__ __forceinline__ void sync_threads(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

}  // namespace normgate

// Thread-block clusters (sm_90 and newer): a barrier across CTAs and stores into a neighbour's shared memory.
#pragma once

#include <stdint.h>

namespace normgate {

// The first half of a barrier that only says "this CTA has begun": nothing is ordered by it.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
// The second half: returns when every thread of the cluster has arrived.
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The address, in the cluster's shared window, of this CTA's shared variable as CTA `rank` has it.
__device__ __forceinline__ uint32_t in_cta(const void* shared, uint32_t rank) {
  const uint32_t here = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
  return there;
}
// Stores into another CTA's shared memory, which count their bytes at a barrier there: whoever waits for the barrier
// sees them. A barrier of the cluster would make every thread wait for all of its stores first.
__device__ __forceinline__ void push4(uint32_t address, float4 v, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
      : "memory");
}

// Arrives at a barrier of another CTA; what this thread has read before may be overwritten after. It says nothing of
// what the thread has written, and so needs no fence (of `release`, ptxas makes one that waits for every store of the
// SM).
__device__ __forceinline__ void arrive_in_cta(uint32_t barrier) {
  asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

}  // namespace normgate

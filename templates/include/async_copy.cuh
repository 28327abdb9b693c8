// Copies from global to shared memory that run beside the arithmetic (sm_80 and newer).
#pragma once

#include <stdint.h>

namespace normgate {

// 16 bytes, past L1; zeros where `exists` is false (the address is not read then).
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool exists) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(exists ? 16 : 0)
               : "memory");
}

// Ends a batch of copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending batches of this thread are still under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace normgate

// Warpgroup tensor-core instructions, which only sm_90a has: four warps multiply together and go on while it runs.
#pragma once

#include <stdint.h>

#include "memory.cuh"

namespace normgate {

// Before a warpgroup's first wgmma, and after its registers were written.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a batch of wgmma.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kPending batches run.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Waits for all; the accumulators are named so that nothing reads them sooner.
template <int kRegisters>
__device__ __forceinline__ void wgmma_wait_for(float (&d)[kRegisters]) {
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Registers move between the warpgroups of a CTA: those that multiply hold sums, those that copy need few.
template <int kRegisters>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
// Either, from what a thread begins with.
template <int kRegisters, int kStart>
__device__ __forceinline__ void set_registers() {
  if constexpr (kRegisters > kStart) more_registers<kRegisters>();
  if constexpr (kRegisters < kStart) fewer_registers<kRegisters>();
}

// What tells wgmma where operand b lies: rows of 128 bytes, 16-byte chunks swizzled by row % 8, 8 rows 1024 bytes apart
// (PTX ISA, "matrix descriptor": address / 16 in bits 0..13, distance of 8 rows / 16 from bit 32, swizzle mode 1 = 128
// bytes from bit 62). rows is 1024-byte aligned; 16 elements further on is 32 bytes more.
__device__ __forceinline__ uint64_t wgmma_operand(const void* rows) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(rows));
  return static_cast<uint64_t>(address / 16 & 0x3fff) | uint64_t{1} << 16 | uint64_t{1024 / 16} << 32 |
         uint64_t{1} << 62;
}

// Byte offset of 16-byte chunk `chunk` of row `row`, swizzled as above.
__device__ __forceinline__ int swizzled128(int row, int chunk) { return row * 128 + ((chunk ^ row) & 7) * 16; }

// A warp's operand a of a 16 x 16 step out of shared memory: with group = lane / 4 and quad = lane % 4, pairs 0..3 are
// rows group and group + 8 at k = 2 * quad, then the same rows at k = 2 * quad + 8. first_row is a multiple of 16. Rows
// lie in boxes of kRows rows x 128 bytes, one after the other.
template <class T, int kRows>
__device__ __forceinline__ Vec8<T> load_operand(const char* rows, int first_row, int step) {
  Vec8<T> v;
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(T) == 2) {
    const int row = first_row + lane % 16;
    // Chunk 2 * step of a row lies where chunk 0 does but for two bits, so that steps share an address.
    const uint32_t address =
        static_cast<uint32_t>(__cvta_generic_to_shared(rows)) + (swizzled128(row, lane / 16) ^ step * 32);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "r"(address)
                 : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + lane / 4 + i % 2 * 8, k = step * 16 + lane % 4 * 2 + i / 2 * 8;
      const auto pair =
          *reinterpret_cast<const uint2*>(rows + k / 32 * kRows * 128 + swizzled128(row, k % 32 / 4) + k % 4 * 4);
      v.word[2 * i] = pair.x;
      v.word[2 * i + 1] = pair.y;
    }
  }
  return v;
}

// The same out of rows that lie `pitch` bytes apart, an odd number of 16-byte chunks (of 32 bytes for 4-byte elements),
// so that no two rows of an access meet in a bank.
template <class T>
__device__ __forceinline__ Vec8<T> load_operand_rows(const char* rows, int pitch, int first_row, int step) {
  Vec8<T> v;
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(T) == 2) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(rows)) + (first_row + lane % 16) * pitch +
                             step * 32 + lane / 16 * 16;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "r"(address)
                 : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + lane / 4 + i % 2 * 8, k = step * 16 + lane % 4 * 2 + i / 2 * 8;
      const auto pair = *reinterpret_cast<const uint2*>(rows + row * pitch + k * 4);
      v.word[2 * i] = pair.x;
      v.word[2 * i + 1] = pair.y;
    }
  }
  return v;
}

}  // namespace normgate

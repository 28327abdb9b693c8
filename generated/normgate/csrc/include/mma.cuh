// Tensor-core primitive: one m16n8k16 step on bf16 operands with fp32 accumulators.
#pragma once

#include <stdint.h>

namespace normgate {

// d[16 x 8] += a[16 x 16] * b[16 x 8]. With group = lane / 4 and quad = lane % 4, a thread holds of d: rows group
// (d[0], d[1]) and group + 8 (d[2], d[3]), columns 2 * quad and 2 * quad + 1.
//
// Which k a register stands for does not matter to a dot product as long as a and b agree. So both operands take k as
// it lies in memory: a thread's 16-byte load, k = 32 * block + 8 * quad .. + 7, feeds two steps, words 0 and 1 the
// first, 2 and 3 the second, with no shuffle and no shared memory.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                             uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Adds the squares of a 32-wide block of 8 rows, each element a sum of kTerms bf16 terms. They come from the tensor
// cores too: of rows * rows^T (the same registers as both operands, the upper 8 rows of the left empty) the diagonal.
// Widening, multiplying and adding each element by itself would take eight times as many instructions. A block's sum is
// added in fp32: the tensor cores cut off bits with each mma that adds to one accumulator, and rstd is to be as good as
// fp32.
template <int kTerms>
__device__ __forceinline__ void mma_squares(float (&sum)[2], const uint32_t (&row)[4][kTerms]) {
  float block[4] = {};
#pragma unroll
  for (int left = 0; left < kTerms; ++left) {
#pragma unroll
    for (int right = 0; right < kTerms; ++right) {
      mma_m16n8k16(block, row[0][left], 0u, row[1][left], 0u, row[0][right], row[1][right]);
      mma_m16n8k16(block, row[2][left], 0u, row[3][left], 0u, row[2][right], row[3][right]);
    }
  }
  sum[0] += block[0];
  sum[1] += block[1];
}

// The thread that holds row `group`'s place on the diagonal, and its value.
__device__ __forceinline__ bool holds_diagonal(int group, int quad) { return quad == group / 2; }
__device__ __forceinline__ float diagonal(const float (&sum)[2], int group) { return group % 2 == 0 ? sum[0] : sum[1]; }

}  // namespace normgate

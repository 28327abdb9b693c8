// What choosing experts is made of: scores, and an order of floats in which NaN is last.
#pragma once

#include <stdint.h>

#include "handover.cuh"
#include "numbers.cuh"

namespace normgate {

constexpr unsigned kWholeWarp = 0xffffffffu;

// The scores that models give a logit on its way to an expert's weight, within 3e-7 of the formula. Divisions,
// exponents and roots are the chip's approximations: exact ones cost a selection hundreds of cycles.
__device__ __forceinline__ float sigmoid(float logit) { return __fdividef(1.0f, 1.0f + __expf(-logit)); }

// sqrt(log(1 + exp(x))). With t = exp(-|x|) it is sqrt(max(x, 0) + log(1 + t)), and log(1 + t) = 2 atanh(t / (2 + t)),
// whose series keeps its relative precision where t is small; its argument is at most 1/3.
__device__ __forceinline__ float sqrtsoftplus(float logit) {
  const float t = __expf(-fabsf(logit));
  const float s = __fdividef(t, 2.0f + t), square = s * s;
  float series = 1.0f / 15.0f;
  series = fmaf(series, square, 1.0f / 13.0f);
  series = fmaf(series, square, 1.0f / 11.0f);
  series = fmaf(series, square, 1.0f / 9.0f);
  series = fmaf(series, square, 1.0f / 7.0f);
  series = fmaf(series, square, 1.0f / 5.0f);
  series = fmaf(series, square, 1.0f / 3.0f);
  series = fmaf(series, square, 1.0f);
  float root;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(fmaf(2.0f * s, series, fmaxf(logit, 0.0f))));
  return root;
}

// Has a weight that is read late come near: into L2, which all CTAs share.
__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// Padding may hold NaN: as a logit it counts as -inf.
__device__ __forceinline__ float finite_or_least(float logit) { return logit == logit ? logit : -INFINITY; }

// Unsigned numbers in the order of floats, equal for equal ones (-0 and 0 too). NaN comes before -inf; 0 is free.
__device__ __forceinline__ uint32_t ordered(float v) {
  if (v != v) return 1;
  const uint32_t bits = __float_as_uint(v + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The float of a number that `ordered` made; NaN for what made no float.
__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(kWholeWarp, v, offset);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(kWholeWarp, v, offset));
  return v;
}

// A logit that an earlier launch has written.
__device__ __forceinline__ float load_logit(const float* address) {
  float v;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(address) : "memory");
  return v;
}
__device__ __forceinline__ float load_logit(const bf16* address) {
  uint16_t bits;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(bits) : "l"(address) : "memory");
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

// Four logits on their way to the CTA that chooses experts.
__device__ __forceinline__ void pass4(float* place, float4 v) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(place), "f"(finite_or_least(v.x)),
               "f"(finite_or_least(v.y)), "f"(finite_or_least(v.z)), "f"(finite_or_least(v.w))
               : "memory");
}

// Takes a warp's logits from their places in a row as they come, and empties those.
template <int kCount>
__device__ __forceinline__ void take(float* row, const int (&expert)[kCount], float (&logit)[kCount]) {
  bool missing;
#pragma unroll 1
  do {
    missing = false;
#pragma unroll
    for (int i = 0; i < kCount; ++i) logit[i] = look(row + expert[i]);
#pragma unroll
    for (int i = 0; i < kCount; ++i) missing |= __float_as_uint(logit[i]) == kEmpty;
    // All lanes go on together: a warp that leaves a loop lane by lane shuffles 2 us longer afterwards (measured). And
    // lanes without an expert of their own look at another's place, which so is not emptied before.
  } while (__any_sync(kWholeWarp, missing));
#pragma unroll
  for (int i = 0; i < kCount; ++i) empty(row + expert[i]);
}

__device__ __forceinline__ void store_weight(float* address, float v) { *address = v; }
__device__ __forceinline__ void store_weight(bf16* address, float v) { *address = __float2bfloat16_rn(v); }

}  // namespace normgate

// Number formats: widening, rounding, and exact splits into bf16 terms for the tensor cores.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "memory.cuh"

namespace normgate {

using bf16 = __nv_bfloat16;
using fp16 = __half;

// Elements 2 * i and 2 * i + 1 of eight, widened to fp32 (exact).
__device__ __forceinline__ float2 widen2(const Vec8<bf16>& v, int i) {
  return make_float2(__uint_as_float(v.word[i] << 16), __uint_as_float(v.word[i] & 0xffff0000u));
}
__device__ __forceinline__ float2 widen2(const Vec8<fp16>& v, int i) {
  return __half22float2(*reinterpret_cast<const __half2*>(&v.word[i]));
}
__device__ __forceinline__ float2 widen2(const Vec8<float>& v, int i) {
  return make_float2(__uint_as_float(v.word[2 * i]), __uint_as_float(v.word[2 * i + 1]));
}

__device__ __forceinline__ float widen(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float widen(fp16 v) { return __half2float(v); }
__device__ __forceinline__ float widen(float v) { return v; }

// Two fp32 rounded to nearest even and packed, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t round2(float2 v);
template <>
__device__ __forceinline__ uint32_t round2<bf16>(float2 v) {
  const __nv_bfloat162 r = __floats2bfloat162_rn(v.x, v.y);
  return *reinterpret_cast<const uint32_t*>(&r);
}
template <>
__device__ __forceinline__ uint32_t round2<fp16>(float2 v) {
  const __half2 r = __floats2half2_rn(v.x, v.y);
  return *reinterpret_cast<const uint32_t*>(&r);
}

// The value that rounding to T and widening again leaves.
template <class T>
__device__ __forceinline__ float2 through(float2 v) {
  Vec8<T> r;
  r.word[0] = round2<T>(v);
  return widen2(r, 0);
}

__device__ __forceinline__ float4 add4(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ __forceinline__ float4 scale4(float4 a, float s) { return make_float4(a.x * s, a.y * s, a.z * s, a.w * s); }

// Four logits rounded to their dtype and stored at once.
__device__ __forceinline__ void store4(float* address, float4 v) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
}
__device__ __forceinline__ void store4(bf16* address, float4 v) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(round2<bf16>(make_float2(v.x, v.y))),
               "r"(round2<bf16>(make_float2(v.z, v.w)))
               : "memory");
}
__device__ __forceinline__ void store1(float* address, float v) { *address = v; }
__device__ __forceinline__ void store1(bf16* address, float v) { *address = __float2bfloat16_rn(v); }

// A pair of fp32 as a sum of kTerms bf16 pairs, the largest first: 8 significant bits a term, so two terms hold 16 bits
// and three hold all 24 of fp32.
template <int kTerms>
__device__ __forceinline__ void split2(float2 v, uint32_t (&terms)[kTerms]) {
#pragma unroll
  for (int i = 0; i < kTerms; ++i) {
    terms[i] = round2<bf16>(v);
    if (i + 1 < kTerms) {
      const float2 taken = through<bf16>(v);
      v = make_float2(v.x - taken.x, v.y - taken.y);
    }
  }
}

// a * b + c on packed bf16 pairs, rounded once.
__device__ __forceinline__ uint32_t fma2_bf16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// Packed pairs multiplied, rounded once. Adding -0 makes a plain product of bf16: sm_80 has no packed bf16 multiply.
template <class T>
__device__ __forceinline__ uint32_t mul2(uint32_t a, uint32_t b);
template <>
__device__ __forceinline__ uint32_t mul2<bf16>(uint32_t a, uint32_t b) {
  return fma2_bf16(a, b, 0x80008000u);
}
template <>
__device__ __forceinline__ uint32_t mul2<fp16>(uint32_t a, uint32_t b) {
  const __half2 r = __hmul2_rn(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&r);
}

// Packed pairs added, rounded once. For bf16 as a product with 1: sm_80 has no packed bf16 sum.
template <class T>
__device__ __forceinline__ uint32_t add2(uint32_t a, uint32_t b);
template <>
__device__ __forceinline__ uint32_t add2<bf16>(uint32_t a, uint32_t b) {
  return fma2_bf16(a, 0x3f803f80u, b);
}
template <>
__device__ __forceinline__ uint32_t add2<fp16>(uint32_t a, uint32_t b) {
  const __half2 r = __hadd2_rn(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&r);
}

// The product of two bf16 has at most 16 significant bits, so two bf16 terms hold it exactly: the rounded product, and
// what the rounding left (one fused multiply-add).
__device__ __forceinline__ void product2_bf16(uint32_t a, uint32_t b, uint32_t (&terms)[2]) {
  terms[0] = mul2<bf16>(a, b);
  terms[1] = fma2_bf16(a, b, terms[0] ^ 0x80008000u);
}

}  // namespace normgate

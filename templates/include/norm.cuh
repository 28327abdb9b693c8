// RMSNorm in the three rounding orders that models use. rstd = 1 / sqrt(mean(x^2) + eps).
#pragma once

#include "numbers.cuh"

namespace normgate {

// 1 / sqrt(mean + eps) with the chip's reciprocal square root, as torch's own kernels take it (within 2 ulp of fp32).
__device__ __forceinline__ float inverse_rms(float sum_of_squares, int hidden_size, float eps) {
  return rsqrtf(sum_of_squares * (1.0f / static_cast<float>(hidden_size)) + eps);
}

// Order A (Llama lineage): xhat is rounded to the activation's dtype before the weight multiplies it.
struct NormA {
  // A pair of normed elements; pair i of eight weights.
  template <class T>
  __device__ static __forceinline__ uint32_t apply(float2 x, float rstd, const Vec8<T>& weight, int i) {
    return mul2<T>(round2<T>(make_float2(x.x * rstd, x.y * rstd)), weight.word[i]);
  }
  // What multiplies xhat on its way into the gate.
  __device__ static __forceinline__ float2 scale(float2 weight) { return weight; }
};

// Order B (DeepSeek-V4, gpt-oss): one rounding, after the weight.
struct NormB {
  template <class T>
  __device__ static __forceinline__ uint32_t apply(float2 x, float rstd, const Vec8<T>& weight, int i) {
    const float2 w = scale(widen2(weight, i));
    return round2<T>(make_float2(x.x * rstd * w.x, x.y * rstd * w.y));
  }
  __device__ static __forceinline__ float2 scale(float2 weight) { return weight; }
};

// Order G (Gemma lineage): weights are stored less one; one rounding.
struct NormG {
  template <class T>
  __device__ static __forceinline__ uint32_t apply(float2 x, float rstd, const Vec8<T>& weight, int i) {
    const float2 w = scale(widen2(weight, i));
    return round2<T>(make_float2(x.x * rstd * w.x, x.y * rstd * w.y));
  }
  __device__ static __forceinline__ float2 scale(float2 weight) {
    return make_float2(1.0f + weight.x, 1.0f + weight.y);
  }
};

// Eight elements of a row, normed and rounded to the activation's dtype.
template <class Norm, class T>
__device__ __forceinline__ Vec8<T> norm8(const Vec8<T>& x, float rstd, const Vec8<T>& weight) {
  Vec8<T> normed;
#pragma unroll
  for (int i = 0; i < 4; ++i) normed.word[i] = Norm::template apply<T>(widen2(x, i), rstd, weight, i);
  return normed;
}

// A row of the residual stream and what is added to it, rounded as the model's sum of two tensors is: once, or, where
// one or both of them are multiplied first, after each product too.
template <class T>
__device__ __forceinline__ Vec8<T> add_rows(const Vec8<T>& residual, const Vec8<T>& x) {
  Vec8<T> sum;
#pragma unroll
  for (int i = 0; i < 4; ++i) sum.word[i] = add2<T>(residual.word[i], x.word[i]);
  return sum;
}
template <class T>
__device__ __forceinline__ Vec8<T> scale_row(const Vec8<T>& x, float multiplier) {
  Vec8<T> scaled;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 v = widen2(x, i);
    scaled.word[i] = round2<T>(make_float2(v.x * multiplier, v.y * multiplier));
  }
  return scaled;
}
template <class T>
__device__ __forceinline__ Vec8<T> add_scaled(const Vec8<T>& residual, const Vec8<T>& x, float multiplier) {
  return add_rows(residual, scale_row(x, multiplier));
}
template <class T>
__device__ __forceinline__ Vec8<T> sum_scaled(const Vec8<T>& residual, const Vec8<T>& x, float stream_multiplier,
                                              float multiplier) {
  return add_scaled(scale_row(residual, stream_multiplier), x, multiplier);
}

// Adds the squares of eight elements, summed for themselves first: long sums of one square after the other would lose
// bits.
template <class T>
__device__ __forceinline__ float add_squares(float sum, const Vec8<T>& x) {
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 v = widen2(x, i);
    squares = fmaf(v.x, v.x, squares);
    squares = fmaf(v.y, v.y, squares);
  }
  return sum + squares;
}

}  // namespace normgate

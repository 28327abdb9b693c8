// Global-memory access: weights that stream past once, activations that another kernel may just have written.
#pragma once

#include <stdint.h>

namespace normgate {

// Eight consecutive elements of a row: 16 bytes of a 2-byte type, 32 bytes of fp32.
template <class T>
struct Vec8 {
  static constexpr int kWords = 8 * sizeof(T) / 4;
  uint32_t word[kWords];
};

// Weights are read once by one CTA: keep them out of L1. Not `.nc`, though nothing writes them: ptxas moves those loads
// below griddepcontrol.wait, where they are no longer early (seen in SASS; the clobber alone does not hold them).
template <class T>
__device__ __forceinline__ Vec8<T> load_weights(const T* address) {
  Vec8<T> v;
#pragma unroll
  for (int i = 0; i < Vec8<T>::kWords; i += 4) {
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[i]), "=r"(v.word[i + 1]), "=r"(v.word[i + 2]), "=r"(v.word[i + 3])
                 : "l"(reinterpret_cast<const uint32_t*>(address) + i)
                 : "memory");
  }
  return v;
}

// Activations: the memory clobber keeps the load below griddepcontrol.wait; hoisted above it, it would read stale data.
template <class T>
__device__ __forceinline__ Vec8<T> load_activations(const T* address) {
  static_assert(sizeof(T) == 2, "activations are 2 bytes wide");
  Vec8<T> v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(address)
               : "memory");
  return v;
}

// Eight elements of shared memory, of 2 bytes each.
template <class T>
__device__ __forceinline__ Vec8<T> load_shared(const T* address) {
  static_assert(sizeof(T) == 2, "one 16-byte load");
  const uint4 words = *reinterpret_cast<const uint4*>(address);
  return {{words.x, words.y, words.z, words.w}};
}

template <class T>
__device__ __forceinline__ void store_activations(T* address, const Vec8<T>& v) {
  static_assert(sizeof(T) == 2, "activations are 2 bytes wide");
  // Left to itself, the compiler may make four stores of it (seen in PTX).
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.word[0]), "r"(v.word[1]),
               "r"(v.word[2]), "r"(v.word[3])
               : "memory");
}

template <class T>
__device__ __forceinline__ Vec8<T> zeros() {
  Vec8<T> v;
#pragma unroll
  for (int i = 0; i < Vec8<T>::kWords; ++i) v.word[i] = 0;
  return v;
}

}  // namespace normgate

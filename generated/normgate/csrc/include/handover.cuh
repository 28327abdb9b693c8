// How the CTAs of a launch tell each other single numbers, through memory that handover.h provides.
#pragma once

#include <stdint.h>

namespace normgate {

// A number has a place in memory, which is empty until the number is there and is emptied by who takes it. So a number
// is its own flag, and nobody waits for a fence. Empty is a NaN that arithmetic does not make (its are 0x7fffffff).
// (NCCL's low-latency protocol sends a flag beside each word; here the word can be its own.)
constexpr uint32_t kEmpty = 0xffffffffu;

__device__ __forceinline__ void empty(const void* place) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(place), "r"(kEmpty) : "memory");
}

__device__ __forceinline__ void pass(float* place, float v) {
  asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(place), "f"(v) : "memory");
}

// What is there now.
__device__ __forceinline__ float look(const float* place) {
  float v;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(v) : "l"(place) : "memory");
  return v;
}

// Takes a number as soon as it is there, and empties its place.
__device__ __forceinline__ float take(float* place) {
  float v;
  do {
    v = look(place);
  } while (__float_as_uint(v) == kEmpty);
  empty(place);
  return v;
}

// Draws the next of 0, 1, ... count - 1, or -1 when there is none left, from a place that was empty at first. `all`
// draw, each until it gets -1; the last of them empties the place again.
__device__ __forceinline__ int draw(float* place, int count, int all) {
  uint32_t before;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(place) : "memory");
  const int drawn = static_cast<int>(before + 1);  // empty is one less than 0
  if (drawn == count + all - 1) empty(place);
  return drawn < count ? drawn : -1;
}

// Draws a ticket as one of `all` CTAs. The last one may wait for the others: they are all running, so it cannot wait in
// vain, however few CTAs the chip has room for. It leaves the counter at 0, as it was.
__device__ __forceinline__ bool draws_last_ticket(uint32_t* tickets, uint32_t all) {
  uint32_t before;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(tickets) : "memory");
  if (before == all - 1) *tickets = 0;
  return before == all - 1;
}

}  // namespace normgate

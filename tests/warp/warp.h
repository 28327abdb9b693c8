// A warp on the CPU: its 32 lanes are coroutines of one thread, which take turns at each exchange. For code of kernels
// that lets lanes diverge nowhere but between exchanges; that they all come to the same one is checked.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>

#define __device__
#define __forceinline__ inline

using std::max;
using std::min;

struct float4 {
  float x, y, z, w;
};

struct bf16 {
  uint16_t bits;
};

struct Index {
  unsigned x;
};
static Index threadIdx;

namespace warp {

constexpr int kLanes = 32;
constexpr int kStackBytes = 64 * 1024;

static ucontext_t outside, lanes[kLanes];
static char stacks[kLanes][kStackBytes];
static void (*body)(const void*);
static const void* argument;

// What lanes show each other: one exchange's while the one before is still read.
struct Shown {
  const char* exchange;
  uint64_t value;
};
static Shown shown[2][kLanes];
static int exchanges[kLanes];

inline void go_on(int lane, ucontext_t* from) {
  threadIdx.x = static_cast<unsigned>(lane);
  swapcontext(from, &lanes[lane]);
}

inline void run_lane() {
  body(argument);
  const int lane = static_cast<int>(threadIdx.x);
  if (lane + 1 < kLanes) {
    go_on(lane + 1, &lanes[lane]);
  } else {
    swapcontext(&lanes[lane], &outside);
  }
}

// Runs `call` in all lanes.
inline void run(void (*call)(const void*), const void* given) {
  body = call;
  argument = given;
  for (int lane = 0; lane < kLanes; ++lane) {
    exchanges[lane] = 0;
    getcontext(&lanes[lane]);
    lanes[lane].uc_stack = {stacks[lane], 0, kStackBytes};
    lanes[lane].uc_link = nullptr;
    makecontext(&lanes[lane], run_lane, 0);
  }
  go_on(0, &outside);
}

// Shows a value, and returns what every lane has shown.
template <class T>
const Shown* exchange(const char* name, T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a lane shows a word");
  const int lane = static_cast<int>(threadIdx.x);
  Shown* all = shown[exchanges[lane]++ % 2];
  all[lane] = {name, 0};
  memcpy(&all[lane].value, &value, sizeof(T));
  go_on((lane + 1) % kLanes, &lanes[lane]);
  for (int other = 0; other < kLanes; ++other) {
    if (all[other].exchange != name && strcmp(all[other].exchange, name) != 0) {
      fprintf(stderr, "lane %d is at %s, lane %d at %s\n", lane, name, other, all[other].exchange);
      abort();
    }
  }
  return all;
}

template <class T>
T value_of(const Shown& one) {
  T value;
  memcpy(&value, &one.value, sizeof(T));
  return value;
}

}  // namespace warp

inline void __syncwarp() { warp::exchange("__syncwarp", 0); }

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return warp::value_of<T>(warp::exchange("__shfl_sync", value)[lane % warp::kLanes]);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int offset) {
  const unsigned lane = threadIdx.x;
  return warp::value_of<T>(warp::exchange("__shfl_xor_sync", value)[lane ^ static_cast<unsigned>(offset)]);
}

inline unsigned __ballot_sync(unsigned, bool holds) {
  const warp::Shown* all = warp::exchange("__ballot_sync", holds);
  unsigned found = 0;
  for (int lane = 0; lane < warp::kLanes; ++lane) found |= static_cast<unsigned>(warp::value_of<bool>(all[lane])) << lane;
  return found;
}

inline bool __any_sync(unsigned mask, bool holds) { return __ballot_sync(mask, holds) != 0; }

template <class T>
T __reduce_min_sync(unsigned, T value) {
  const warp::Shown* all = warp::exchange("__reduce_min_sync", value);
  for (int lane = 0; lane < warp::kLanes; ++lane) value = min(value, warp::value_of<T>(all[lane]));
  return value;
}

template <class T>
T __reduce_max_sync(unsigned, T value) {
  const warp::Shown* all = warp::exchange("__reduce_max_sync", value);
  for (int lane = 0; lane < warp::kLanes; ++lane) value = max(value, warp::value_of<T>(all[lane]));
  return value;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline uint32_t __float_as_uint(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof(v));
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float v;
  memcpy(&v, &bits, sizeof(v));
  return v;
}

inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float v) { return std::exp(v); }

inline bf16 __float2bfloat16_rn(float v) {
  const uint32_t bits = __float_as_uint(v);
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};  // of what is no NaN
}

// Where the CTAs of a launch hand logits to the one that chooses experts.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

namespace normgate {

constexpr int kTickets = 128;  // counters of a launch

struct Handover {
  uint32_t* tickets;  // kTickets of them, all zero
  float* places;      // for logits, all empty (selection.cuh)
};

// What no other launch uses at the same time: the stream's own, or, while it is captured, the capture's. A launch
// leaves it as it was. Memory is allocated where a stream or a capture asks for the first time, or for more places than
// before.
cudaError_t find_handover(cudaStream_t stream, int64_t places, Handover* handover);

}  // namespace normgate

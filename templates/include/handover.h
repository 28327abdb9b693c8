// The memory in which the CTAs of a launch tell each other numbers: logits to the one that chooses experts, and what a
// row's logits are to be multiplied by.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "normgate.h"

namespace normgate {

constexpr int kTickets = 128;  // counters of a launch

// Sets args->tickets, kTickets of them, all zero, and args->places, all empty (handover.cuh), to what no other launch
// uses at the same time: the stream's own, or, while it is captured, the capture's. A launch leaves it as it was.
// Memory is allocated where a stream or a capture asks for the first time, or for more places than before; that of a
// stream, some 17 KB, stays.
cudaError_t prepare_handover(int64_t places, normgate_args* args);

}  // namespace normgate

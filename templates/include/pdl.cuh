// Programmatic dependent launch (sm_90 and newer): start beside the kernel before, and let the kernel after start
// beside us.
#pragma once

namespace normgate {

// Lets the kernel after be launched once every CTA of this one has come here. It waits for the whole of this grid in
// its own wait_for_previous_kernel, so calling this first is safe and hides its launch.
__device__ __forceinline__ void launch_next_kernel() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Returns when the kernel before has finished and its writes can be seen. Without it, x would be read stale.
__device__ __forceinline__ void wait_for_previous_kernel() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

}  // namespace normgate

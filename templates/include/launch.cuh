// Host side of a launch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>

#include "normgate.h"

namespace normgate {

struct LaunchShape {
  int64_t ctas;
  int threads;
  int smem_bytes;  // of dynamic shared memory
  int cluster;     // CTAs of a cluster, 1 for none
  bool overlap;  // start while the kernel before still runs (programmatic dependent launch); the kernel waits by itself
};

// Asks for what a kernel does not have by itself: more shared memory, a larger cluster than every chip can run.
template <class... Parameters>
cudaError_t prepare(void (*kernel)(Parameters...), const cudaLaunchConfig_t& config, int cluster) {
  if (config.dynamicSmemBytes > 0) {  // with its static shared memory it may be more than 48 KiB
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(config.dynamicSmemBytes));
    if (error != cudaSuccess) return error;
  }
  if (cluster > 8) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
    int at_once = 0;
    if (cudaOccupancyMaxActiveClusters(&at_once, kernel, &config) != cudaSuccess || at_once == 0) {
      cudaGetLastError();
      return cudaErrorInvalidClusterSize;
    }
  }
  return cudaSuccess;
}

// Launches a kernel on args.stream. cudaErrorInvalidClusterSize where this chip has no place for its clusters.
template <auto kKernel, class... More>
cudaError_t launch(const LaunchShape& shape, const normgate_args& args, const More&... more) {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.ctas));
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.smem_bytes;
  config.stream = static_cast<cudaStream_t>(args.stream);
  config.attrs = attributes;
  if (shape.overlap) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = shape.cluster;
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  if (shape.smem_bytes > 0 || shape.cluster > 8) {
    // A bit for each of the first 64 devices: to ask each time costs the host microseconds.
    static std::atomic<uint64_t> prepared = 0;
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
    if (error == cudaSuccess && !(prepared.load(std::memory_order_relaxed) & bit)) {
      error = prepare(kKernel, config, shape.cluster);
      if (error == cudaSuccess) prepared.fetch_or(bit, std::memory_order_relaxed);
    }
    if (error != cudaSuccess) return error;
  }
  return cudaLaunchKernelEx(&config, kKernel, args, more...);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The gate's call, once a launch has written the residual stream's rows.
inline normgate_args from_residual_out(normgate_args args, int64_t hidden_size) {
  args.x = args.residual_out;
  args.x_row_stride = hidden_size;
  return args;
}

// The call with normed_x, as an earlier launch has written it, in the place of x.
inline normgate_args from_normed_x(normgate_args args, int64_t hidden_size) {
  args.x = args.normed_x;
  args.x_row_stride = hidden_size;
  return args;
}

}  // namespace normgate

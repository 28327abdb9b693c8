// Host side of a launch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "normgate.h"

namespace normgate {

struct LaunchShape {
  int64_t ctas;
  int threads;
  int smem_bytes;  // of dynamic shared memory
  int cluster;     // CTAs of a cluster, 1 for none
  bool overlap;  // start while the kernel before still runs (programmatic dependent launch); the kernel waits by itself
};

// Launches a kernel on args.stream.
template <class... More>
cudaError_t launch(void (*kernel)(normgate_args, More...), const LaunchShape& shape, const normgate_args& args,
                   const More&... more) {
  if (shape.smem_bytes > 0) {  // with its static shared memory it may be more than a kernel has without asking
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.smem_bytes);
    if (error != cudaSuccess) return error;
  }
  if (shape.cluster > 8) {  // more than every chip can run
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
  }
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
  return cudaLaunchKernelEx(&config, kernel, args, more...);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The call with normed_x, as an earlier launch has written it, in the place of x.
inline normgate_args from_normed_x(normgate_args args, int64_t hidden_size) {
  args.x = args.normed_x;
  args.x_row_stride = hidden_size;
  return args;
}

}  // namespace normgate

// Copies of whole tiles from global to shared memory by one thread (TMA, sm_90 and newer), and the maps that describe
// to them where a matrix lies.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "launch.cuh"
#include "numbers.cuh"

namespace normgate {

// Brings a map near, so that the first copy does not wait for it.
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Copies the map's box whose first element is (row, column) to shared memory, zeros for what lies outside the matrix,
// and counts its bytes at the barrier. The box lies as wgmma reads it: rows of 128 bytes, 16-byte chunks swizzled by
// row % 8.
__device__ __forceinline__ void copy_box(void* shared, const CUtensorMap& map, int row, int column, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// Copies `bytes` in a row, a multiple of 16, to shared memory and counts them at the barrier.
__device__ __forceinline__ void copy_bytes(void* shared, const void* global, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(bytes), "r"(barrier)
               : "memory");
}

// The map of a matrix of T, cut into boxes of box_rows rows x 128 bytes. Returns false where the driver refuses.
template <class T>
bool map_matrix(CUtensorMap& map, const void* data, int64_t rows, int64_t columns, int64_t row_stride, int box_rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  // Looked up, not linked: the library has to load where there is no driver.
  static const auto encode = [] {
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000, cudaEnableDefault, &found);
    return found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(symbol) : nullptr;
  }();
  const cuuint64_t size[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t stride[] = {static_cast<cuuint64_t>(row_stride) * sizeof(T)};
  const cuuint32_t box[] = {128 / sizeof(T), static_cast<cuuint32_t>(box_rows)}, every[] = {1, 1};
  // The type says how wide an element is; nothing but zeros is made of it.
  const auto type = sizeof(T) == 4 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return encode != nullptr &&
         encode(&map, type, 2, const_cast<void*>(data), size, stride, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// Launches a kernel that copies boxes of x.
template <class Activation, auto kKernel>
cudaError_t launch_with_map_of_x(const LaunchShape& shape, const normgate_args& args, int hidden_size, int box_tokens) {
  CUtensorMap x;
  return map_matrix<Activation>(x, args.x, args.num_tokens, hidden_size, args.x_row_stride, box_tokens)
             ? launch<kKernel>(shape, args, x)
             : cudaErrorInvalidValue;
}

// Launches a kernel that copies boxes of x and of the gate weights.
template <class Activation, class GateWeight, auto kKernel>
cudaError_t launch_with_maps(const LaunchShape& shape, const normgate_args& args, int hidden_size, int num_experts,
                             int box_tokens, int box_experts) {
  CUtensorMap x, gate_weight;
  const bool mapped =
      map_matrix<Activation>(x, args.x, args.num_tokens, hidden_size, args.x_row_stride, box_tokens) &&
      map_matrix<GateWeight>(gate_weight, args.gate_weight, num_experts, hidden_size, hidden_size, box_experts);
  return mapped ? launch<kKernel>(shape, args, x, gate_weight) : cudaErrorInvalidValue;
}

}  // namespace normgate

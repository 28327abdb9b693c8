// The C interface of libnormgate.so: for ctypes, for tests and tuners, and for engines that do not go through torch.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// One call. Every pointer is a device pointer; rows are dense except those of x.
struct normgate_args {
  void* router_logits;      // [num_tokens, num_experts]; unused by paths that return no logits
  void* normed_x;           // [num_tokens, hidden_size]; unused by gate-only kernels
  const void* x;            // [num_tokens, hidden_size], rows x_row_stride apart, each row 16-byte aligned
  const void* norm_weight;  // [hidden_size]; unused by gate-only kernels
  const void* gate_weight;  // [num_experts, hidden_size]
  const void* gate_bias;    // [num_experts], or null where the kernel has no bias
  void* workspace;          // normgate_workspace_bytes(...) bytes, or null where that is 0
  int64_t x_row_stride;     // in elements
  int64_t num_tokens;       // at least 1
  float eps;                // of the norm; unused by gate-only kernels
  void* stream;             // cudaStream_t

  // Of paths with a residual add: residual_out = stream_multiplier * residual + residual_multiplier * x is what the
  // norm reads.
  void* residual_out;           // [num_tokens, hidden_size]
  const void* residual;         // [num_tokens, hidden_size], rows residual_row_stride apart, each row 16-byte aligned
  int64_t residual_row_stride;  // in elements
  float residual_multiplier;    // where the kernel multiplies x
  float stream_multiplier;      // where it multiplies the residual too

  // Of paths with a selection.
  void* topk_weights;                      // [num_tokens, top_k]
  void* topk_ids;                          // [num_tokens, top_k]
  const void* e_score_correction_bias;     // [num_experts] of float, where the kernel has one
  const void* e_score_correction_bias_vl;  // likewise; the correction bias of the tokens in image_mask
  const void* image_mask;                  // [num_tokens] of bool, or null: none is an image's
  const void* per_expert_scale;            // [num_experts] of float, where the kernel has one
  const void* tid2eid;                     // [vocab_size, top_k] of int64_t in hash layers, else null
  const void* input_ids;                   // [num_tokens] of int64_t in hash layers
  int64_t vocab_size;
  float softcap;
  float renormalize_epsilon;  // weights over max(their sum + epsilon, floor)
  float renormalize_floor;
  float routed_scaling_factor;

  // What a launch's CTAs hand each other logits in: handover.h. Launchers fill it in.
  uint32_t* tickets;
  float* places;
};

// The function that serves num_tokens rows of a kernel on a chip of compute capability sm (90 for 9.0), or NULL.
const char* normgate_select(const char* kernel, int sm, int64_t num_tokens);

// The same without what needs a chip's whole room: where normgate_launch says cudaErrorInvalidClusterSize.
const char* normgate_select_portable(const char* kernel, int sm, int64_t num_tokens);

// Bytes of scratch that a function needs; 0 for most.
int64_t normgate_workspace_bytes(const char* function, int64_t num_tokens);

// Launches a function on args->stream. CTAs of a launch hand each other numbers in memory of the stream or, while it is
// captured, of the capture: what was made of one captured graph twice must not run at the same time.
//
// Returns the cudaError_t of the launch, cudaErrorInvalidValue for a number of tokens
// that normgate_select does not name it for, or -1 for an unknown function.
int normgate_launch(const char* function, const struct normgate_args* args);

// 1 if torch's current CUDA stream can be asked for (a CUDA build of torch is loaded), else 0.
int normgate_has_stream_symbol(void);

// What the library holds machine code for, as in "80,90,120".
const char* normgate_built_sms(void);

#ifdef __cplusplus
}
#endif

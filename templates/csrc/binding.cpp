// torch.ops.normgate.* on CUDA, on the LibTorch stable ABI: one library for torch 2.10 and newer. ops.py holds the
// schemas.
//
// The variant is chosen here, by token count, inside the op: eager calls stay cheap and torch.compile sees one op.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <atomic>
#include <optional>
#include <string>
#include <tuple>

#include "dispatch.h"

// Exported by CUDA builds of torch. Weak, so that the library also loads beside a CPU build, where it is null.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

extern "C" __attribute__((visibility("default"))) int normgate_has_stream_symbol(void) {
  return aoti_torch_get_current_cuda_stream != nullptr;
}

namespace normgate {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "normgate: ", what, ": ", cudaGetErrorString(error));
}

// Makes a device current, and the one before again at the end.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check_cuda(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != before_;
  }
  ~DeviceScope() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Compute capability of a device as one number, 90 for 9.0; asked for once a device.
int device_sm(int device) {
  constexpr int kCached = 64;
  static std::array<std::atomic<int>, kCached> cache = {};
  if (device < kCached) {
    if (const int sm = cache[device].load(std::memory_order_relaxed)) return sm;
  }
  int major = 0, minor = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  const int sm = 10 * major + minor;
  if (device < kCached) cache[device].store(sm, std::memory_order_relaxed);
  return sm;
}

const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Float: return "float32";
    default: return "another dtype";
  }
}

std::optional<Dtype> dtype_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Half: return Dtype::kFloat16;
    case ScalarType::Float: return Dtype::kFloat32;
    default: return std::nullopt;
  }
}

bool is_aligned(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0; }

// A weight: on x's device, dense, 16-byte aligned.
void check_weight(const char* name, const Tensor& weight, const Tensor& x) {
  STD_TORCH_CHECK(weight.is_cuda() && weight.get_device_index() == x.get_device_index(), "normgate: ", name,
                  " is on another device than x; expected the same");
  STD_TORCH_CHECK(weight.is_contiguous(), "normgate: ", name, " has strides; expected a contiguous tensor");
  STD_TORCH_CHECK(is_aligned(weight), "normgate: ", name,
                  " starts at an address that is no multiple of 16 bytes; expected one");
}

void check_arguments(const Tensor& x, const Tensor& gate_weight, const std::optional<Tensor>& gate_bias,
                     ScalarType logits) {
  STD_TORCH_CHECK(x.dim() == 2, "normgate: x has ", x.dim(), " dimensions; expected [num_tokens, hidden_size]");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16 || x.scalar_type() == ScalarType::Half, "normgate: x is ",
                  name_of(x.scalar_type()), "; expected bfloat16 or float16");
  STD_TORCH_CHECK(x.size(1) == 0 || x.stride(1) == 1, "normgate: x has stride ", x.stride(1),
                  " in its last dimension; expected 1");
  STD_TORCH_CHECK(gate_weight.dim() == 2 && gate_weight.size(1) == x.size(1),
                  "normgate: gate_weight's shape does not fit x; ", "expected [num_experts, ", x.size(1), "]");
  STD_TORCH_CHECK(dtype_of(gate_weight.scalar_type()), "normgate: gate_weight is ", name_of(gate_weight.scalar_type()),
                  "; expected bfloat16, float16 or float32");
  check_weight("gate_weight", gate_weight, x);
  if (gate_bias) {
    STD_TORCH_CHECK(gate_bias->dim() == 1 && gate_bias->size(0) == gate_weight.size(0),
                    "normgate: gate_bias's shape does not fit gate_weight; expected [", gate_weight.size(0), "]");
    STD_TORCH_CHECK(gate_bias->scalar_type() == gate_weight.scalar_type(), "normgate: gate_bias is ",
                    name_of(gate_bias->scalar_type()), "; expected gate_weight's ", name_of(gate_weight.scalar_type()));
    check_weight("gate_bias", *gate_bias, x);
  }
  STD_TORCH_CHECK(logits == ScalarType::Float || logits == ScalarType::BFloat16, "normgate: logits_dtype is ",
                  name_of(logits), "; expected float32 or bfloat16");
}

// A dense tensor on x's device. Through the shim: torch::stable::new_empty goes by the dispatcher, which takes longer.
Tensor empty(const Tensor& x, int64_t rows, int64_t columns, ScalarType dtype) {
  const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
  const int32_t type = dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                       : dtype == ScalarType::Half   ? aoti_torch_dtype_float16()
                                                     : aoti_torch_dtype_float32();
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(2, sizes, strides, type, aoti_torch_device_type_cuda(), x.get_device_index(), &handle));
  return Tensor(handle);
}

// Rows that 16-byte loads can read: x itself, or a dense copy of it.
Tensor readable_rows(const Tensor& x) {
  if (is_aligned(x) && x.stride(0) % 8 == 0 && (x.stride(0) >= x.size(1) || x.size(0) <= 1)) return x;
  Tensor rows = empty(x, x.size(0), x.size(1), x.scalar_type());
  torch::stable::copy_(rows, x);
  return rows;
}

// Launches the variant for these rows. False when no generated kernel serves the shape or the chip.
bool launch(const Problem& problem, const Tensor& x, const Tensor* norm_weight, const Tensor& gate_weight,
            const std::optional<Tensor>& gate_bias, double eps, const Tensor* normed_x, const Tensor& router_logits) {
  const Kernel* kernel = find_kernel(problem);
  if (kernel == nullptr) return false;
  const int device = x.get_device_index();
  const int64_t num_tokens = x.size(0);
  const Variant* variant = find_variant(*kernel, device_sm(device), num_tokens);
  if (variant == nullptr) return false;

  STD_TORCH_CHECK(
      normgate_has_stream_symbol(),
      "normgate: this process's torch is not a CUDA build, so it has no current stream; expected a CUDA build");
  const DeviceScope scope(device);
  const Tensor rows = readable_rows(x);
  std::optional<Tensor> workspace;
  if (const int64_t bytes = variant->workspace_bytes_per_token * num_tokens) {
    workspace = torch::stable::new_empty(x, {bytes}, ScalarType::Byte);
  }
  normgate_args args = {};
  args.router_logits = router_logits.mutable_data_ptr();
  args.normed_x = normed_x ? normed_x->mutable_data_ptr() : nullptr;
  args.x = rows.const_data_ptr();
  args.norm_weight = norm_weight ? norm_weight->const_data_ptr() : nullptr;
  args.gate_weight = gate_weight.const_data_ptr();
  args.gate_bias = gate_bias ? gate_bias->const_data_ptr() : nullptr;
  args.workspace = workspace ? workspace->mutable_data_ptr() : nullptr;
  args.x_row_stride = rows.stride(0);
  args.num_tokens = num_tokens;
  args.eps = static_cast<float>(eps);
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &args.stream) == TORCH_SUCCESS,
                  "normgate: torch has no current stream for device ", device);
  cudaError_t error = variant->launch(args);
  if (error == cudaErrorInvalidClusterSize) {  // chips of one SM differ in how large a cluster they have room for
    variant = find_portable_variant(*kernel, device_sm(device), num_tokens);
    if (variant == nullptr) return false;
    error = variant->launch(args);
  }
  check_cuda(error, variant->function);
  return true;
}

std::tuple<Tensor, Tensor> norm_gate(const Tensor& x, const Tensor& norm_weight, const Tensor& gate_weight,
                                     const std::optional<Tensor>& gate_bias, double eps, const std::string& norm_order,
                                     const std::string& logits_from, ScalarType logits_dtype) {
  check_arguments(x, gate_weight, gate_bias, logits_dtype);
  STD_TORCH_CHECK(norm_weight.dim() == 1 && norm_weight.size(0) == x.size(1),
                  "normgate: norm_weight's shape does not fit x; expected [", x.size(1), "]");
  STD_TORCH_CHECK(norm_weight.scalar_type() == x.scalar_type(), "normgate: norm_weight is ",
                  name_of(norm_weight.scalar_type()), "; expected x's ", name_of(x.scalar_type()));
  check_weight("norm_weight", norm_weight, x);
  STD_TORCH_CHECK(eps >= 0, "normgate: eps is ", eps, "; expected 0 or more");
  STD_TORCH_CHECK(norm_order == "A" || norm_order == "B" || norm_order == "G", "normgate: norm_order is '", norm_order,
                  "'; expected 'A', 'B' or 'G'");
  STD_TORCH_CHECK(logits_from == "unrounded" || logits_from == "rounded", "normgate: logits_from is '", logits_from,
                  "'; expected 'unrounded' or 'rounded'");

  Tensor normed_x = empty(x, x.size(0), x.size(1), x.scalar_type());
  Tensor router_logits = empty(x, x.size(0), gate_weight.size(0), logits_dtype);
  if (x.size(0) == 0) return {normed_x, router_logits};
  const Problem problem = {x.size(1),
                           gate_weight.size(0),
                           *dtype_of(x.scalar_type()),
                           *dtype_of(gate_weight.scalar_type()),
                           *dtype_of(logits_dtype),
                           norm_order[0],
                           logits_from == "rounded",
                           gate_bias.has_value()};
  if (launch(problem, x, &norm_weight, gate_weight, gate_bias, eps, &normed_x, router_logits)) {
    return {normed_x, router_logits};
  }
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 8> stack = {from(x),   from(norm_weight), from(gate_weight), from(gate_bias),
                                       from(eps), from(norm_order),  from(logits_from), from(logits_dtype)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("normgate::norm_gate_reference", "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

Tensor gate(const Tensor& x, const Tensor& gate_weight, const std::optional<Tensor>& gate_bias,
            ScalarType logits_dtype) {
  check_arguments(x, gate_weight, gate_bias, logits_dtype);
  Tensor router_logits = empty(x, x.size(0), gate_weight.size(0), logits_dtype);
  if (x.size(0) == 0) return router_logits;
  const Problem problem = {x.size(1),
                           gate_weight.size(0),
                           *dtype_of(x.scalar_type()),
                           *dtype_of(gate_weight.scalar_type()),
                           *dtype_of(logits_dtype),
                           '-',
                           false,
                           gate_bias.has_value()};
  if (launch(problem, x, nullptr, gate_weight, gate_bias, 0.0, nullptr, router_logits)) return router_logits;
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack = {from(x), from(gate_weight), from(gate_bias), from(logits_dtype)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("normgate::gate_reference", "", stack.data(), TORCH_ABI_VERSION));
  return to<Tensor>(stack[0]);
}

}  // namespace
}  // namespace normgate

STABLE_TORCH_LIBRARY_IMPL(normgate, CUDA, library) {
  library.impl("norm_gate", TORCH_BOX(&normgate::norm_gate));
  library.impl("gate", TORCH_BOX(&normgate::gate));
}

// The operators on CUDA, on the LibTorch stable ABI: one library for torch 2.10 and newer. ops.py holds the
// schemas.
//
// The variant is chosen here, by token count, inside the op: eager calls stay cheap and torch.compile sees one op.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <atomic>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "dispatch.h"
#include "ops.h"

// Exported by CUDA builds of torch. Weak, so that the library also loads beside a CPU build, where it is null.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

extern "C" __attribute__((visibility("default"))) int normgate_has_stream_symbol(void) {
  return aoti_torch_get_current_cuda_stream != nullptr;
}

namespace normgate {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// CUDA remembers an error until somebody asks: left there, torch's next launch check would say it of an innocent
// kernel.
void forget_error() { static_cast<void>(cudaGetLastError()); }

void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) forget_error();
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
    case ScalarType::Double: return "float64";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
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

// As messages show them: "[4, 7168]", "cuda:0".
template <class Sizes>
std::string listed(const Sizes& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

// A tensor with what checks and launches ask of it, read once: each question to a tensor goes through the shim. The
// tensor outlives it.
class Facts {
 public:
  explicit Facts(const Tensor& of)
      : tensor(of),
        sizes_(of.sizes()),
        strides_(of.strides()),
        dtype_(of.scalar_type()),
        is_cuda_(of.is_cuda()),
        device_(of.get_device_index()) {}

  const Tensor& tensor;

  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  auto sizes() const { return sizes_; }
  auto strides() const { return strides_; }
  int64_t size(int i) const { return sizes_[i]; }
  int64_t stride(int i) const { return strides_[i]; }
  ScalarType scalar_type() const { return dtype_; }
  bool is_cuda() const { return is_cuda_; }
  int device() const { return device_; }
  const void* data() const { return tensor.const_data_ptr(); }

 private:
  torch::headeronly::IntHeaderOnlyArrayRef sizes_, strides_;
  ScalarType dtype_;
  bool is_cuda_;
  int device_;
};

std::optional<Facts> facts_of(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Facts>(*tensor) : std::nullopt;
}

const void* data_of(const std::optional<Facts>& tensor) { return tensor ? tensor->data() : nullptr; }

std::string device_of(const Facts& tensor) {
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.device()) : "no CUDA device";
}

void check_device(const char* name, const Facts& tensor, const Facts& x) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.device() == x.device(), "normgate: ", name, " is on ", device_of(tensor),
                  "; expected ", device_of(x), ", where x is");
}

void check_dense(const char* name, const Facts& tensor) {
  STD_TORCH_CHECK(tensor.tensor.is_contiguous(), "normgate: ", name, " has strides ", listed(tensor.strides()),
                  "; expected a contiguous tensor");
}

bool is_aligned(const Facts& tensor) { return reinterpret_cast<uintptr_t>(tensor.data()) % 16 == 0; }

// A weight: on x's device, dense, 16-byte aligned.
void check_weight(const char* name, const Facts& weight, const Facts& x) {
  check_device(name, weight, x);
  check_dense(name, weight);
  STD_TORCH_CHECK(is_aligned(weight), "normgate: ", name,
                  " starts at an address that is no multiple of 16 bytes; expected one");
}

void check_arguments(const Facts& x, const Facts& gate_weight, const std::optional<Facts>& gate_bias,
                     ScalarType logits) {
  STD_TORCH_CHECK(x.is_cuda(), "normgate: x is on no CUDA device; expected one, as other arguments are");
  STD_TORCH_CHECK(x.dim() == 2, "normgate: x has shape ", listed(x.sizes()), "; expected [num_tokens, hidden_size]");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16 || x.scalar_type() == ScalarType::Half, "normgate: x is ",
                  name_of(x.scalar_type()), "; expected bfloat16 or float16");
  STD_TORCH_CHECK(x.size(1) == 0 || x.stride(1) == 1, "normgate: x has stride ", x.stride(1),
                  " in its last dimension; expected 1");
  STD_TORCH_CHECK(gate_weight.dim() == 2 && gate_weight.size(1) == x.size(1), "normgate: gate_weight has shape ",
                  listed(gate_weight.sizes()), "; expected [num_experts, ", x.size(1), "]");
  STD_TORCH_CHECK(dtype_of(gate_weight.scalar_type()), "normgate: gate_weight is ", name_of(gate_weight.scalar_type()),
                  "; expected bfloat16, float16 or float32");
  check_weight("gate_weight", gate_weight, x);
  if (gate_bias) {
    STD_TORCH_CHECK(gate_bias->dim() == 1 && gate_bias->size(0) == gate_weight.size(0),
                    "normgate: gate_bias has shape ", listed(gate_bias->sizes()), "; expected [", gate_weight.size(0),
                    "]");
    STD_TORCH_CHECK(gate_bias->scalar_type() == gate_weight.scalar_type(), "normgate: gate_bias is ",
                    name_of(gate_bias->scalar_type()), "; expected gate_weight's ", name_of(gate_weight.scalar_type()));
    check_weight("gate_bias", *gate_bias, x);
  }
  STD_TORCH_CHECK(logits == ScalarType::Float || logits == ScalarType::BFloat16, "normgate: logits_dtype is ",
                  name_of(logits), "; expected float32 or bfloat16");
}

// A dense tensor on x's device. Through the shim: torch::stable::new_empty goes by the dispatcher, which takes longer.
Tensor empty(const Facts& x, int64_t rows, int64_t columns, ScalarType dtype) {
  const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
  const int32_t type = dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                       : dtype == ScalarType::Half   ? aoti_torch_dtype_float16()
                       : dtype == ScalarType::Int    ? aoti_torch_dtype_int32()
                       : dtype == ScalarType::Long   ? aoti_torch_dtype_int64()
                                                     : aoti_torch_dtype_float32();
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(2, sizes, strides, type, aoti_torch_device_type_cuda(), x.device(), &handle));
  return Tensor(handle);
}

// Rows that 16-byte loads can read: x itself, or a dense copy of it.
Tensor readable_rows(const Facts& x) {
  if (is_aligned(x) && x.stride(0) % 8 == 0 && (x.stride(0) >= x.size(1) || x.size(0) <= 1)) return x.tensor;
  Tensor rows = empty(x, x.size(0), x.size(1), x.scalar_type());
  torch::stable::copy_(rows, x.tensor);
  return rows;
}

// Launches the variant for these rows, args being filled in but for rows, workspace and stream. False when no generated
// kernel serves the shape or the chip.
bool launch(const Problem& problem, const Facts& x, const Facts* residual, normgate_args args) {
  const Kernel* kernel = find_kernel(problem);
  if (kernel == nullptr) return false;
  const int device = x.device();
  const int64_t num_tokens = x.size(0);
  const Variant* variant = find_variant(*kernel, device_sm(device), num_tokens);
  if (variant == nullptr) return false;

  STD_TORCH_CHECK(
      normgate_has_stream_symbol(),
      "normgate: this process's torch is not a CUDA build, so it has no current stream; expected a CUDA build");
  const DeviceScope scope(device);
  const Tensor rows = readable_rows(x);
  args.x = rows.const_data_ptr();
  args.x_row_stride = rows.stride(0);
  args.num_tokens = num_tokens;
  std::optional<Tensor> residual_rows;
  if (residual != nullptr) {
    residual_rows = readable_rows(*residual);
    args.residual = residual_rows->const_data_ptr();
    args.residual_row_stride = residual_rows->stride(0);
  }
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &args.stream) == TORCH_SUCCESS,
                  "normgate: torch has no current stream for device ", device);
  const auto launch_with_workspace = [&] {
    std::optional<Tensor> workspace;
    if (const int64_t bytes = variant->workspace_bytes_per_token * num_tokens) {
      workspace = empty(x, 1, (bytes + 3) / 4, ScalarType::Float);
      args.workspace = workspace->mutable_data_ptr();
    }
    return variant->launch(args);
  };
  cudaError_t error = launch_with_workspace();
  if (error == cudaErrorInvalidClusterSize) {  // chips of one SM differ in how large a cluster they have room for
    forget_error();
    variant = find_portable_variant(*kernel, device_sm(device), num_tokens);
    if (variant == nullptr) return false;
    error = launch_with_workspace();
  }
  check_cuda(error, variant->function);
  return true;
}

void check_norm(const Facts& x, const Facts& norm_weight, double eps, const std::string& norm_order,
                const std::string& logits_from) {
  STD_TORCH_CHECK(norm_weight.dim() == 1 && norm_weight.size(0) == x.size(1), "normgate: norm_weight has shape ",
                  listed(norm_weight.sizes()), "; expected [", x.size(1), "]");
  STD_TORCH_CHECK(norm_weight.scalar_type() == x.scalar_type(), "normgate: norm_weight is ",
                  name_of(norm_weight.scalar_type()), "; expected x's ", name_of(x.scalar_type()));
  check_weight("norm_weight", norm_weight, x);
  STD_TORCH_CHECK(eps >= 0, "normgate: eps is ", eps, "; expected 0 or more");
  STD_TORCH_CHECK(norm_order == "A" || norm_order == "B" || norm_order == "G", "normgate: norm_order is '", norm_order,
                  "'; expected 'A', 'B' or 'G'");
  STD_TORCH_CHECK(logits_from == "unrounded" || logits_from == "rounded", "normgate: logits_from is '", logits_from,
                  "'; expected 'unrounded' or 'rounded'");
}

// norm_order '-': no norm.
Problem gate_problem(const Facts& x, const Facts& gate_weight, bool gate_bias, char norm_order,
                     const std::string& logits_from, ScalarType logits_dtype) {
  return {x.size(1),
          gate_weight.size(0),
          *dtype_of(x.scalar_type()),
          *dtype_of(gate_weight.scalar_type()),
          *dtype_of(logits_dtype),
          norm_order,
          norm_order != '-' && logits_from == "rounded",
          gate_bias};
}

std::tuple<Tensor, Tensor> norm_gate(const Tensor& x_tensor, const Tensor& norm_weight_tensor,
                                     const Tensor& gate_weight_tensor, const std::optional<Tensor>& gate_bias_tensor,
                                     double eps, const std::string& norm_order, const std::string& logits_from,
                                     ScalarType logits_dtype) {
  const Facts x(x_tensor), norm_weight(norm_weight_tensor), gate_weight(gate_weight_tensor);
  const std::optional<Facts> gate_bias = facts_of(gate_bias_tensor);
  check_arguments(x, gate_weight, gate_bias, logits_dtype);
  check_norm(x, norm_weight, eps, norm_order, logits_from);

  Tensor normed_x = empty(x, x.size(0), x.size(1), x.scalar_type());
  Tensor router_logits = empty(x, x.size(0), gate_weight.size(0), logits_dtype);
  if (x.size(0) == 0) return {normed_x, router_logits};
  normgate_args args = {};
  args.router_logits = router_logits.mutable_data_ptr();
  args.normed_x = normed_x.mutable_data_ptr();
  args.norm_weight = norm_weight.data();
  args.gate_weight = gate_weight.data();
  args.gate_bias = data_of(gate_bias);
  args.eps = static_cast<float>(eps);
  if (launch(gate_problem(x, gate_weight, gate_bias.has_value(), norm_order[0], logits_from, logits_dtype), x, nullptr,
             args)) {
    return {normed_x, router_logits};
  }
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 8> stack = {
      from(x_tensor), from(norm_weight_tensor), from(gate_weight_tensor), from(gate_bias_tensor),
      from(eps),      from(norm_order),         from(logits_from),        from(logits_dtype)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(NORMGATE_QUALIFIED("norm_gate_reference"), "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// What most models' layers ask for. An eager call pays for each argument, so these have the fewest.
template <char kNormOrder>
std::tuple<Tensor, Tensor> norm_gate_in_order(const Tensor& x, const Tensor& norm_weight, const Tensor& gate_weight,
                                              double eps) {
  return norm_gate(x, norm_weight, gate_weight, std::nullopt, eps, std::string(1, kNormOrder), "unrounded",
                   ScalarType::Float);
}

Tensor gate(const Tensor& x_tensor, const Tensor& gate_weight_tensor, const std::optional<Tensor>& gate_bias_tensor,
            ScalarType logits_dtype) {
  const Facts x(x_tensor), gate_weight(gate_weight_tensor);
  const std::optional<Facts> gate_bias = facts_of(gate_bias_tensor);
  check_arguments(x, gate_weight, gate_bias, logits_dtype);
  Tensor router_logits = empty(x, x.size(0), gate_weight.size(0), logits_dtype);
  if (x.size(0) == 0) return router_logits;
  normgate_args args = {};
  args.router_logits = router_logits.mutable_data_ptr();
  args.gate_weight = gate_weight.data();
  args.gate_bias = data_of(gate_bias);
  if (launch(gate_problem(x, gate_weight, gate_bias.has_value(), '-', "unrounded", logits_dtype), x, nullptr, args)) {
    return router_logits;
  }
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack = {from(x_tensor), from(gate_weight_tensor), from(gate_bias_tensor),
                                       from(logits_dtype)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(NORMGATE_QUALIFIED("gate_reference"), "", stack.data(), TORCH_ABI_VERSION));
  return to<Tensor>(stack[0]);
}

// The enumerator that stands beside a word.
template <class T>
T enumerator(const char* argument, const std::string& word, std::initializer_list<std::pair<const char*, T>> known) {
  for (const auto& [name, value] : known) {
    if (word == name) return value;
  }
  std::string names;
  for (const auto& [name, value] : known) names += (names.empty() ? "'" : ", '") + std::string(name) + "'";
  STD_TORCH_CHECK(false, "normgate: ", argument, " is '", word, "'; expected one of ", names);
}

// Shape, dtype, device and density of an argument of the selection; rows -1: any number, columns -1: none.
void check_tensor(const char* name, const Facts& tensor, const Facts& x, ScalarType dtype, int64_t rows,
                  int64_t columns) {
  const bool fits = columns < 0
                        ? tensor.dim() == 1 && tensor.size(0) == rows
                        : tensor.dim() == 2 && tensor.size(1) == columns && (rows < 0 || tensor.size(0) == rows);
  const auto expected = [=] {
    return (rows < 0 ? "vocab_size" : std::to_string(rows)) + (columns < 0 ? "" : ", " + std::to_string(columns));
  };
  STD_TORCH_CHECK(fits, "normgate: ", name, " has shape ", listed(tensor.sizes()), "; expected [", expected(), "]");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "normgate: ", name, " is ", name_of(tensor.scalar_type()),
                  "; expected ", name_of(dtype));
  check_device(name, tensor, x);
  check_dense(name, tensor);
}

// Whether so many experts can be chosen from so many, in these groups.
void check_routing(int64_t num_experts, int64_t top_k, int64_t n_group, int64_t topk_group,
                   const std::string& group_score) {
  constexpr int64_t kMostChosen = 32;  // one for each lane of the warp that chooses
  STD_TORCH_CHECK(top_k >= 1 && top_k <= kMostChosen, "normgate: top_k is ", top_k, "; expected 1 to ", kMostChosen);
  STD_TORCH_CHECK(n_group >= 1 && num_experts % n_group == 0, "normgate: n_group is ", n_group,
                  "; expected a divisor of ", num_experts, " experts");
  STD_TORCH_CHECK(topk_group >= 1 && topk_group <= n_group, "normgate: topk_group is ", topk_group,
                  "; expected 1 to n_group, ", n_group);
  const int64_t group_size = num_experts / n_group;
  if (n_group > 1) {
    const bool top2_sum = group_score == "top2_sum";
    STD_TORCH_CHECK(top2_sum || group_score == "max", "normgate: group_score is '", group_score,
                    "'; expected 'top2_sum' or 'max'");
    STD_TORCH_CHECK(!top2_sum || group_size >= 2, "normgate: n_group is ", n_group,
                    "; expected groups of 2 experts or more");
  }
  STD_TORCH_CHECK(top_k <= topk_group * group_size, "normgate: top_k is ", top_k, "; expected no more than the ",
                  topk_group * group_size, " experts that are chosen from");
}

using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

FiveTensors route(const Tensor& x_tensor, const std::optional<Tensor>& residual_tensor,
                  const std::optional<Tensor>& norm_weight_tensor, const Tensor& gate_weight_tensor,
                  const std::optional<Tensor>& gate_bias_tensor, const std::optional<Tensor>& e_score_correction_bias,
                  const std::optional<Tensor>& tid2eid, const std::optional<Tensor>& input_ids, double eps,
                  const std::string& norm_order, const std::string& logits_from, ScalarType logits_dtype,
                  bool returns_logits, double residual_multiplier, const std::string& scoring, int64_t top_k,
                  int64_t n_group, int64_t topk_group, const std::string& group_score, bool renormalize,
                  double renormalize_epsilon, double renormalize_floor, double routed_scaling_factor, double softcap,
                  ScalarType ids_dtype, ScalarType weights_dtype, double stream_multiplier,
                  const std::optional<Tensor>& e_score_correction_bias_vl, const std::optional<Tensor>& image_mask,
                  const std::optional<Tensor>& per_expert_scale) {
  const Facts x(x_tensor), gate_weight(gate_weight_tensor);
  const std::optional<Facts> residual = facts_of(residual_tensor), norm_weight = facts_of(norm_weight_tensor),
                             gate_bias = facts_of(gate_bias_tensor);
  check_arguments(x, gate_weight, gate_bias, logits_dtype);
  const int64_t num_tokens = x.size(0), num_experts = gate_weight.size(0);
  if (norm_weight) {
    check_norm(x, *norm_weight, eps, norm_order, logits_from);
  } else {
    STD_TORCH_CHECK(norm_order.empty(), "normgate: norm_order is '", norm_order, "'; expected '' without norm_weight");
  }
  if (residual) {
    STD_TORCH_CHECK(residual->dim() == 2 && residual->size(0) == num_tokens && residual->size(1) == x.size(1),
                    "normgate: residual has shape ", listed(residual->sizes()), "; expected [", num_tokens, ", ",
                    x.size(1), "]");
    STD_TORCH_CHECK(residual->scalar_type() == x.scalar_type(), "normgate: residual is ",
                    name_of(residual->scalar_type()), "; expected x's ", name_of(x.scalar_type()));
    check_device("residual", *residual, x);
    STD_TORCH_CHECK(x.size(1) == 0 || residual->stride(1) == 1, "normgate: residual has stride ", residual->stride(1),
                    " in its last dimension; expected 1");
  }
  STD_TORCH_CHECK(residual || residual_multiplier == 1.0, "normgate: residual_multiplier is ", residual_multiplier,
                  "; expected 1.0 without a residual");
  STD_TORCH_CHECK(residual || stream_multiplier == 1.0, "normgate: stream_multiplier is ", stream_multiplier,
                  "; expected 1.0 without a residual");
  Selection selection;
  selection.scoring = enumerator<Scoring>("scoring", scoring,
                                          {{"", Scoring::kNone},
                                           {"softmax", Scoring::kSoftmax},
                                           {"softmax_of_chosen", Scoring::kSoftmaxOfChosen},
                                           {"sigmoid", Scoring::kSigmoid},
                                           {"sqrtsoftplus", Scoring::kSqrtSoftplus}});
  const bool selects = selection.scoring != Scoring::kNone;
  if (!selects) {
    STD_TORCH_CHECK(returns_logits, "normgate: returns_logits is false; expected true without a scoring");
    STD_TORCH_CHECK(top_k == 0, "normgate: top_k is ", top_k, "; expected 0 without a scoring");
    STD_TORCH_CHECK(!e_score_correction_bias,
                    "normgate: e_score_correction_bias is given; expected none without a scoring");
    STD_TORCH_CHECK(!tid2eid, "normgate: tid2eid is given; expected none without a scoring");
    STD_TORCH_CHECK(!per_expert_scale, "normgate: per_expert_scale is given; expected none without a scoring");
  }
  STD_TORCH_CHECK(!e_score_correction_bias_vl || e_score_correction_bias || tid2eid,
                  "normgate: e_score_correction_bias_vl is given; expected none without e_score_correction_bias or "
                  "tid2eid");
  STD_TORCH_CHECK(!image_mask || e_score_correction_bias_vl,
                  "normgate: image_mask is given; expected none without e_score_correction_bias_vl");
  STD_TORCH_CHECK(!tid2eid || !e_score_correction_bias,
                  "normgate: tid2eid is given; expected none beside e_score_correction_bias");
  STD_TORCH_CHECK(!input_ids || tid2eid, "normgate: input_ids is given; expected none without tid2eid");
  STD_TORCH_CHECK(input_ids || !tid2eid, "normgate: input_ids is missing; expected a tensor beside tid2eid");
  if (selects) {
    check_routing(num_experts, top_k, n_group, topk_group, group_score);
    STD_TORCH_CHECK(renormalize_epsilon >= 0, "normgate: renormalize_epsilon is ", renormalize_epsilon,
                    "; expected 0 or more");
    STD_TORCH_CHECK(renormalize_floor >= 0, "normgate: renormalize_floor is ", renormalize_floor,
                    "; expected 0 or more");
    STD_TORCH_CHECK(routed_scaling_factor > 0, "normgate: routed_scaling_factor is ", routed_scaling_factor,
                    "; expected more than 0");
    STD_TORCH_CHECK(softcap >= 0, "normgate: softcap is ", softcap, "; expected 0 or more");
    STD_TORCH_CHECK(ids_dtype == ScalarType::Int || ids_dtype == ScalarType::Long, "normgate: ids_dtype is ",
                    name_of(ids_dtype), "; expected int32 or int64");
    STD_TORCH_CHECK(weights_dtype == ScalarType::Float || weights_dtype == ScalarType::BFloat16,
                    "normgate: weights_dtype is ", name_of(weights_dtype), "; expected float32 or bfloat16");
    selection.top_k = top_k;
    selection.correction_bias = e_score_correction_bias.has_value();
    selection.n_group = n_group;
    selection.topk_group = n_group > 1 ? topk_group : 1;
    if (n_group > 1) selection.group_score = group_score == "max" ? GroupScore::kMax : GroupScore::kTop2Sum;
    if (renormalize) {
      const bool bounded = renormalize_epsilon > 0 || renormalize_floor > 0;
      selection.renormalize = bounded ? Renormalize::kBounded : Renormalize::kSum;
    }
    selection.softcaps = softcap > 0;
    selection.hashes = tid2eid.has_value();
    selection.returns_logits = returns_logits;
    selection.ids = ids_dtype == ScalarType::Long ? Dtype::kInt64 : Dtype::kInt32;
    selection.weights = weights_dtype == ScalarType::BFloat16 ? Dtype::kBFloat16 : Dtype::kFloat32;
    selection.image_bias = e_score_correction_bias_vl.has_value();
    selection.scales_experts = per_expert_scale.has_value();
    const auto check_per_expert = [&](const char* name, const std::optional<Tensor>& tensor) {
      if (tensor) check_tensor(name, Facts(*tensor), x, ScalarType::Float, num_experts, -1);
    };
    check_per_expert("e_score_correction_bias", e_score_correction_bias);
    check_per_expert("e_score_correction_bias_vl", e_score_correction_bias_vl);
    check_per_expert("per_expert_scale", per_expert_scale);
    if (image_mask) check_tensor("image_mask", Facts(*image_mask), x, ScalarType::Bool, num_tokens, -1);
    if (tid2eid) {
      check_tensor("tid2eid", Facts(*tid2eid), x, ScalarType::Long, -1, top_k);
      STD_TORCH_CHECK(tid2eid->size(0) > 0, "normgate: tid2eid has no rows; expected one or more");
      check_tensor("input_ids", Facts(*input_ids), x, ScalarType::Long, num_tokens, -1);
    }
  }

  const auto tensor_if = [&](bool made, int64_t columns, ScalarType dtype) {
    if (made) return empty(x, num_tokens, columns, dtype);
    return torch::stable::new_empty(x_tensor, {0}, dtype);
  };
  Tensor normed_x = tensor_if(norm_weight.has_value(), x.size(1), x.scalar_type());
  Tensor residual_out = tensor_if(residual.has_value(), x.size(1), x.scalar_type());
  Tensor topk_weights = tensor_if(selects, top_k, weights_dtype);
  Tensor topk_ids = tensor_if(selects, top_k, ids_dtype);
  Tensor router_logits = tensor_if(returns_logits, num_experts, logits_dtype);
  if (num_tokens == 0) return {normed_x, residual_out, topk_weights, topk_ids, router_logits};

  Problem problem =
      gate_problem(x, gate_weight, gate_bias.has_value(), norm_weight ? norm_order[0] : '-', logits_from, logits_dtype);
  if (residual) {
    problem.residual = stream_multiplier != 1.0     ? Residual::kScaledSum
                       : residual_multiplier == 1.0 ? Residual::kAdd
                                                    : Residual::kScaledAdd;
  }
  problem.selection = selection;

  const auto address = [](const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; };
  normgate_args args = {};
  args.router_logits = router_logits.mutable_data_ptr();
  args.normed_x = normed_x.mutable_data_ptr();
  args.norm_weight = data_of(norm_weight);
  args.gate_weight = gate_weight.data();
  args.gate_bias = data_of(gate_bias);
  args.eps = static_cast<float>(eps);
  args.residual_out = residual_out.mutable_data_ptr();
  args.residual_multiplier = static_cast<float>(residual_multiplier);
  args.stream_multiplier = static_cast<float>(stream_multiplier);
  args.topk_weights = topk_weights.mutable_data_ptr();
  args.topk_ids = topk_ids.mutable_data_ptr();
  args.e_score_correction_bias = address(e_score_correction_bias);
  args.e_score_correction_bias_vl = address(e_score_correction_bias_vl);
  args.image_mask = address(image_mask);
  args.per_expert_scale = address(per_expert_scale);
  args.tid2eid = address(tid2eid);
  args.input_ids = address(input_ids);
  args.vocab_size = tid2eid ? tid2eid->size(0) : 0;
  args.softcap = static_cast<float>(softcap);
  args.renormalize_epsilon = static_cast<float>(renormalize_epsilon);
  args.renormalize_floor = static_cast<float>(renormalize_floor);
  args.routed_scaling_factor = static_cast<float>(routed_scaling_factor);
  if (launch(problem, x, residual ? &*residual : nullptr, args)) {
    return {normed_x, residual_out, topk_weights, topk_ids, router_logits};
  }
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 30> stack = {from(x_tensor),
                                        from(residual_tensor),
                                        from(norm_weight_tensor),
                                        from(gate_weight_tensor),
                                        from(gate_bias_tensor),
                                        from(e_score_correction_bias),
                                        from(tid2eid),
                                        from(input_ids),
                                        from(eps),
                                        from(norm_order),
                                        from(logits_from),
                                        from(logits_dtype),
                                        from(returns_logits),
                                        from(residual_multiplier),
                                        from(scoring),
                                        from(top_k),
                                        from(n_group),
                                        from(topk_group),
                                        from(group_score),
                                        from(renormalize),
                                        from(renormalize_epsilon),
                                        from(renormalize_floor),
                                        from(routed_scaling_factor),
                                        from(softcap),
                                        from(ids_dtype),
                                        from(weights_dtype),
                                        from(stream_multiplier),
                                        from(e_score_correction_bias_vl),
                                        from(image_mask),
                                        from(per_expert_scale)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(NORMGATE_QUALIFIED("route_reference"), "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2]), to<Tensor>(stack[3]), to<Tensor>(stack[4])};
}

}  // namespace
}  // namespace normgate

STABLE_TORCH_LIBRARY_IMPL(NORMGATE_OPS, CUDA, library) {
  library.impl("norm_gate", TORCH_BOX(&normgate::norm_gate));
  library.impl("norm_gate_a", TORCH_BOX(&normgate::norm_gate_in_order<'A'>));
  library.impl("norm_gate_b", TORCH_BOX(&normgate::norm_gate_in_order<'B'>));
  library.impl("norm_gate_g", TORCH_BOX(&normgate::norm_gate_in_order<'G'>));
  library.impl("gate", TORCH_BOX(&normgate::gate));
  library.impl("route", TORCH_BOX(&normgate::route));
}

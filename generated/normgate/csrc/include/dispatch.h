// The dispatch table's types. The table itself is generated: dispatch_table.cpp.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "normgate.h"

namespace normgate {

enum class Dtype : int8_t { kBFloat16, kFloat16, kFloat32, kInt32, kInt64 };
enum class Scoring : int8_t { kNone, kSoftmax, kSoftmaxOfChosen, kSigmoid, kSqrtSoftplus };
enum class GroupScore : int8_t { kNone, kTop2Sum, kMax };
enum class Residual : int8_t { kNone, kAdd, kScaledAdd, kScaledSum };  // what is added is multiplied, or both are
enum class Renormalize : int8_t { kNone, kSum, kBounded };             // bounded: by an epsilon or a floor

// How experts are chosen; kNone: they are not.
struct Selection {
  Scoring scoring = Scoring::kNone;
  int64_t top_k = 0;
  bool correction_bias = false;
  int64_t n_group = 1, topk_group = 1;
  GroupScore group_score = GroupScore::kNone;
  Renormalize renormalize = Renormalize::kNone;
  bool softcaps = false;
  bool hashes = false;  // layers may take their experts from tid2eid
  bool returns_logits = true;
  Dtype ids = Dtype::kInt32, weights = Dtype::kFloat32;
  bool image_bias = false;      // tokens of images have a correction bias of their own
  bool scales_experts = false;  // weights are multiplied by their expert's factor

  // Whether a kernel that has this can serve a call of `call`. One kernel serves a model's hash layers, whose experts
  // come from a table without a correction bias, and its other layers.
  bool serves(const Selection& call) const {
    return scoring == call.scoring && top_k == call.top_k && n_group == call.n_group && topk_group == call.topk_group &&
           group_score == call.group_score && renormalize == call.renormalize && softcaps == call.softcaps &&
           (call.hashes ? hashes : correction_bias == call.correction_bias) && returns_logits == call.returns_logits &&
           ids == call.ids && weights == call.weights && image_bias == call.image_bias &&
           scales_experts == call.scales_experts;
  }
};

// What a kernel computes; two models with the same problem share a kernel.
struct Problem {
  int64_t hidden_size;
  int64_t num_experts;
  Dtype activation, gate_weight, logits;
  char norm_order;  // 'A', 'B', 'G', or '-' for a gate alone
  bool rounded;     // the gate reads the normed row as it is written
  bool gate_bias;
  Residual residual = Residual::kNone;
  Selection selection = {};

  bool serves(const Problem& other) const {
    return hidden_size == other.hidden_size && num_experts == other.num_experts && activation == other.activation &&
           gate_weight == other.gate_weight && logits == other.logits && norm_order == other.norm_order &&
           rounded == other.rounded && gate_bias == other.gate_bias && residual == other.residual &&
           selection.serves(other.selection);
  }
};

struct Variant {
  const char* function;
  cudaError_t (*launch)(const normgate_args&);
  int64_t workspace_bytes_per_token;
  int64_t max_tokens;  // of a launch
};

// Stands for no limit.
constexpr int64_t kNoEnd = INT64_MAX;

// Tokens up to last_token (the last range: kNoEnd) go to a variant; null: to the reference composition.
struct Range {
  int64_t last_token;
  const Variant* variant;
};

template <class T>
struct Span {
  const T* data;
  int size;
  const T* begin() const { return data; }
  const T* end() const { return data + size; }
};

struct Group {
  Span<int> sm_targets;
  Span<Range> ranges;
  Span<Range> portable_ranges;  // for chips that run these targets' PTX, which lacks what only the targets have
  Span<Variant> variants;
};

struct Kernel {
  const char* name;
  Problem problem;
  Span<Group> groups;
};

extern const Span<Kernel> kKernels;
extern const Span<int> kBuiltSms;

// The kernel that serves a problem, or null.
const Kernel* find_kernel(const Problem& problem);

// The variant that serves num_tokens rows on a chip of compute capability sm, or null: then the reference composition
// does.
const Variant* find_variant(const Kernel& kernel, int sm, int64_t num_tokens);

// The same without what only sm's own chips can run, for one of them that has too little room for a variant's clusters.
const Variant* find_portable_variant(const Kernel& kernel, int sm, int64_t num_tokens);

}  // namespace normgate

// Look-ups in the dispatch table, and the C interface over them.
#include "dispatch.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

namespace normgate {
namespace {

bool is_built(int sm) { return std::find(kBuiltSms.begin(), kBuiltSms.end(), sm) != kBuiltSms.end(); }

// The group whose machine code a chip runs: a minimum, never a maximum. Machine code runs on later chips of its major
// version; the PTX of a kernel's newest target on all later chips.
const Group* find_group(const Kernel& kernel, int sm) {
  const auto newest_of = [&](const auto& fits) -> std::pair<int, const Group*> {
    int newest = 0;
    const Group* found = nullptr;
    for (const Group& group : kernel.groups) {
      for (int target : group.sm_targets) {
        if (target > newest && fits(target) && is_built(target)) {
          newest = target;
          found = &group;
        }
      }
    }
    return {newest, found};
  };
  const auto [own_sm, own] = newest_of([&](int target) { return target <= sm && target / 10 == sm / 10; });
  if (own != nullptr) return own;
  const auto [newest_sm, newest] = newest_of([](int) { return true; });
  return newest_sm <= sm ? newest : nullptr;
}

const Kernel* kernel_of(std::string_view name) {
  const auto found =
      std::find_if(kKernels.begin(), kKernels.end(), [&](const Kernel& kernel) { return name == kernel.name; });
  return found == kKernels.end() ? nullptr : found;
}

const char* name_of(const Variant* variant) { return variant ? variant->function : nullptr; }

const Variant* find_function(std::string_view function) {
  for (const Kernel& kernel : kKernels) {
    for (const Group& group : kernel.groups) {
      for (const Variant& variant : group.variants) {
        if (function == variant.function) return &variant;
      }
    }
  }
  return nullptr;
}

const Variant* variant_of(const Span<Range>& ranges, int64_t num_tokens) {
  const auto range = std::find_if(ranges.begin(), ranges.end(),
                                  [&](const Range& candidate) { return num_tokens <= candidate.last_token; });
  return range == ranges.end() ? nullptr : range->variant;
}

}  // namespace

const Kernel* find_kernel(const Problem& problem) {
  const auto found = std::find_if(kKernels.begin(), kKernels.end(),
                                  [&](const Kernel& kernel) { return kernel.problem.serves(problem); });
  return found == kKernels.end() ? nullptr : found;
}

const Variant* find_variant(const Kernel& kernel, int sm, int64_t num_tokens) {
  const Group* group = find_group(kernel, sm);
  if (group == nullptr) return nullptr;
  const bool native = std::find(group->sm_targets.begin(), group->sm_targets.end(), sm) != group->sm_targets.end();
  return variant_of(native ? group->ranges : group->portable_ranges, num_tokens);
}

const Variant* find_portable_variant(const Kernel& kernel, int sm, int64_t num_tokens) {
  const Group* group = find_group(kernel, sm);
  return group ? variant_of(group->portable_ranges, num_tokens) : nullptr;
}

}  // namespace normgate

#define NORMGATE_EXPORT extern "C" __attribute__((visibility("default")))

NORMGATE_EXPORT const char* normgate_select(const char* kernel, int sm, int64_t num_tokens) {
  const normgate::Kernel* found = normgate::kernel_of(kernel);
  return found ? normgate::name_of(normgate::find_variant(*found, sm, num_tokens)) : nullptr;
}

NORMGATE_EXPORT const char* normgate_select_portable(const char* kernel, int sm, int64_t num_tokens) {
  const normgate::Kernel* found = normgate::kernel_of(kernel);
  return found ? normgate::name_of(normgate::find_portable_variant(*found, sm, num_tokens)) : nullptr;
}

NORMGATE_EXPORT int64_t normgate_workspace_bytes(const char* function, int64_t num_tokens) {
  const normgate::Variant* variant = normgate::find_function(function);
  return variant ? variant->workspace_bytes_per_token * num_tokens : 0;
}

NORMGATE_EXPORT int normgate_launch(const char* function, const normgate_args* args) {
  const normgate::Variant* variant = normgate::find_function(function);
  if (variant == nullptr) return -1;
  if (args->num_tokens < 1 || args->num_tokens > variant->max_tokens) return cudaErrorInvalidValue;
  return variant->launch(*args);
}

NORMGATE_EXPORT const char* normgate_built_sms(void) {
  static const std::string text = [] {
    std::string joined;
    for (int sm : normgate::kBuiltSms) joined += (joined.empty() ? "" : ",") + std::to_string(sm);
    return joined;
  }();
  return text.c_str();
}

// The list of backends, and how one is chosen.
#include "backend.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdlib>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#if PAGEFILL_WITH_CUDA
#include "backends/cuda/cuda_backend.h"
#endif
#include "backends/reference/reference.h"
#include "checks.h"
#include "executor_internal.h"

namespace pagefill {
namespace {

// Best first. A backend is its folder and its line here.
std::span<const Backend* const> all_backends() {
  static const Backend* const backends[] = {
    cpu_backend(),
#if PAGEFILL_WITH_CUDA
    cuda_backend(),
#endif
    reference_backend()
  };
  return backends;
}

// A choice, and who made it.
struct Wish {
  std::string_view name = "auto";
  const char* source = "";
  bool is_auto() const { return name == "auto"; }
};

// The caller's word, else the environment's, else "auto".
Wish wish(std::string_view asked, const char* argument, const char* variable) {
  if (asked != "auto") return {asked, argument};
  const char* value = std::getenv(variable);
  return value == nullptr ? Wish{} : Wish{value, variable};
}

Status unknown(const Wish& wish, const std::vector<std::string>& known) {
  return Status(StatusCode::kInvalidArgument,
                fmt::format("{}: expected auto or {}, got \"{}\"", wish.source,
                            fmt::join(known, " or "), wish.name));
}

Status unavailable(const Wish& wish, std::string_view why) {
  return Status(StatusCode::kUnavailable,
                fmt::format("{}: {} is not available here: {}", wish.source, wish.name, why));
}

const char* memory_name(DeviceType memory) {
  return memory == DeviceType::kCpu ? "the CPU" : "a CUDA device";
}

// The best one for the memory of the tensors.
Result<const Backend*> best_backend(DeviceType memory) {
  std::string why = ": it was not compiled in";
  for (const Backend* backend : all_backends()) {
    if (backend->memory() != memory) continue;
    const std::string reason = backend->unavailable_reason();
    if (reason.empty()) return backend;
    why = fmt::format(": {} is not available here: {}", backend->name(), reason);
  }
  return Status(StatusCode::kUnsupported,
                fmt::format("tensors: expected memory that a backend works on, got memory of {}{}",
                            memory_name(memory), why));
}

Result<const Backend*> pick_backend(const Wish& wish, DeviceType memory) {
  if (wish.is_auto()) return best_backend(memory);
  std::vector<std::string> known;
  for (const Backend* backend : all_backends()) {
    if (wish.name == backend->name()) {
      const std::string why = backend->unavailable_reason();
      if (!why.empty()) return unavailable(wish, why);
      if (backend->memory() != memory) {
        return Status(StatusCode::kUnsupported,
                      fmt::format("{}: expected a backend that works on memory of {}, where the "
                                  "tensors are, got {}",
                                  wish.source, memory_name(memory), wish.name));
      }
      return backend;
    }
    known.push_back(backend->name());
  }
  return unknown(wish, known);
}

// The target's name, in the backend's own storage.
Result<std::string_view> pick_target(std::span<const TargetInfo> targets, const Wish& wish) {
  std::vector<std::string> known;
  for (const TargetInfo& target : targets) {
    if (wish.is_auto() ? target.available : wish.name == target.name) {
      if (!target.available) return unavailable(wish, "this processor lacks it");
      return std::string_view(target.name);
    }
    known.push_back(target.name);
  }
  return unknown(wish, known);
}

Wish backend_wish(const Context& context) {
  return wish(context.backend, "backend", "PAGEFILL_BACKEND");
}
Wish target_wish(const Context& context) {
  return wish(context.cpu_target, "cpu_target", "PAGEFILL_CPU_TARGET");
}

// Why this one, for people.
std::string explain(const Context& context, const Backend& backend) {
  const auto who = [](const Wish& wish, const char* automatic) {
    return wish.is_auto() ? std::string(automatic) : fmt::format("{} asks for it", wish.source);
  };
  std::string reason =
      fmt::format("backend: {}", who(backend_wish(context), "the best that is available"));
  if (!backend.targets().empty()) {
    reason += fmt::format("; target: {}", who(target_wish(context), "the best of this processor"));
  }
  return reason;
}

}  // namespace

Status Backend::append_kv(const AppendProblem&, const RunSettings&) const {
  return Status(StatusCode::kUnsupported, "append_kv: expected a backend that does it");
}

Status Backend::copy_pages(const CopyProblem&, const RunSettings&) const {
  return Status(StatusCode::kUnsupported, "copy_pages: expected a backend that does it");
}

Status Backend::merge_states(const MergeProblem&, const RunSettings&) const {
  return Status(StatusCode::kUnsupported,
                "merge_attention_states: expected a backend that does it");
}

Result<Selection> select_backend(const Context& context, DeviceType memory) {
  const Result<const Backend*> backend = pick_backend(backend_wish(context), memory);
  if (!backend.ok()) return backend.status();
  const Wish target = target_wish(context);
  Selection selection{*backend, {}};
  if (!(*backend)->targets().empty()) {
    const Result<std::string_view> name = pick_target((*backend)->targets(), target);
    if (!name.ok()) return name.status();
    selection.settings.target = *name;
  } else if (context.cpu_target != "auto") {
    return Status(
        StatusCode::kInvalidArgument,
        fmt::format("cpu_target: expected auto with the {} backend, which has no choice of "
                    "instruction sets, got \"{}\"",
                    (*backend)->name(), context.cpu_target));
  } else if (!target.is_auto()) {  // the variable is another backend's, but not a misspelt one
    const Result<std::string_view> name = pick_target(cpu_backend()->targets(), target);
    if (!name.ok()) return name.status();
  }
  const Result<int> num_threads = resolve_num_threads(context);
  if (!num_threads.ok()) return num_threads.status();
  selection.settings.num_threads = *num_threads;
  selection.settings.executor = context.executor;
  selection.settings.cancellation = Cancellation(context.cancel);
  selection.settings.cuda = context.cuda;
  return selection;
}

std::vector<BackendInfo> list_backends() {
  std::vector<BackendInfo> infos;
  for (const Backend* backend : all_backends()) {
    const auto targets = backend->targets();
    const std::string reason = backend->unavailable_reason();
    infos.push_back({.name = backend->name(),
                     .description = backend->description(),
                     .available = reason.empty(),
                     .reason = reason,
                     .memory = backend->memory(),
                     .half_weights = backend->half_weights(),
                     .targets = {targets.begin(), targets.end()}});
  }
  return infos;
}

Result<BackendChoice> choose_backend(const Context& context) {
  const Wish asked = backend_wish(context);
  DeviceType memory = DeviceType::kCpu;
  for (const Backend* backend : all_backends()) {
    if (asked.name == backend->name()) memory = backend->memory();
  }
  const Result<Selection> selection = select_backend(context, memory);
  if (!selection.ok()) return selection.status();
  return BackendChoice{selection->backend->name(), std::string(selection->settings.target),
                       selection->settings.num_threads, explain(context, *selection->backend)};
}

const char* version() { return PAGEFILL_VERSION; }

}  // namespace pagefill

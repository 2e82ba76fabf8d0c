// The C interface of the operator: converts, calls the C++ interface, and turns what comes back into a
// status.
#include <fmt/format.h>

#include <string>
#include <vector>

#include "c_api_convert.h"
#include "c_api_guard.h"
#include "pagefill/attention.h"
#include "pagefill/backend.h"
#include "pagefill/pagefill.h"

namespace pagefill {
namespace {

thread_local std::string last_error_text;
thread_local const char* last_error_message = "";

// The arguments of a ragged call, converted.
struct RaggedCall {
  TensorView query, key_cache, value_cache, query_starts, context_lens, page_table;
  AttentionOptions options;
  MutableTensorView output, lse;
  ConvertedContext where;

  void convert(Arguments& arguments, const pagefill_tensor* c_query,
               const pagefill_tensor* c_key_cache, const pagefill_tensor* c_value_cache,
               const pagefill_tensor* c_query_starts, const pagefill_tensor* c_context_lens,
               const pagefill_tensor* c_page_table, const pagefill_attention_options* c_options,
               const pagefill_tensor* c_output, const pagefill_tensor* c_lse,
               const pagefill_context* c_context) {
    query = arguments.tensor("query", c_query);
    key_cache = arguments.tensor("key_cache", c_key_cache);
    value_cache = arguments.tensor("value_cache", c_value_cache);
    query_starts = arguments.tensor("query_starts", c_query_starts);
    context_lens = arguments.tensor("context_lens", c_context_lens);
    page_table = arguments.tensor("page_table", c_page_table);
    options = arguments.options(c_options);
    output = arguments.mutable_tensor("output", c_output);
    lse = arguments.mutable_optional_tensor("lse", c_lse);
    arguments.context(c_context, where);
  }
};

// The list lasts as long as the library, so that its strings can be handed out.
const std::vector<BackendInfo>& backends() {
  static const auto* const list = new std::vector<BackendInfo>(list_backends());
  return *list;
}

Status check_index(const char* name, int32_t index, size_t size) {
  if (index >= 0 && static_cast<size_t>(index) < size) return {};
  return invalid_argument(
      fmt::format("{}: expected 0 to {}, got {}", name, static_cast<int64_t>(size) - 1, index));
}

}  // namespace

pagefill_status fail(StatusCode code, const char* message) noexcept {
  try {
    last_error_text = message;
    last_error_message = last_error_text.c_str();
  } catch (...) {
    last_error_message = "out of memory, the message included";
  }
  return static_cast<pagefill_status>(code);
}

}  // namespace pagefill

using namespace pagefill;

const char* pagefill_last_error_message(void) { return last_error_message; }

const char* pagefill_version(void) { return version(); }

const char* pagefill_dtype_name(int32_t dtype) { return dtype_name(static_cast<DType>(dtype)); }

int64_t pagefill_dtype_size(int32_t dtype) {
  const bool known = dtype >= 0 && dtype <= kLastDType;
  return known ? dtype_size(static_cast<DType>(dtype)) : 0;
}

pagefill_status pagefill_prefill_page_attention(
    const pagefill_tensor* query, const pagefill_tensor* key_cache,
    const pagefill_tensor* value_cache, const pagefill_tensor* context_len,
    const pagefill_tensor* page_indices, const pagefill_attention_options* options,
    const pagefill_tensor* output, const pagefill_tensor* lse, const pagefill_context* context) {
  return guarded([&]() -> Status {
    Arguments arguments;
    const TensorView query_view = arguments.tensor("query", query);
    const TensorView key_cache_view = arguments.tensor("key_cache", key_cache);
    const TensorView value_cache_view = arguments.tensor("value_cache", value_cache);
    const TensorView context_len_view = arguments.tensor("context_len", context_len);
    const TensorView page_indices_view = arguments.tensor("page_indices", page_indices);
    const AttentionOptions converted_options = arguments.options(options);
    const AttentionOutput results{arguments.mutable_tensor("output", output),
                                  arguments.mutable_optional_tensor("lse", lse)};
    ConvertedContext where;
    arguments.context(context, where);
    if (!arguments.ok()) return arguments.status();

    Status status =
        prefill_page_attention(query_view, key_cache_view, value_cache_view, context_len_view,
                               page_indices_view, converted_options, results, where.context);
    if (status.ok()) where.hand_out_report();
    return status;
  });
}

pagefill_status pagefill_ragged_page_attention(
    const pagefill_tensor* query, const pagefill_tensor* key_cache,
    const pagefill_tensor* value_cache, const pagefill_tensor* query_starts,
    const pagefill_tensor* context_lens, const pagefill_tensor* page_table,
    const pagefill_attention_options* options, const pagefill_tensor* output,
    const pagefill_tensor* lse, const pagefill_context* context) {
  return guarded([&]() -> Status {
    RaggedCall call;
    Arguments arguments;
    call.convert(arguments, query, key_cache, value_cache, query_starts, context_lens, page_table,
                 options, output, lse, context);
    if (!arguments.ok()) return arguments.status();

    Status status = ragged_page_attention(
        call.query, call.key_cache, call.value_cache, call.query_starts, call.context_lens,
        call.page_table, call.options, {call.output, call.lse}, call.where.context);
    if (status.ok()) call.where.hand_out_report();
    return status;
  });
}

pagefill_status pagefill_attention_workspace_size(
    const pagefill_tensor* query, const pagefill_tensor* key_cache,
    const pagefill_tensor* value_cache, const pagefill_tensor* query_starts,
    const pagefill_tensor* context_lens, const pagefill_tensor* page_table,
    const pagefill_attention_options* options, const pagefill_tensor* output,
    const pagefill_tensor* lse, const pagefill_context* context, size_t* workspace_size) {
  return guarded([&]() -> Status {
    RaggedCall call;
    Arguments arguments;
    call.convert(arguments, query, key_cache, value_cache, query_starts, context_lens, page_table,
                 options, output, lse, context);
    arguments.pointer("workspace_size", workspace_size);
    if (!arguments.ok()) return arguments.status();

    return store(
        attention_workspace_size(call.query, call.key_cache, call.value_cache, call.query_starts,
                                 call.context_lens, call.page_table, call.options,
                                 {call.output, call.lse}, call.where.context),
        workspace_size);
  });
}

pagefill_status pagefill_merge_attention_states(
    const pagefill_tensor* output_a, const pagefill_tensor* lse_a, const pagefill_tensor* output_b,
    const pagefill_tensor* lse_b, const pagefill_tensor* merged_output,
    const pagefill_tensor* merged_lse, const pagefill_context* context) {
  return guarded([&]() -> Status {
    Arguments arguments;
    const TensorView output_a_view = arguments.tensor("output_a", output_a);
    const TensorView lse_a_view = arguments.tensor("lse_a", lse_a);
    const TensorView output_b_view = arguments.tensor("output_b", output_b);
    const TensorView lse_b_view = arguments.tensor("lse_b", lse_b);
    const AttentionOutput merged{arguments.mutable_tensor("merged_output", merged_output),
                                 arguments.mutable_optional_tensor("merged_lse", merged_lse)};
    ConvertedContext where;
    arguments.context(context, where);
    if (!arguments.ok()) return arguments.status();
    return merge_attention_states(output_a_view, lse_a_view, output_b_view, lse_b_view, merged,
                                  where.context);
  });
}

pagefill_status pagefill_get_num_backends(int32_t* num_backends) {
  return guarded([&]() -> Status {
    Arguments arguments;
    if (!arguments.pointer("num_backends", num_backends)) return arguments.status();
    *num_backends = static_cast<int32_t>(backends().size());
    return {};
  });
}

pagefill_status pagefill_get_backend_info(int32_t index, pagefill_backend_info* info) {
  return guarded([&]() -> Status {
    Arguments arguments;
    if (!arguments.sized("info", info, {kFirstBackendInfoSize})) return arguments.status();
    if (Status s = check_index("index", index, backends().size()); !s.ok()) return s;
    const BackendInfo& backend = backends()[static_cast<size_t>(index)];
    info->name = backend.name.c_str();
    info->description = backend.description.c_str();
    info->reason = backend.reason.c_str();
    info->available = backend.available;
    info->num_targets = static_cast<int32_t>(backend.targets.size());
    if (info->struct_size == kFirstBackendInfoSize) return {};
    info->memory = static_cast<int32_t>(backend.memory);
    info->half_weights = backend.half_weights;
    return {};
  });
}

pagefill_status pagefill_get_target_info(int32_t backend_index, int32_t index,
                                         pagefill_target_info* info) {
  return guarded([&]() -> Status {
    Arguments arguments;
    if (!arguments.sized("info", info)) return arguments.status();
    if (Status s = check_index("backend_index", backend_index, backends().size()); !s.ok())
      return s;
    const auto& targets = backends()[static_cast<size_t>(backend_index)].targets;
    if (Status s = check_index("index", index, targets.size()); !s.ok()) return s;
    const TargetInfo& target = targets[static_cast<size_t>(index)];
    info->name = target.name.c_str();
    info->description = target.description.c_str();
    info->available = target.available;
    return {};
  });
}

pagefill_status pagefill_choose_backend(const pagefill_context* context,
                                        pagefill_backend_choice* choice) {
  return guarded([&]() -> Status {
    Arguments arguments;
    ConvertedContext where;
    arguments.context(context, where);
    arguments.sized("choice", choice);
    if (!arguments.ok()) return arguments.status();
    Result<BackendChoice> chosen = choose_backend(where.context);
    if (!chosen.ok()) return chosen.status();
    thread_local BackendChoice last_choice;  // keeps the strings that are handed out
    last_choice = std::move(chosen).value();
    choice->backend = last_choice.backend.c_str();
    choice->target = last_choice.target.c_str();
    choice->reason = last_choice.reason.c_str();
    choice->num_threads = last_choice.num_threads;
    return {};
  });
}

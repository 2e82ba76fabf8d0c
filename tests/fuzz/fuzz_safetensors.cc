// Any bytes as a safetensors file: refused, or read as what writing it again gives back.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>

#include "case_file.h"
#include "safetensors.h"

namespace {

using namespace pagefill::cli;

void demand(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = parse_safetensors(std::as_bytes(std::span(data, size)));
  if (!file.ok()) {
    demand(!file.status().message().empty(), "an error has a message");
    demand(file.status().message().find('\n') == std::string::npos, "a message is one line");
    return 0;
  }
  const auto again = parse_safetensors(format_safetensors(*file));
  demand(again.ok(), "what was read can be written and read");
  demand(again->metadata == file->metadata, "metadata survive");
  demand(again->tensors == file->tensors, "tensors survive");

  const auto c = case_from(*file);
  if (c.ok()) {
    demand(c->batch().query.rank == static_cast<int>(file->tensors.at("query").shape.size()),
           "a case's query is the file's");
  }
  return 0;
}

#include "bad_input.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace pagefill::testing {

std::vector<std::byte> written_memory(const Arguments& a) {
  std::vector<std::byte> bytes(a.output_memory.data(),
                               a.output_memory.data() + a.output_memory.size());
  bytes.insert(bytes.end(), a.lse_memory.data(), a.lse_memory.data() + a.lse_memory.size());
  return bytes;
}

void expect_named(const Status& status, const BadInput& bad) {
  const std::string& message = status.message();
  ASSERT_FALSE(status.ok()) << bad.argument << ", " << bad.got << ": accepted";
  EXPECT_EQ(status.code(), bad.code) << message;
  EXPECT_TRUE(message.starts_with(std::string(bad.argument) + ":"))
      << bad.argument << ": " << message;
  EXPECT_NE(message.find("expected"), std::string::npos) << message;
  const size_t got = message.find("got");
  ASSERT_NE(got, std::string::npos) << message;
  EXPECT_NE(message.find(bad.got, got), std::string::npos)
      << "\"" << bad.got << "\" in: " << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

Status ragged(const Call& c) {
  const Arguments& a = c.arguments;
  return ragged_page_attention(a.query, a.key_cache, a.value_cache, a.query_starts, a.context_lens,
                               a.page_table, a.options, a.output, c.context);
}

void expect_refused(std::span<const BadInput> table, const Problem& problem) {
  for (const Where& where : host_targets()) {
    for (const BadInput& bad : table) {
      Call c{lay_out(problem, kTwoChunks, {}), {}};
      CallReport report{"untouched", "untouched", -1, 99};
      c.context.backend = where.backend;
      c.context.num_threads = 2;
      c.context.report = &report;
      const std::vector<std::byte> before = written_memory(c.arguments);
      bad.spoil(c);
      if (std::string_view(bad.argument) == "workspace" && where.backend == "reference") continue;
      expect_named(ragged(c), bad);
      EXPECT_EQ(written_memory(c.arguments), before) << bad.argument << ", " << bad.got;
      EXPECT_STREQ(report.backend, "untouched");

      const Arguments& a = c.arguments;
      if (std::string_view(bad.argument) == "workspace")
        continue;  // its size can be asked without one
      const Result<size_t> size =
          attention_workspace_size(a.query, a.key_cache, a.value_cache, a.query_starts,
                                   a.context_lens, a.page_table, a.options, a.output, c.context);
      expect_named(size.status(), bad);
    }
  }
}

}  // namespace pagefill::testing

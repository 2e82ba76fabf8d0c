// `pagefill demo` as a process.
#include <gtest/gtest.h>

#include "pagefill/backend.h"
#include "process.h"

namespace pagefill::cli {
namespace {

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

void expect_equal_bits(const std::vector<std::string>& options) {
  std::vector<std::string> arguments{"demo"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  const Finished result = pagefill(arguments);
  EXPECT_EQ(result.exit_code, 0) << result.err << result.out;
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(count(result.out, "bits equal"), 6) << result.out;
  EXPECT_EQ(count(result.out, "DIFFER"), 0) << result.out;
}

TEST(Demo, BitsAreEqualOnEveryBackendAndTarget) {
  for (const BackendInfo& backend : list_backends()) {
    if (!backend.available) continue;
    expect_equal_bits({"--backend", backend.name});
    for (const TargetInfo& target : backend.targets) {
      if (target.available) {
        expect_equal_bits({"--backend", backend.name, "--cpu-target", target.name});
      }
    }
  }
}

TEST(Demo, BitsAreEqualOnAnyNumberOfThreads) {
  for (const std::string threads : {"1", "2", "3"}) expect_equal_bits({"--threads", threads});
}

TEST(Demo, SaysWhatRanAndWhatWasSaved) {
  const Finished result = pagefill({"demo", "--backend", "reference", "--threads", "1"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  for (const std::string part :
       {"reference", "1 thread", "system prompt", "contiguous", "shared"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << "\n" << result.out;
  }
  EXPECT_GE(count(result.out, "\n"), 10);
  EXPECT_LE(count(result.out, "\n"), 25);
}

TEST(Demo, SaysWhyABackendCannotRunHere) {
  for (const BackendInfo& backend : list_backends()) {
    if (backend.available) continue;
    const Finished result = pagefill({"demo", "--backend", backend.name});
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_EQ(result.out, "");
    EXPECT_EQ(result.err, "pagefill: backend: " + backend.name +
                              " is not available here: " + backend.reason + "\n");
  }
}

TEST(Demo, HoldsTheResultsOfADeviceAgainstThoseOfTheCpu) {
  for (const BackendInfo& backend : list_backends()) {
    if (!backend.available || backend.memory != DeviceType::kCuda) continue;
    const Finished result = pagefill({"demo", "--backend", backend.name});
    EXPECT_EQ(result.exit_code, 0) << result.err << result.out;
    EXPECT_EQ(count(result.out, "differ from those of the CPU by up to"), 1) << result.out;
    return;
  }
  GTEST_SKIP() << "no backend that works on a device is available here";
}

TEST(Demo, RefusesABackendThatIsNotThere) {
  const Finished result = pagefill({"demo", "--backend", "abacus"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(count(result.err, "\n"), 1) << result.err;
  EXPECT_NE(result.err.find("abacus"), std::string::npos);
}

}  // namespace
}  // namespace pagefill::cli

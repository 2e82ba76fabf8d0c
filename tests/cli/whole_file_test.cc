#include "whole_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "temporary_folder.h"

namespace pagefill::cli {
namespace {

Status write(const std::string& path, const std::string& text) {
  return write_whole_file(path, std::as_bytes(std::span(text)));
}

TEST(WholeFile, ReplacesAnExistingFile) {
  const TemporaryFolder folder;
  ASSERT_TRUE(write(folder / "file", "old").ok());
  ASSERT_TRUE(write(folder / "file", "new").ok());
  EXPECT_EQ(contents(folder / "file"), "new");
  EXPECT_EQ(folder.num_files(), 1);
}

TEST(WholeFile, FollowsALinkToItsFile) {
  const TemporaryFolder folder;
  ASSERT_TRUE(write(folder / "file", "old").ok());
  std::filesystem::create_symlink("file", folder / "link");
  ASSERT_TRUE(write(folder / "link", "new").ok());
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(contents(folder / "file"), "new");
}

TEST(WholeFile, AMissingFolderIsAnError) {
  const TemporaryFolder folder;
  EXPECT_EQ(write(folder / "missing/file", "new").message(),
            (folder / "missing/file") + ": cannot be written: No such file or directory");
  EXPECT_EQ(folder.num_files(), 0);
}

TEST(WholeFile, DevicesAndFoldersAreNotReplaced) {
  const TemporaryFolder folder;
  EXPECT_EQ(write("/dev/null", "new").message(),
            "/dev/null: expected a regular file or a new name");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  std::filesystem::create_directory(folder / "folder");
  EXPECT_EQ(write(folder / "folder", "new").message(),
            (folder / "folder") + ": expected a regular file or a new name");
}

// A limit on file sizes fails write() as a full disk does, after half of the file.
TEST(WholeFile, WhenTheDiskIsFullTheOldFileStaysAndNothingElse) {
  const TemporaryFolder folder;
  ASSERT_TRUE(write(folder / "file", "old").ok());
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const rlimit limit{4096, old_limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const Status status = write(folder / "file", std::string(8192, 'x'));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  std::signal(SIGXFSZ, old_handler);

  EXPECT_EQ(status.message(), (folder / "file") + ": cannot be written: File too large");
  EXPECT_EQ(contents(folder / "file"), "old");
  EXPECT_EQ(folder.num_files(), 1);
}

}  // namespace
}  // namespace pagefill::cli

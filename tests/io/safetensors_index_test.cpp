// The index of weights in several files. That the files agree with it is tested with checkpoints.
#include "dydit/io/safetensors_index.h"

#include <string>

#include <gtest/gtest.h>

#include "tests/support/files.h"

namespace dydit {
namespace {

using test::bytes_of;
using test::expect_error;

std::map<std::string, std::string> parse(const std::string& text) {
  return parse_safetensors_index(bytes_of(text), "m.index.json");
}

TEST(SafetensorsIndex, MapsTensorsToFiles) {
  const auto map =
      parse(R"({"metadata": {"total_size": 8, "x": [[]]}, "weight_map": {"a": "1.st", "b": "2.st"}})");
  EXPECT_EQ(map, (std::map<std::string, std::string>{{"a", "1.st"}, {"b", "2.st"}}));
}

TEST(SafetensorsIndex, OtherFilesAreRefused) {
  for (const char* text : {"", "{", "[]", "7", "{}", R"({"weight_map": []})", R"({"weight_map": 1})"}) {
    expect_error([&] { parse(text); }, "m.index.json: is not the index of a safetensors model");
  }
  expect_error([] { parse(R"({"weight_map": {}})"); }, "its weight_map is empty");
}

TEST(SafetensorsIndex, TensorListedTwiceIsNamed) {
  expect_error([] { parse(R"({"weight_map": {"a": "1.st", "b": "1.st", "a": "2.st"}})"); },
               "lists \"a\" twice");
}

TEST(SafetensorsIndex, FilesOutsideTheFolderAreRefused) {
  for (const char* file :
       {R"("../1.st")", R"("/etc/passwd")", R"("..")", R"("")", R"("a\u0000b")", "1", "{}", "null"}) {
    expect_error([&] { parse(std::string(R"({"weight_map": {"a": )") + file + "}}"); },
                 "tensor \"a\" lies in ");
  }
}

TEST(SafetensorsIndex, LargeIndexIsRefused) {
  expect_error([] { parse(std::string((2 << 20) + 1, ' ')); }, "at most 2097152 are read");
}

TEST(SafetensorsIndex, MutatedFilesAreReadOrRefused) {
  EXPECT_GT(test::refused_mutations(R"({"weight_map": {"a": "1.st", "b": "2.st"}})", 3000, parse), 300);
}

}  // namespace
}  // namespace dydit

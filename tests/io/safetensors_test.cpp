// safetensors: what is written comes back, what is wrong is refused with one line that says where.
#include "dydit/io/safetensors.h"

#include <cstring>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

using test::bytes_of;
using test::expect_error;
using test::TemporaryFolder;

// A file of the given header text and `data_size` bytes of data.
std::string file_of(const std::string& header, size_t data_size) {
  std::string file;
  append_little<uint64_t>(file, header.size());
  return file + header + std::string(data_size, '\1');
}

void parse(const std::string& file) { parse_safetensors(bytes_of(file), "f"); }

void expect_refused(const std::string& header, size_t data_size, const std::string& part) {
  expect_error([&] { parse(file_of(header, data_size)); }, part);
}

TEST(Safetensors, RoundTripKeepsTensorsAndMetadata) {
  TemporaryFolder folder;
  const std::vector<float> floats = {1.5f, -2.0f, 3.25f, 0.0f, 5.0f, 6.0f};
  const std::vector<uint8_t> bytes = {7, 8, 9};
  const TensorViews tensors = {
      {"a", {Dtype::U8, {3}, {}, reinterpret_cast<const std::byte*>(bytes.data())}},
      {"b", {Dtype::F32, {2, 3}, {3, 1}, reinterpret_cast<const std::byte*>(floats.data())}},
      {"empty", {Dtype::I64, {0, 4}, {}, nullptr}},
      {"scalar", {Dtype::F32, {}, {}, reinterpret_cast<const std::byte*>(floats.data())}}};
  write_safetensors(folder / "f", tensors, {{"config", "{\"depth\": 2}"}});
  const SafetensorsFile file = read_safetensors(folder / "f");
  ASSERT_EQ(file.tensors.size(), 4u);
  EXPECT_EQ(file.metadata.at("config"), "{\"depth\": 2}");
  EXPECT_EQ(file.tensors.at("b").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::memcmp(file.tensors.at("b").data, floats.data(), 24), 0);
  EXPECT_EQ(std::memcmp(file.tensors.at("a").data, bytes.data(), 3), 0);
  EXPECT_EQ(file.tensors.at("empty").numel(), 0);
  EXPECT_EQ(file.tensors.at("scalar").numel(), 1);
}

TEST(Safetensors, WrittenTensorsAreAlignedToTheirElements) {
  TemporaryFolder folder;
  const std::vector<double> data(4);
  const auto* bytes = reinterpret_cast<const std::byte*>(data.data());
  write_safetensors(folder / "f", {{"a", {Dtype::U8, {3}, {}, bytes}}, {"b", {Dtype::F64, {4}, {}, bytes}}},
                    {});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(read_safetensors(folder / "f").tensors.at("b").data) % 8, 0u);
}

TEST(Safetensors, StridedTensorIsNotWritten) {
  TemporaryFolder folder;
  const std::vector<float> data(6);
  const TensorViews tensors = {
      {"t", {Dtype::F32, {3, 2}, {1, 3}, reinterpret_cast<const std::byte*>(data.data())}}};
  expect_error([&] { write_safetensors(folder / "f", tensors, {}); }, "tensor \"t\" is strided");
  EXPECT_EQ(folder.file_count(), 0u);
}

TEST(Safetensors, NameThatIsNotUtf8IsNotWritten) {
  TemporaryFolder folder;
  expect_error([&] { write_safetensors(folder / "f", {}, {{"a", "\xff"}}); }, "not UTF-8");
}

TEST(Safetensors, WritingToAFullDeviceIsAnError) {
  const std::vector<float> data(6);
  const TensorViews tensors = {{"t", {Dtype::F32, {6}, {}, reinterpret_cast<const std::byte*>(data.data())}}};
  expect_error([&] { write_safetensors("/dev/full", tensors, {}); }, "No space left");
}

TEST(Safetensors, UnalignedDataIsRead) {
  const std::string file = file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[1,5]},)"
                                   R"("b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                                   5);
  EXPECT_EQ(parse_safetensors(bytes_of(file), "f").tensors.at("a").numel(), 1);
}

TEST(Safetensors, FileNameIsInTheMessage) {
  expect_error([] { parse("short"); }, "f: 5 bytes are too few");
}

TEST(Safetensors, HeaderOf2To60BytesIsRefused) {
  std::string file;
  append_little<uint64_t>(file, uint64_t{1} << 60);
  expect_error([&] { parse(file + "{}"); }, "header of 1152921504606846976 bytes; at most 100000000");
}

TEST(Safetensors, HeaderLongerThanTheFileIsRefused) {
  std::string file;
  append_little<uint64_t>(file, 1000);
  expect_error([&] { parse(file + "{}"); }, "header of 1000 bytes, but only 2 follow");
}

TEST(Safetensors, TruncatedDataNamesTheTensor) {
  expect_refused(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7,
                 "tensor \"w\" lies at bytes 0 to 8");
}

TEST(Safetensors, OverlapIsRefused) {
  expect_refused(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                 R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
                 6, "tensor \"b\" begins at byte 2, inside");
}

TEST(Safetensors, HoleIsRefused) {
  expect_refused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                 R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                 3, "belong to no tensor");
}

TEST(Safetensors, BytesAfterTheLastTensorAreRefused) {
  expect_refused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 3, "end at byte 1 of the data");
}

TEST(Safetensors, DuplicateNameIsRefused) {
  expect_refused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                 R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                 2, "tensor \"a\" is listed twice");
}

TEST(Safetensors, DuplicateMetadataKeyIsRefused) {
  expect_refused(R"({"__metadata__":{"a":"1","a":"2"}})", 0, "metadata \"a\" is listed twice");
}

TEST(Safetensors, UnknownDtypeNamesTheTensor) {
  expect_refused(R"({"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}})", 1,
                 "tensor \"a\" has dtype \"F8_E4M3\"");
}

TEST(Safetensors, SizeThatDisagreesWithTheShapeIsRefused) {
  expect_refused(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8,
                 "has 8 bytes, but F32 of shape (3) takes 12");
}

TEST(Safetensors, ShapeWhoseProductOverflowsIsRefused) {
  expect_refused(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
                 "more elements than can be counted");
}

TEST(Safetensors, ShapeWhoseBytesOverflowIsRefused) {
  expect_refused(R"({"a":{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0,
                 "more elements than can be counted");
}

TEST(Safetensors, NegativeSizeIsRefused) {
  expect_refused(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1, "the number -1");
}

TEST(Safetensors, FractionalOffsetIsRefused) {
  expect_refused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1.5]}})", 2, "the number 1.5");
}

TEST(Safetensors, MissingFieldIsNamed) {
  expect_refused(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1, "tensor \"a\" lacks its shape");
}

TEST(Safetensors, TooManyDimensionsAreRefused) {
  expect_refused(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1, "dimensions");
}

TEST(Safetensors, HeaderThatIsNotJsonIsRefused) {
  expect_refused("{\"a\": \n", 0, "not valid JSON");
  expect_refused("{\"a\xff\": 1}", 0, "not valid JSON");
  expect_refused("{} x", 0, "not valid JSON");
}

TEST(Safetensors, HeaderOfAnotherFormIsRefused) {
  for (const char* header : {"[]", "1", "null", "\"a\"", "true", R"({"a":1})", R"({"a":[]})",
                             R"({"a":{"b":{}}})", R"({"__metadata__":{"a":1}})", R"({"__metadata__":[]})",
                             R"({"a":{"dtype":"U8","dtype":"U8"}})", R"({"a":{"data_offsets":[0,1,2]}})"}) {
    expect_refused(header, 0, "header has");
  }
}

TEST(Safetensors, DeeplyNestedHeaderIsRefused) { expect_refused(std::string(1 << 20, '['), 0, "an array"); }

TEST(Safetensors, LongTextIsRefusedBeforeTheParserCopiesIt) {
  expect_refused("{\"" + std::string((4 << 20) + 1, 'n'), 0, "more than 4194304 bytes at its byte 1");
  expect_refused("{\"a\":" + std::string((4 << 20) + 1, '1'), 0, "more than 4194304 bytes");
}

TEST(Safetensors, ControlCharactersAreNoJson) {
  expect_refused("{\"a\1\":{}}", 0, "not valid JSON at its byte 4");
  expect_refused("{\"a\n\":{}}", 0, "not valid JSON at its byte 4");
  expect_refused(std::string("{\0}", 3), 0, "not valid JSON at its byte 2");
}

TEST(Safetensors, ManyEntriesAreRefused) {
  std::string header = "{";
  for (int i = 0; i < 70'000; ++i) {
    header += fmt::format("\"{}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}},", i);
  }
  header.back() = '}';
  expect_refused(header, 0, "more than 65536 entries");
}

TEST(Safetensors, ControlCharactersOfANameStayOnOneLine) {
  expect_refused(R"({"a\nb":{"dtype":"U9","shape":[1],"data_offsets":[0,1]}})", 1, "\"a\\x0ab\"");
}

TEST(Safetensors, MutatedFilesAreReadOrRefused) {
  const std::string seed =
      file_of(R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
              R"("b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}})",
              11);
  parse(seed);
  const int refused = test::refused_mutations(seed, 5000, parse);
  EXPECT_GT(refused, 2500);
  EXPECT_LT(refused, 5000);
}

}  // namespace
}  // namespace dydit

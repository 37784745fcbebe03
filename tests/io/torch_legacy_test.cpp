// Streams of torch.save before 1.6: tensors come out as saved, and every way in which the parts may disagree
// is refused.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "dydit/io/torch_file.h"
#include "tests/support/files.h"
#include "tests/support/pickle_builder.h"
#include "tests/support/shared.h"

namespace dydit {
namespace {

using test::bytes_of;
using test::expect_error;
using namespace test::pickle;

const std::string kMagic = pickle_of("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19");
const std::string kProtocol = pickle_of("M\xe9\x03");

std::string system_of(const std::string& little_endian) {
  return pickle_of(dict({text("protocol_version"), "M\xe9\x03", text("little_endian"), little_endian}));
}

struct StoredSpec {
  std::string type = "FloatStorage";
  std::string key = "0";
  int64_t numel = 4;
  std::string view = "N";
};

std::string stored(const StoredSpec& spec) {
  return tuple({text("storage"), global("torch", spec.type), text(spec.key), text("cuda:0"),
                number(spec.numel), spec.view}) +
         "Q";
}

// `size` elements one after the other from `offset` on.
std::string vector_of(const std::string& storage, int64_t offset, int64_t size) {
  return call(
      global("torch._utils", "_rebuild_tensor_v2"),
      tuple({storage, number(offset), tuple({number(size)}), tuple({number(1)}), "\x89", ordered_dict({})}));
}

template <class T>
std::string elements(const std::vector<T>& values) {
  std::string out;
  append_little<uint64_t>(out, values.size());
  for (const T value : values) append_little(out, value);
  return out;
}

std::string floats() {  // 1, 2, 3, 4
  return elements(std::vector<uint32_t>{0x3F800000, 0x40000000, 0x40400000, 0x40800000});
}

std::string stream_of(const std::string& object, const std::string& keys, const std::string& data) {
  return kMagic + kProtocol + system_of("\x88") + pickle_of(object) + pickle_of(keys) + data;
}

// {x: tensor} over storage "0" of the floats.
std::string file_of(const std::string& tensor) {
  return stream_of(dict({text("x"), tensor}), list({text("0")}), floats());
}

TorchWeights parse(const std::string& file) {
  return preferred_weights(parse_torch_checkpoint(bytes_of(file), "f.th"));
}

void expect_refused(const std::string& file, const std::string& part) {
  expect_error([&] { parse(file); }, part);
}

template <class T>
T element(const TensorView& view, int64_t index) {
  T value;
  std::memcpy(&value, view.data + static_cast<size_t>(index) * sizeof(T), sizeof(T));
  return value;
}

TEST(TorchLegacy, TensorIsReadFromItsStorage) {
  const std::string file = file_of(vector_of(stored({}), 1, 3));
  const TorchWeights torch = parse(file);
  const TensorView& view = torch.tensors.at("x");
  EXPECT_EQ(view.shape, std::vector<int64_t>{3});
  EXPECT_EQ(element<float>(view, 0), 2.0f);
  EXPECT_EQ(element<float>(view, 2), 4.0f);
}

TEST(TorchLegacy, StorageViewsShiftTheTensor) {
  const std::string view = tuple({text("9"), number(1), number(3)});
  const std::string file = file_of(vector_of(stored({.view = view}), 1, 2));
  EXPECT_EQ(element<float>(parse(file).tensors.at("x"), 0), 3.0f);
  expect_refused(file_of(vector_of(stored({.view = view}), 1, 3)), "passes the end of its storage of 3");
  const std::string beyond = tuple({text("9"), number(2), number(3)});
  expect_refused(file_of(vector_of(stored({.view = beyond}), 0, 1)),
                 "a view of 3 elements from 2 passes the end");
}

TEST(TorchLegacy, HalfBfloat16AndLongStoragesAreRead) {
  const std::string file = stream_of(
      ordered_dict({text("h"), vector_of(stored({.type = "HalfStorage", .key = "a", .numel = 1}), 0, 1),
                    text("b"), vector_of(stored({.type = "BFloat16Storage", .key = "b", .numel = 2}), 1, 1),
                    text("l"), vector_of(stored({.type = "LongStorage", .key = "c", .numel = 2}), 1, 1)}),
      list({text("c"), text("a"), text("b")}),
      elements<int64_t>({7, -8}) + elements<uint16_t>({0x3C00}) + elements<uint16_t>({1, 0x3F80}));
  const TorchWeights torch = parse(file);
  EXPECT_EQ(torch.tensors.at("h").dtype, Dtype::F16);
  EXPECT_EQ(element<uint16_t>(torch.tensors.at("h"), 0), 0x3C00);
  EXPECT_EQ(torch.tensors.at("b").dtype, Dtype::BF16);
  EXPECT_EQ(element<uint16_t>(torch.tensors.at("b"), 0), 0x3F80);
  EXPECT_EQ(torch.tensors.at("l").dtype, Dtype::I64);
  EXPECT_EQ(element<int64_t>(torch.tensors.at("l"), 0), -8);
}

TEST(TorchLegacy, RebuildTensorOf2017IsRead) {
  const std::string tensor =
      call(global("torch._utils", "_rebuild_tensor"),
           tuple({stored({}), number(0), tuple({number(2), number(2)}), tuple({number(1), number(2)})}));
  const std::string file = file_of(tensor);
  EXPECT_EQ(parse(file).tensors.at("x").strides, (std::vector<int64_t>{1, 2}));
}

TEST(TorchLegacy, StateDictKeyIsFound) {
  const std::string file = stream_of(dict({text("epoch"), number(3), text("state_dict"),
                                           ordered_dict({text("x"), vector_of(stored({}), 0, 4)})}),
                                     list({text("0")}), floats());
  EXPECT_EQ(parse(file).key, "state_dict");
}

TEST(TorchLegacy, SourceTextOfAWholeModelIsNoStorage) {
  const std::string module =
      tuple({text("module"), global("models", "Net"), text("net.py"), text("class")}) + "Q";
  const std::string file =
      stream_of(dict({text("net"), module, text("model"), dict({text("x"), vector_of(stored({}), 0, 1)})}),
                list({text("0")}), floats());
  EXPECT_EQ(parse(file).tensors.size(), 1u);
}

TEST(TorchLegacy, OtherProtocolsAndByteOrdersAreRefused) {
  const std::string rest =
      pickle_of(dict({text("x"), vector_of(stored({}), 0, 4)})) + pickle_of(list({text("0")})) + floats();
  expect_refused(kMagic + pickle_of("M\xe8\x03") + system_of("\x88") + rest, "another protocol than 1001");
  expect_refused(kMagic + kProtocol + system_of("\x89") + rest, "big-endian");
  expect_refused(kMagic + kProtocol + pickle_of("N") + rest, "third pickle is a None");
  expect_refused(pickle_of("M\xe8\x03") + rest, "magic number is missing");
}

TEST(TorchLegacy, ListOfStoragesThatDoesNotFitIsRefused) {
  const std::string object = dict({text("x"), vector_of(stored({}), 0, 4)});
  expect_refused(stream_of(object, list({}), ""), "lies in storage \"0\", which is missing");
  expect_refused(stream_of(object, list({text("0"), text("1")}), floats()),
                 "lists storage \"1\", which no tensor uses");
  expect_refused(stream_of(object, list({text("0"), text("0")}), floats()), "was listed before");
  expect_refused(stream_of(object, list({number(0)}), floats()), "lists storage int");
  expect_refused(stream_of(object, "N", floats()), "fifth pickle is a None");
}

TEST(TorchLegacy, StorageOfAnotherSizeIsRefused) {
  const std::string object = dict({text("x"), vector_of(stored({.numel = 5}), 0, 4)});
  expect_refused(stream_of(object, list({text("0")}), floats()), "has 4 elements, but its tensors say 5");
  const std::string huge = dict({text("x"), vector_of(stored({.numel = int64_t{1} << 62}), 0, 4)});
  std::string data;
  append_little<uint64_t>(data, uint64_t{1} << 62);
  expect_refused(stream_of(huge, list({text("0")}), data), "passes its end");
}

TEST(TorchLegacy, StorageNamedWithTwoTypesIsRefused) {
  const std::string object = dict(
      {text("x"), vector_of(stored({}), 0, 4), text("y"), vector_of(stored({.type = "LongStorage"}), 0, 4)});
  expect_refused(stream_of(object, list({text("0")}), floats()),
                 "4 elements of F32 in one place and 4 of I64 in another");
}

TEST(TorchLegacy, EveryTruncationIsRefused) {
  const std::string file = file_of(vector_of(stored({}), 0, 4));
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_THROW(parse(file.substr(0, size)), Error) << size;
  }
}

TEST(TorchLegacy, MutatedFilesAreReadOrRefused) {
  const std::string seed = file_of(vector_of(stored({}), 0, 4));
  EXPECT_GT(test::refused_mutations(seed, 5000, parse), 1000);
}

// SHA-256 over name, shape as Python prints it and bytes of each tensor in the order of names, as
// PyTorch 2.11 loads the file.
struct Published {
  const char* file;
  size_t tensors;
  const char* digest;
};
class TorchLegacyPublished : public testing::TestWithParam<Published> {};

TEST_P(TorchLegacyPublished, TensorsAreThoseThatPyTorchLoads) {
  const std::filesystem::path path = test::shared_path(std::string("data/") + GetParam().file);
  SKIP_WITHOUT(path);
  const TorchCheckpoint checkpoint = read_torch_checkpoint(path);
  const TorchWeights& torch = preferred_weights(checkpoint);
  EXPECT_EQ(torch.tensors.size(), GetParam().tensors);
  std::string all;
  for (const auto& [name, view] : torch.tensors) {
    ASSERT_TRUE(is_contiguous(view)) << name;
    all += name + shape_text(view.shape);
    if (view.shape.size() == 1) all.insert(all.size() - 1, ",");
    all.append(reinterpret_cast<const char*>(view.data),
               static_cast<size_t>(view.numel()) * dtype_size(view.dtype));
  }
  EXPECT_EQ(sha256_hex(bytes_of(all)), GetParam().digest);
}

INSTANTIATE_TEST_SUITE_P(
    ResNet, TorchLegacyPublished,
    testing::Values(Published{"resnet20-12fca82f.th", 97,
                              "f585d0adbcc211359a1a8562bef175af1f31cf42b5bd3f82ea7b2758bd5c6c27"},
                    Published{"resnet56-4bfd9763.th", 277,
                              "9bb1dde104af2da8e241c1d0a81cd8d700fd4e1e1ca290606f34535616e38340"}),
    [](const auto& info) { return std::string(info.param.file).substr(0, 8); });

}  // namespace
}  // namespace dydit

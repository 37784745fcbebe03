// Torch archives: tensors come out as saved, foreign objects stay data, and what is wrong is refused.
#include "dydit/io/torch_file.h"

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "dydit/io/safetensors.h"
#include "dydit/io/text.h"
#include "tests/support/archives.h"
#include "tests/support/files.h"
#include "tests/support/pickle_builder.h"

namespace dydit {
namespace {

using test::bytes_of;
using test::expect_error;
using namespace test::pickle;

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
const std::filesystem::path kGolden = std::filesystem::path(DYDIT_TESTS_DIR) / "golden";

// The preferred set and what stands beside the weights.
struct Parsed {
  explicit Parsed(const TorchCheckpoint& file)
      : weights_key(preferred_weights(file).key),
        tensors(preferred_weights(file).tensors),
        config(file.config) {}
  std::string weights_key;
  TensorViews tensors;
  std::shared_ptr<nlohmann::json> config;
};

Parsed parse(const std::string& file) { return Parsed(parse_torch_checkpoint(bytes_of(file), "f.pt")); }

void expect_refused(const std::string& value, const std::string& part) {
  expect_error([&] { parse(archive_of(value)); }, part);
}

void expect_tensor_refused(const TensorSpec& spec, const std::string& part) {
  expect_refused(dict({text("ema"), dict({text("x"), tensor(spec)})}), part);
}

std::string os_system_call() { return call(global("os", "system"), tuple({text("echo no")})); }

// {ema: {x: tensor}, args: `args`}
std::string checkpoint_with_args(const std::string& args) {
  return archive_of(dict({text("ema"), dict({text("x"), tensor({})}), text("args"), args}));
}

std::string namespace_of(const std::vector<std::string>& items) {
  return global("argparse", "Namespace") + ")\x81" + dict(items) + "b";
}

float element(const TensorView& view, int64_t index) {
  float value;
  std::memcpy(&value, view.data + index * 4, sizeof(value));
  return value;
}

TEST(TorchFile, GoldenEmaIsHalfOfTheSafetensors) {
  const TorchCheckpoint file = read_torch_checkpoint(kGolden / "model.pt");
  const Parsed torch(file);
  const SafetensorsFile model = read_safetensors(kGolden / "model.safetensors");
  EXPECT_EQ(torch.weights_key, "ema");
  ASSERT_EQ(torch.tensors.size(), model.tensors.size());
  for (const auto& [name, expected] : model.tensors) {
    const TensorView& view = torch.tensors.at(name);
    ASSERT_EQ(view.shape, expected.shape) << name;
    ASSERT_TRUE(is_contiguous(view)) << name;
    for (int64_t i = 0; i < view.numel(); ++i) {
      ASSERT_EQ(element(view, i), 0.5f * element(expected, i)) << name << " " << i;
    }
  }
}

TEST(TorchFile, GoldenConfigComesFromTheNamespace) {
  const TorchCheckpoint torch = read_torch_checkpoint(kGolden / "model.pt");
  EXPECT_EQ(*torch.config, (nlohmann::json{{"model", "tiny"}, {"token_ratio", 0.5}}));
}

TEST(TorchFile, BareStateDictHasNoWeightsKey) {
  const std::string file = archive_of(ordered_dict({text("x"), tensor({})}));
  const Parsed torch = parse(file);
  EXPECT_EQ(torch.weights_key, "");
  EXPECT_EQ(element(torch.tensors.at("x"), 3), 4.0f);
  EXPECT_EQ(*torch.config, nlohmann::json::object());
}

TEST(TorchFile, ModelIsTakenWhenEmaIsNone) {
  const std::string file = archive_of(dict({text("ema"), "N", text("model"), dict({text("x"), tensor({})})}));
  EXPECT_EQ(parse(file).weights_key, "model");
}

std::vector<std::string> keys_of(const std::string& value) {
  const std::string file = archive_of(value);
  std::vector<std::string> keys;
  for (const TorchWeights& set : parse_torch_checkpoint(bytes_of(file), "f.pt").sets) keys.push_back(set.key);
  return keys;
}

using Keys = std::vector<std::string>;

TEST(TorchSets, AveragesComeFirst) {
  const std::string weights = dict({text("x"), tensor({})});
  EXPECT_EQ(keys_of(dict({text("model"), weights, text("params_ema"), weights, text("ema"), weights})),
            (Keys{"ema", "params_ema", "model"}));
  EXPECT_EQ(keys_of(dict({text("net"), weights, text("my_ema_weights"), weights})),
            (Keys{"my_ema_weights", "net"}));
}

TEST(TorchSets, LieOneLevelDeeper) {
  const std::string weights = dict({text("x"), tensor({})});
  EXPECT_EQ(keys_of(dict({text("state"), dict({text("model"), weights}), text("epoch"), number(3)})),
            Keys{"state.model"});
  EXPECT_EQ(keys_of(dict({text("ema"), dict({text("module"), weights, text("decay"), real(0.5)}),
                          text("model"), weights})),
            (Keys{"ema.module", "model"}));
}

// A line of a terminal or a log stays one, whatever a file calls its sets.
TEST(TorchSets, KeysThatDoNotPrintAreToldAsTheyCanBeTyped) {
  const std::string weights = dict({text("x"), tensor({})});
  EXPECT_EQ(keys_of(dict({text("mod\nl"), weights})), Keys{printable("mod\nl")});
  EXPECT_EQ(keys_of(dict({text("e\x1b[2Jma"), dict({text("model"), weights})})),
            Keys{printable("e\x1b[2Jma.model")});
  const std::string fault =
      parse_torch_checkpoint(
          bytes_of(archive_of(dict({text("a\nb"), dict({text("x"), tensor({}), text("n"), number(3)})}))),
          "f.pt")
          .sets.at(0)
          .fault;
  EXPECT_EQ(fault.find('\n'), fault.npos) << fault;
  EXPECT_NE(fault.find("f.pt: " + printable("a\nb")), fault.npos) << fault;
}

TEST(TorchSets, TheOptimizerIsNone) {
  const std::string weights = dict({text("x"), tensor({})});
  const std::string moments = dict({number(0), dict({text("exp_avg"), tensor({})})});
  EXPECT_EQ(keys_of(dict({text("model"), weights, text("opt"), dict({text("state"), moments})})),
            Keys{"model"});
}

TEST(TorchSets, CountersBesideTensorsArePassedOver) {
  const std::string file = archive_of(
      dict({text("model"), ordered_dict({text("x"), tensor({}), text("step"), number(9), text("a.n_averaged"),
                                         "N", text("_metadata"), dict({}), text("b._extra_state"), "N"})}));
  const TorchCheckpoint torch = parse_torch_checkpoint(bytes_of(file), "f.pt");
  EXPECT_EQ(torch.sets[0].tensors.size(), 1u);
  EXPECT_EQ(torch.sets[0].counters, (Keys{"step", "a.n_averaged", "_metadata", "b._extra_state"}));
}

TEST(TorchSets, AListTakesTheNamesBesideIt) {
  const std::string x = tensor({.sizes = {4}, .strides = {1}}),
                    y = tensor({.sizes = {1, 4}, .strides = {4, 1}});
  const auto file_of = [&](const std::vector<std::string>& averages) {
    return archive_of(
        dict({text("model"), ordered_dict({text("pos_embed"), x, text("b"), y, text("a"), x}), text("ema"),
              dict({text("decay"), real(0.5), text("shadow_params"), list(averages)})}));
  };
  for (const auto& averages : {Keys{x, y, x}, Keys{y, x}}) {
    const std::string file = file_of(averages);
    const TorchCheckpoint torch = parse_torch_checkpoint(bytes_of(file), "f.pt");
    EXPECT_EQ(torch.sets[0].key, "ema.shadow_params");
    EXPECT_EQ(torch.sets[0].fault, "");
    EXPECT_EQ(torch.sets[0].matched, "model");
    EXPECT_EQ(torch.sets[0].tensors.at("b").shape, (std::vector<int64_t>{1, 4}));
    EXPECT_EQ(torch.sets[0].tensors.size(), 3u);
  }
  for (const auto& averages : {Keys{x, x, y}, Keys{x}}) {
    const std::string file = file_of(averages);
    const TorchCheckpoint torch = parse_torch_checkpoint(bytes_of(file), "f.pt");
    EXPECT_NE(torch.sets[0].fault.find("tensors without names"), std::string::npos) << torch.sets[0].fault;
    EXPECT_EQ(torch.sets[1].fault, "");
  }
}

TEST(TorchSets, AFaultyOneLeavesTheOthers) {
  const std::string file =
      archive_of(dict({text("ema"), os_system_call(), text("model"), dict({text("x"), tensor({})})}));
  const TorchCheckpoint torch = parse_torch_checkpoint(bytes_of(file), "f.pt");
  EXPECT_NE(torch.sets[0].fault.find("ema is a os.system object"), std::string::npos);
  EXPECT_EQ(torch.sets[1].tensors.size(), 1u);
}

TEST(TorchFile, TorchScriptIsNamed) {
  auto members = members_of(dict({text("x"), tensor({})}));
  members.push_back({"m/constants.pkl", "x"});
  expect_error([&] { parse(test::build_zip(members)); }, "is a TorchScript archive (torch.jit.save)");
}

TEST(TorchFile, StridesAndOffsetAreKeptAsSaved) {
  const std::string file = archive_of(dict({text("x"), tensor({.sizes = {2}, .strides = {2}, .offset = 1})}));
  const Parsed torch = parse(file);
  const TensorView& view = torch.tensors.at("x");
  EXPECT_EQ(view.strides, std::vector<int64_t>{2});
  EXPECT_EQ(element(view, 0), 2.0f);
}

TEST(TorchFile, ParameterAndSizeStandForTheirArguments) {
  const std::string parameter =
      call(global("torch._utils", "_rebuild_parameter"), tuple({tensor({}), "\x88", ordered_dict({})}));
  EXPECT_EQ(parse(archive_of(dict({text("x"), parameter}))).tensors.size(), 1u);
  const std::string sizes = call(global("torch", "Size"), tuple({list({number(4)})}));
  const std::string file = checkpoint_with_args(dict({text("sizes"), sizes}));
  EXPECT_EQ((*parse(file).config)["sizes"], nlohmann::json({4}));
}

TEST(TorchFile, TensorsSavedOnCudaAreRead) {
  EXPECT_EQ(parse(archive_of(dict({text("x"), tensor({.device = "cuda:0"})}))).tensors.size(), 1u);
}

TEST(TorchFile, Zip64ArchiveIsRead) {
  const std::string value = dict({text("x"), tensor({})});
  const std::string file = test::build_zip(members_of(value), test::ZipForm::Zip64);
  EXPECT_EQ(element(parse(file).tensors.at("x"), 0), 1.0f);
}

TEST(TorchFile, Protocol5OpcodesAreRead) {
  const std::string frame("\x95\0\0\0\0\0\0\0\0", 9);
  // torch.Size([7]) by SHORT_BINUNICODE, MEMOIZE, STACK_GLOBAL, BININT1, APPEND, TUPLE1, REDUCE
  const std::string sizes =
      "\x8c\x05torch\x94\x8c\x04Size\x94\x93]K\x07"
      "a\x85R";
  auto members = members_of("");
  members[0].bytes = "\x80\x05" + frame +
                     "}\x94(\x8c\x04"
                     "args" +
                     dict({text("s"), sizes}) +
                     "\x8c\x03"
                     "ema" +
                     dict({text("x"), tensor({})}) + "u.";
  EXPECT_EQ((*parse(test::build_zip(members)).config)["s"], nlohmann::json({7}));
}

TEST(TorchFile, ConfigKeepsPlainValues) {
  const std::string file = checkpoint_with_args(
      namespace_of({text("i"), number(-5), text("f"), real(0.25), text("b"), "\x88", text("n"), "N",
                    text("l"), list({text("a"), tuple({number(1), number(2)})})}));
  EXPECT_EQ(*parse(file).config,
            nlohmann::json::parse(R"({"i": -5, "f": 0.25, "b": true, "n": null, "l": ["a", [1, 2]]})"));
}

TEST(TorchFile, CfgIsPreferredToArgs) {
  const std::string file =
      archive_of(dict({text("x"), tensor({}), text("args"), dict({text("k"), number(1)})}));
  expect_error([&] { parse(file); }, "[\"args\"] is a dict, not a tensor");
  const std::string both =
      archive_of(dict({text("model"), dict({text("x"), tensor({})}), text("args"),
                       dict({text("k"), number(1)}), text("cfg"), dict({text("k"), number(2)})}));
  EXPECT_EQ((*parse(both).config)["k"], 2);
}

TEST(TorchFile, OsSystemInArgsIsDataAndLeftOut) {
  const std::string file =
      checkpoint_with_args(namespace_of({text("evil"), os_system_call(), text("k"), number(1)}));
  EXPECT_EQ(*parse(file).config, (nlohmann::json{{"k", 1}}));
  EXPECT_EQ(*parse(checkpoint_with_args(os_system_call())).config, nlohmann::json::object());
}

TEST(TorchFile, OsSystemInTheWeightsIsNamed) {
  expect_refused(dict({text("ema"), dict({text("x"), os_system_call()})}),
                 "f.pt: ema[\"x\"] is a os.system object, not a tensor; ");
  expect_refused(dict({text("ema"), os_system_call()}), "f.pt: ema is a os.system object, not a dict");
  expect_refused(os_system_call(), "f.pt: holds a os.system object");
}

TEST(TorchFile, WeightThatIsANumberIsRefused) {
  expect_refused(dict({text("x"), number(1)}), "[\"x\"] is a int, not a tensor");
}

TEST(TorchFile, EmptyWeightsAreRefused) { expect_refused("}", "holds no tensors"); }

TEST(TorchFile, TensorOf10To12ElementsIsRefused) {
  expect_tensor_refused({.sizes = {1'000'000'000'000}, .strides = {1}},
                        "ema[\"x\"] of shape (1000000000000) has more");
  expect_tensor_refused({.sizes = {1'000'000'000'000}, .strides = {0}}, "has more elements than its storage");
  expect_tensor_refused({.sizes = {1'000'000'000'000}, .strides = {1}, .numel = 1'000'000'000'000},
                        "does not fit");
}

TEST(TorchFile, ShapeWhoseProductOverflowsIsRefused) {
  expect_tensor_refused({.sizes = {kHuge, kHuge}, .strides = {1, 1}}, "more elements");
}

TEST(TorchFile, ViewBeyondItsStorageIsRefused) {
  expect_tensor_refused({.offset = 1}, "passes the end of its storage of 4");
  expect_tensor_refused({.strides = {3, 1}}, "passes the end");
  expect_tensor_refused({.strides = {kHuge, 1}, .offset = 3}, "passes the end");
  expect_tensor_refused({.offset = kHuge}, "passes the end");
}

TEST(TorchFile, NegativeSizesStridesAndOffsetsAreRefused) {
  expect_tensor_refused({.sizes = {-1, 2}}, "must not be negative, got -1");
  expect_tensor_refused({.strides = {-2, 1}}, "must not be negative, got -2");
  expect_tensor_refused({.offset = -1}, "must not be negative, got -1");
  expect_tensor_refused({.numel = -1}, "must not be negative, got -1");
}

TEST(TorchFile, EmptyTensorMayBeginAnywhere) {
  const std::string file =
      archive_of(dict({text("x"), tensor({.sizes = {0}, .strides = {1}, .offset = kHuge})}));
  EXPECT_EQ(parse(file).tensors.at("x").numel(), 0);
}

TEST(TorchFile, SizesAndStridesMustBeAsMany) {
  expect_tensor_refused({.strides = {1}}, "2 sizes but 1 strides");
}

TEST(TorchFile, UnknownStorageTypeIsNamed) {
  expect_tensor_refused({.type = "ComplexFloatStorage"}, "global torch.ComplexFloatStorage");
}

TEST(TorchFile, MissingStorageIsNamed) {
  expect_tensor_refused({.key = "7"}, "member \"m/data/7\", which is missing");
}

TEST(TorchFile, StorageLargerThanItsMemberIsRefused) {
  expect_tensor_refused({.numel = 5}, "does not fit member");
}

TEST(TorchFile, CompressedMemberIsRefused) {
  auto members = members_of(dict({text("x"), tensor({})}));
  members[2].method = 8;
  expect_error([&] { parse(test::build_zip(members)); }, "\"m/data/0\" is compressed (zip method 8)");
}

TEST(TorchFile, BigEndianIsRefused) {
  auto members = members_of(dict({text("x"), tensor({})}));
  members[1].bytes = "big";
  expect_error([&] { parse(test::build_zip(members)); }, "byte order is \"big\"");
}

TEST(TorchFile, MissingByteOrderIsLittle) {
  auto members = members_of(dict({text("x"), tensor({})}));
  members.erase(members.begin() + 1);
  EXPECT_EQ(parse(test::build_zip(members)).tensors.size(), 1u);
}

TEST(TorchFile, MemberListedTwiceIsRefused) {
  auto members = members_of(dict({text("x"), tensor({})}));
  members.push_back(members[2]);
  expect_error([&] { parse(test::build_zip(members)); }, "listed twice");
}

TEST(TorchFile, BarePickleIsRefused) {
  expect_error([] { parse(pickle_of("}")); }, "its magic number is missing");
}

TEST(TorchFile, TarFormOf2017IsRefusedWithTheWayOut) {
  expect_error(
      [] {
        parse(test::build_tar({{"storages", "x"}, {"tensors", "y"}, {"pickle", "z"}}));
      },
      "torch files of that form (before 2018) are not read: load it in PyTorch");
}

TEST(TorchFile, OtherFilesAreRefused) {
  expect_error([] { parse("GIF89a"); }, "not a torch file");
  expect_error([] { parse(test::build_zip({{"word/document.xml", "x"}})); }, "without a data.pkl");
}

TEST(TorchFile, TruncatedArchiveIsRefused) {
  const std::string file = archive_of(dict({text("x"), tensor({})}));
  expect_error([&] { parse(file.substr(0, file.size() - 1)); }, "damaged zip file");
}

TEST(TorchFile, RefusedOpcodeIsNamed) {
  expect_refused("I1\n", "opcode 0x49 (INT)");
  expect_refused("\xf0", "opcode 0xf0 (unknown)");
}

TEST(TorchFile, BrokenPicklesAreRefused) {
  for (const char* value : {"",
                            "0",
                            "1",
                            "t",
                            "\x85",
                            "a",
                            "s",
                            "u",
                            "R",
                            "b",
                            "Q",
                            "h\x05",
                            "r\xff\xff\xff\xff",
                            "Kx",
                            "}K\x01u",
                            "}(K\x01u",
                            "K\x01K\x02"
                            "a",
                            "X\xff\xff\xff\xff",
                            "cos",
                            "(K\x01",
                            "(("}) {
    const std::string message = test::error_of([&] { parse(archive_of(value)); });
    EXPECT_NE(message.find("f.pt: "), std::string::npos) << message;
  }
}

TEST(TorchFile, DeepNestingIsDataInTheOptimizerAndRefusedInTheConfig) {
  std::string deep = "N";
  for (int i = 0; i < 100'000; ++i) deep += "\x85";
  const std::string weights = dict({text("x"), tensor({})});
  EXPECT_EQ(parse(archive_of(dict({text("ema"), weights, text("opt"), deep}))).weights_key, "ema");
  expect_error([&] { parse(checkpoint_with_args(dict({text("k"), deep}))); }, "nested deeper");
}

TEST(TorchFile, ListThatHoldsItselfInTheConfigIsRefused) {
  expect_error(
      [] {
        parse(checkpoint_with_args(dict({text("k"),
                                         "]q\x01h\x01"
                                         "a"})));
      },
      "nested deeper");
}

TEST(TorchFile, ConfigThatUnfoldsBeyondMeasureIsRefused) {
  std::string bomb = "(]q";  // a tuple of lists, each of which holds the one before twice
  bomb += '\0';
  for (char level = 1; level < 40; ++level) {
    const char below[] = {'h', static_cast<char>(level - 1), 0};
    bomb += "](" + std::string(below, 2) + std::string(below, 2) + "eq" + level;
  }
  expect_error([&] { parse(checkpoint_with_args(dict({text("k"), bomb + "t"}))); }, "is larger than");
}

TEST(TorchFile, MoreThan2To19ValuesAreRefused) {
  expect_refused("(" + std::string((1 << 19) + 1, '}') + "t", "more than 524288 values");
}

TEST(TorchFile, MoreThan2To20ItemsMarksOrMemoEntriesAreRefused) {
  const std::string message = "more than 1048576 entries";
  expect_refused("](" + std::string((1 << 20) + 1, 'N') + "e", message);
  std::string appended = "]";
  for (int i = 0; i <= 1 << 20; ++i) appended += "Na";
  expect_refused(appended, message);
  expect_refused(std::string((1 << 20) + 1, '('), message);
  std::string put = "r";
  append_little<uint32_t>(put, 1 << 20);
  std::string far_into_the_file;
  for (int i = 0; i <= 1 << 19; ++i) far_into_the_file += "N0";
  expect_refused(far_into_the_file + "N" + put, message);
}

TEST(TorchFile, LongNamesAndKeysAreRefused) {
  // A long text named in many places would be copied as many times.
  const std::string name(1025, 'n');
  expect_refused(dict({text(name), tensor({})}), "a name of 1025 bytes; at most 1024 are read");
  expect_tensor_refused({.key = std::string(256, '0')}, "not that of a storage");
}

TEST(TorchFile, MutatedFilesAreReadOrRefused) {
  const std::string seed = archive_of(dict(
      {text("ema"), ordered_dict({text("x"), tensor({}), text("y"), tensor({.sizes = {4}, .strides = {1}})}),
       text("args"), namespace_of({text("depth"), number(2), text("l"), list({real(0.5), "N"})})}));
  parse(seed);
  const int refused = test::refused_mutations(seed, 5000, parse);
  EXPECT_GT(refused, 1000);
  EXPECT_LT(refused, 5000);
}

}  // namespace
}  // namespace dydit

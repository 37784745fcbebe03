// Nearest names, the names of enums and of instruction sets, and what "auto" means.
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/base/dtype.h"
#include "dydit/base/enum_names.h"
#include "dydit/base/error.h"
#include "dydit/base/isa.h"
#include "dydit/base/nearest.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

using test::expect_error;

TEST(NearestName, IsTheOneWithTheFewestEdits) {
  const std::vector<std::string> names = {"blocks.0.mlp.fc1.bias", "blocks.0.mlp.fc2.weight", "pos_embed"};
  EXPECT_EQ(nearest_name("blocks.0.mlp.fc1.weight", names), "blocks.0.mlp.fc2.weight");
}

TEST(NearestName, CountsInsertionsAndDeletionsAsOneEditEach) {
  // To "abc": "abxxc" takes two edits, "bc" one.
  EXPECT_EQ(nearest_name("abc", std::vector<std::string>{"abxxc", "bc"}), "bc");
}

TEST(NearestName, FirstOfEqualsWins) {
  EXPECT_EQ(nearest_name("cat", std::vector<std::string>{"bat", "hat"}), "bat");
}

TEST(NearestName, WithoutCandidatesIsEmpty) { EXPECT_EQ(nearest_name("x", {}), ""); }

enum class Fruit { Apple, Pear, Plum };
constexpr EnumNames<Fruit, 3> kFruitNames = {
    "fruit", {{"apple", Fruit::Apple}, {"pear", Fruit::Pear}, {"plum", Fruit::Plum}}};

TEST(EnumNames, AreReadBack) {
  for (const Fruit fruit : {Fruit::Apple, Fruit::Pear, Fruit::Plum})
    EXPECT_EQ(kFruitNames.at(kFruitNames[fruit]), fruit);
  EXPECT_EQ(kFruitNames[Fruit::Pear], "pear");
}

TEST(EnumNames, AnyOtherIsRefusedWithTheKnownOnes) {
  for (const char* name : {"", "pea", "pears"}) {
    EXPECT_EQ(kFruitNames.find(name), std::nullopt);
    EXPECT_THROW(kFruitNames.at(name), UsageError);
  }
  expect_error([] { kFruitNames.at("fig"); }, "fruit 'fig' is unknown; choose from apple, pear, plum");
}

TEST(EnumNames, AreListedAfterWhatElseAFlagTakes) {
  EXPECT_EQ(kFruitNames.names({"auto"}), (std::vector<std::string>{"auto", "apple", "pear", "plum"}));
}

TEST(Dtype, AutoIsWhatTheProcessorMultipliesFastest) {
  EXPECT_EQ(dtype_of("auto"), bf16_dot_pays() ? at::kBFloat16 : at::kFloat);
  EXPECT_EQ(dtype_of("auto", at::kCUDA), at::kBFloat16);
  EXPECT_EQ(dtype_of("f32", at::kCUDA), at::kFloat);
}

TEST(Isa, NamesAreThoseOfTheFlag) {
  const std::vector<std::string> names = {"sse", "avx2", "avx512", "avx512_bf16", "amx"};
  for (size_t i = 0; i < names.size(); ++i) EXPECT_EQ(isa_name(static_cast<Isa>(i)), names[i]);
}

TEST(Level, DotProductsOfBfloat16PayWithTilesAndOnProcessorsThatAreNotIntels) {
  for (const bool intel : {false, true}) {
    EXPECT_FALSE(bf16_dot_pays(Isa::Avx2, intel));
    EXPECT_FALSE(bf16_dot_pays(Isa::Avx512, intel));
    EXPECT_EQ(bf16_dot_pays(Isa::Avx512Bf16, intel), !intel);
    EXPECT_TRUE(bf16_dot_pays(Isa::Amx, intel));
  }
}

TEST(Level, WithoutThemBfloat16WeightsMeetFloat32Activations) {
  EXPECT_EQ(level_of(at::kFloat), kLevelF32);
  EXPECT_EQ(level_of(at::kBFloat16), bf16_dot_pays() ? kLevelBf16Dot : kLevelBf16Fma);
}

TEST(Level, ThoseOfAProcessorAreTheOnesItCanCompute) {
  EXPECT_EQ(levels_at(Isa::Avx2, false), (std::vector<Level>{kLevelF32, kLevelBf16Fma}));
  EXPECT_EQ(levels_at(Isa::Amx, true),
            (std::vector<Level>{kLevelF32, kLevelBf16Fma, kLevelBf16Dot, kLevelInt8F32, kLevelInt8Bf16}));
}

TEST(Isa, UnknownCapNamesTheOnesThereAre) {
  EXPECT_THROW(apply_isa_cap("avx1024"), UsageError);
  expect_error([] { apply_isa_cap("avx1024"); },
               "DYDIT_ISA=avx1024: expected avx2, avx512, avx512_bf16 or amx");
}

TEST(Isa, SseIsNotEnough) {
  EXPECT_THROW(apply_isa_cap("sse"), UsageError);
  expect_error([] { apply_isa_cap("sse"); }, "needs AVX2");
}

TEST(Isa, WithoutACapTheDetectedLevelIsInForce) { EXPECT_EQ(apply_isa_cap(""), detect_isa()); }

}  // namespace
}  // namespace dydit

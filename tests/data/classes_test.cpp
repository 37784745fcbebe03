// Labels by name: what is mapped, what is taken by position, what is refused, and what is said of it.
#include "dydit/data/classes.h"

#include <gtest/gtest.h>

#include "dydit/io/unicode.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

using test::expect_error;
using Names = std::vector<std::string>;
using Labels = std::vector<int>;

const Names kPets = {"bird", "cat", "dog"};
const std::string kComposed = "caf\u00E9", kApart = "cafe\u0301";

ClassMatch match(const Names& data, const Names& model, MatchRule rule = MatchRule::Name, bool named = true) {
  const int count = model.empty() ? 20 : static_cast<int>(model.size());
  return match_classes({data, named}, {model, count, rule}, "set");
}

bool mentions(const Names& lines, const std::string& part) {
  return std::any_of(lines.begin(), lines.end(),
                     [&](const std::string& line) { return line.find(part) != line.npos; });
}

TEST(MatchClasses, TheSameListNeedsNoWord) {
  const ClassMatch found = match(kPets, kPets);
  EXPECT_EQ(found.labels, (Labels{0, 1, 2}));
  EXPECT_TRUE(found.notes.empty());
  EXPECT_TRUE(found.warnings.empty());
}

TEST(MatchClasses, ASubsetIsMappedByNameAndTold) {
  const ClassMatch found = match({"bird", "dog"}, kPets);
  EXPECT_EQ(found.labels, (Labels{0, 2}));
  EXPECT_EQ(found.names, kPets);
  EXPECT_TRUE(mentions(found.notes, "\"dog\" -> 2 (\"dog\")"));
}

TEST(MatchClasses, AnotherOrderIsMappedByName) {
  EXPECT_EQ(match({"bird", "cat", "dog"}, {"dog", "bird", "cat"}).labels, (Labels{1, 2, 0}));
}

TEST(MatchClasses, AnUnknownNameIsRefusedWithBothListsAndTheNearest) {
  expect_error(
      [] {
        match({"bird", "dogs", "fox"}, kPets);
      },
      "set: 2 of its 3 classes are no class of the model: \"dogs\", \"fox\" (nearest to \"dogs\": \"dog\"); "
      "the model has \"bird\", \"cat\", \"dog\".");
  expect_error([] { match({"Cat", "dog"}, kPets); }, "--match-classes position");
}

TEST(MatchClasses, APartOfANameWithCommasIsItsClass) {
  const Names fish = {"tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "crane, machine"};
  EXPECT_EQ(match({"Carassius auratus", "tench"}, fish).labels, (Labels{1, 0}));
  EXPECT_EQ(match({"crane", "machine"}, fish).labels, (Labels{2, 3}));
}

TEST(MatchClasses, AnotherFormOfUnicodeIsTheSameName) {
  EXPECT_EQ(match({kApart}, {"bar", kComposed}).labels, (Labels{1}));
  EXPECT_EQ(match({kComposed}, {"bar", kApart}).labels, (Labels{1}));
}

TEST(MatchClasses, TwoFoldersOfOneClassAreRefused) {
  expect_error([] { match({kApart, kComposed}, {"bar", kComposed}); }, "are both class 1");
}

TEST(MatchClasses, NamesOfTheModelThatRepeatAreRefusedUnlessTheListsAreTheSame) {
  EXPECT_EQ(match({"crane", "crane"}, {"crane", "crane"}).labels, (Labels{0, 1}));
  expect_error([] { match({"crane"}, {"crane", "bird", "crane"}); }, "could be label 0 or 2");
}

TEST(MatchClasses, WithoutNamesOnOneSidePositionCountsAndIsTold) {
  for (const auto& found :
       {match({"0", "1", "2"}, kPets, MatchRule::Name, /*named=*/false), match(kPets, {})}) {
    EXPECT_EQ(found.labels, (Labels{0, 1, 2}));
    EXPECT_TRUE(mentions(found.notes, "by position"));
  }
  EXPECT_EQ(match({"0", "1"}, kPets).names, kPets);  // folders that are labels
  EXPECT_EQ(match(kPets, {"0", "1", "2"}).labels, (Labels{0, 1, 2}));
}

TEST(MatchClasses, FoldersThatAreOtherNumbersNeedAWord) {
  for (const Names& numbers : {Names{"0", "1", "10", "2"}, Names{"1", "2", "3"}}) {
    expect_error([&] { match(numbers, {}); }, "--match-classes number: a name is its label; position:");
  }
  EXPECT_EQ(match({"0", "1", "10", "2"}, {}, MatchRule::Number).labels, (Labels{0, 1, 10, 2}));
  EXPECT_EQ(match({"0", "1", "10", "2"}, {}, MatchRule::Position).labels, (Labels{0, 1, 2, 3}));
  EXPECT_EQ(match({"000", "001", "002"}, {}).labels, (Labels{0, 1, 2}));
  // A model that learned from such folders has their names.
  EXPECT_EQ(match({"10", "2"}, {"0", "1", "10", "2"}).labels, (Labels{2, 3}));
}

TEST(MatchClasses, PositionAgainstTheNamesIsAWarning) {
  const ClassMatch found = match({"rose", "tulip"}, kPets, MatchRule::Position);
  EXPECT_EQ(found.labels, (Labels{0, 1}));
  EXPECT_TRUE(mentions(found.warnings, "\"tulip\" -> 1 (\"cat\")"));
}

TEST(MatchClasses, NumbersOutOfRangeAreRefused) {
  expect_error([] { match({"0", "20"}, {}, MatchRule::Number); }, "class \"20\" is no number from 0 to 19");
  expect_error([] { match({"0", "cat"}, {}, MatchRule::Number); }, "class \"cat\" is no number");
  expect_error([] { match({"1", "01"}, {}, MatchRule::Number); }, "are both class 1");
}

TEST(ClassNames, NumbersThatSortAsTextAndTwinsAreTold) {
  Names notes, warnings;
  note_class_names({{"1", "10", "2"}}, notes, warnings);
  EXPECT_TRUE(mentions(notes, "\"1\" has label 0"));
  note_class_names({{kApart, kComposed}}, notes, warnings);
  EXPECT_TRUE(mentions(warnings, "form of Unicode alone"));
  notes.clear();
  note_class_names({{"0", "1", "2"}}, notes, warnings);
  EXPECT_TRUE(notes.empty());
}

TEST(ClassNames, OtherBytesThanPrintableUtf8AreRefused) {
  expect_error([] { check_class_name("caf\xE9", "set: class"); }, "set: class \"caf\\xe9\" is not UTF-8");
  expect_error([] { check_class_name("a\x1b[31m", "set: class"); }, "holds control characters");
  check_class_name("d\u00E9j\u00E0 vu, \u732B", "set: class");
}

TEST(UnicodeKey, IsTheSameForComposedAndApart) {
  const std::vector<std::pair<std::string, std::string>> same = {
      {kComposed, kApart},
      {"\u1EC7", "e\u0323\u0302"},                               // two marks
      {"\u1EC7", "e\u0302\u0323"},                               // in the other order
      {"\u304C", "\u304B\u3099"},                                // kana
      {"\uD55C\uAE00", "\u1112\u1161\u11AB\u1100\u1173\u11AF"},  // Hangul
      {"\u0439", "\u0438\u0306"}};                               // Cyrillic
  for (const auto& [composed, apart] : same) EXPECT_EQ(unicode_key(composed), unicode_key(apart)) << composed;
  EXPECT_NE(unicode_key("cafe"), unicode_key(kComposed));
  EXPECT_NE(unicode_key("\xE9"), unicode_key("\u00E9"));  // a byte that is no UTF-8
}

}  // namespace
}  // namespace dydit

// What a list of classes means.
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/data/classes.h"

namespace dydit {
namespace {

using Labels = std::vector<int>;

const std::vector<std::string> kFish = {"pike, Esox lucius, jack", "crane",        "perch,  Perca",
                                        "crane, derrick",          "salt, pepper", "salt"};
const std::vector<std::string> kNumbers = {"1", "10", "2", "0", "3, 4"};

Labels fish(const std::string& list) { return resolve_classes(list, kFish, 6); }
Labels numbers(const std::string& list) { return resolve_classes(list, kNumbers, 5); }

void expect_refused(const std::string& words, const std::string& list,
                    const std::vector<std::string>& names = kFish) {
  try {
    resolve_classes(list, names, 6);
    ADD_FAILURE() << list << " is accepted";
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
}

TEST(Classes, ANumberIsALabelWhateverTheClassesAreCalled) {
  EXPECT_EQ(numbers("1"), Labels{1});
  EXPECT_EQ(numbers("2,0, 3"), (Labels{2, 0, 3}));
  EXPECT_EQ(numbers("3, 4"), (Labels{3, 4}));
  EXPECT_EQ(fish("0004"), Labels{4});
}

TEST(Classes, ANumberThatIsNoLabelMayBeAName) {
  EXPECT_EQ(numbers("10"), Labels{1});
  EXPECT_EQ(numbers("10,4"), (Labels{1, 4}));
  expect_refused("class 7: this model has classes 0 to 5", "7", {"1", "10", "2", "3", "4", "5"});
}

TEST(Classes, ANumberThatIsMeantAsANameSaysSo) {
  EXPECT_EQ(numbers("name:10"), Labels{1});
  EXPECT_EQ(numbers("name:2,2,\"0\""), (Labels{2, 2, 3}));
  EXPECT_EQ(numbers("name:3, 4"), Labels{4});
  EXPECT_EQ(numbers("\"3, 4\""), Labels{4});
}

TEST(Classes, ANameWithCommasIsTakenAsAWhole) {
  EXPECT_EQ(fish("pike, Esox lucius, jack"), Labels{0});
  EXPECT_EQ(fish("pike,Esox lucius,jack,perch, Perca"), (Labels{0, 2}));
  EXPECT_EQ(fish("5, \"pike, Esox lucius, jack\" ,4"), (Labels{5, 0, 4}));
}

TEST(Classes, EachOfItsNamesChoosesAClass) {
  EXPECT_EQ(fish("jack"), Labels{0});
  EXPECT_EQ(fish("Perca,derrick,Esox lucius"), (Labels{2, 3, 0}));
}

TEST(Classes, TheLongestNameWins) {
  EXPECT_EQ(fish("salt, pepper"), Labels{4});
  EXPECT_EQ(fish("pepper, pike"), (Labels{4, 0}));
}

TEST(Classes, ANameOfSeveralClassesListsTheirLabels) {
  expect_refused("'crane' is a name of 2 classes; give a label: 1, 3", "crane");
  expect_refused("4, 5", "\"salt\"");
  const std::vector<std::string> same(40, "x");
  expect_refused("40 classes; give a label: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...", "x", same);
}

TEST(Classes, WhatCannotBeMeantIsNamed) {
  expect_refused("class 6: this model has classes 0 to 5", "6");
  expect_refused("class -1", "-1");
  expect_refused("0 to 5", "99999999999999999999");
  expect_refused("'pkie' is unknown; nearest: ", "pkie");
  expect_refused("no class names; give 0 to 5", "cat", {});
  for (const char* list : {"", ",", "1,", "1,,2", " "}) expect_refused("an item is empty", list);
  expect_refused("not closed", "\"pike");
  expect_refused("follows a quote", "\"jack\" pot");
  expect_refused("not UTF-8", "caf\xe9");
  expect_refused("\\x1b[31m", "\x1b[31m");
}

TEST(Classes, AQuoteInANameIsDoubled) {
  EXPECT_EQ(resolve_classes("\"the \"\"x\"\"\"", std::vector<std::string>{"a", "the \"x\""}, 2), Labels{1});
}

}  // namespace
}  // namespace dydit

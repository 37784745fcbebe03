// Classes have names: the labels of a data set become those of a model by name, never silently by position.
#pragma once

#include <string>
#include <vector>

#include "dydit/base/enum_names.h"

namespace dydit {

/// How a class of the data finds its label of the model.
enum class MatchRule {
  Name,      // by name where both sides have names, else by position
  Position,  // the first class is label 0, ...
  Number,    // the name is the label
};
inline constexpr EnumNames<MatchRule, 3> kMatchNames = {
    "match-classes",
    {{"name", MatchRule::Name}, {"position", MatchRule::Position}, {"number", MatchRule::Number}}};

/// The classes of the model that the data is for.
struct ModelClasses {
  std::vector<std::string> names;  // empty, or `count` of them
  int count = 0;                   // labels 0..count-1
  MatchRule rule = MatchRule::Name;
};

/// The classes of a data set by label.
struct DataClasses {
  std::vector<std::string> names;
  bool named = true;  // false: the names are numbers that the format gave (npz; CIFAR without its list)
};

struct ClassMatch {
  std::vector<int> labels;                   // of the model, one a class of the data
  std::vector<std::string> names;            // of the labels from now on: the model's, else the data's
  std::vector<std::string> notes, warnings;  // lines to tell
};

/// By MatchRule::Name: lists that are the same; else each class of the data by its name (equal, or in another
/// form of Unicode, or one of the parts of a name with commas), the rest of the model's classes having no
/// images; where one side has no names but numbers, by position. Throws Error that names the classes and the
/// way out: a class that the model does not have, two classes that are one, names that are numbers but not
/// 0, 1, 2, ... beside a model without names. `where` is the data set's path.
ClassMatch match_classes(const DataClasses& data, const ModelClasses& model, const std::string& where);

/// What is worth saying of a data set's own names: numbers that sort as text, names that differ in their form
/// of Unicode alone.
void note_class_names(const DataClasses& data, std::vector<std::string>& notes,
                      std::vector<std::string>& warnings);

/// Throws Error unless the name is UTF-8 without control characters; `what` begins the message.
void check_class_name(const std::string& name, const std::string& what);

}  // namespace dydit

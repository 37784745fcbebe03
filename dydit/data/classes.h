// Classes have names: the labels of a data set become those of a model by name, never silently by position;
// and a person names the model's classes by number or name.
#pragma once

#include <span>
#include <string>
#include <string_view>
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

/// Classes that are called 0, 1, ..., count - 1.
DataClasses numbered_classes(int count);

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

/// The labels that `list` names, in its order. Its items are separated by commas:
/// - 207: a label, whatever the classes are called; where there is no such label, a class that is called so;
/// - cat: the class of that name, or the only one that has it among its names ("tench, Tinca tinca" has two);
/// - tench, Tinca tinca: a name that holds commas, where a class is called so as a whole;
/// - "tench, Tinca tinca": the same in quotes, "" for a quote in them; never taken apart;
/// - name:10: the class that is called 10.
/// `names` may be empty: the model has none. Throws UsageError that begins with "class": out of range,
/// unknown (with the nearest name), a name of several classes (with their labels), no UTF-8, a quote left
/// open.
std::vector<int> resolve_classes(std::string_view list, std::span<const std::string> names, int num_classes);

/// Throws Error unless the name is UTF-8 without control characters; `what` begins the message.
void check_class_name(const std::string& name, const std::string& what);

}  // namespace dydit

// Which classes a person means: a number is a label, anything else a name.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dydit {

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

}  // namespace dydit

// The sets of weights in a torch pickle: where they may lie, what is read of each, and the names that a list
// gets from the set beside it.
#include "dydit/io/torch_sets.h"

#include <algorithm>
#include <array>
#include <utility>

#include "dydit/base/error.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

constexpr size_t kMaxTensors = 1 << 16;
constexpr size_t kMaxNameBytes = 1024;
constexpr const char* kUnnamed = "?";  // a list that no set gave its names yet
constexpr const char* kSaveStateDict = "Save plain tensors: torch.save({\"ema\": ema.state_dict()}, file).";

// Where a set of weights may lie.
struct Place {
  PickleIndex value;
  std::string key;
  size_t rank;  // of averages, then of known keys, then of others
};

constexpr std::array<std::string_view, 17> kKeys = {
    "ema",        "model_ema",      "ema_model",        "params_ema",
    "ema_params", "state_dict_ema", "ema_state_dict",   "shadow_params",
    "model",      "state_dict",     "model_state_dict", "net",
    "network",    "params",         "module",           "weights",
    "dit"};
constexpr size_t kOtherAverages = 7;  // before shadow_params
constexpr size_t kOthers = kKeys.size();

size_t rank_of(std::string_view key) {
  const auto found = std::find(kKeys.begin(), kKeys.end(), key);
  if (found != kKeys.end()) return static_cast<size_t>(found - kKeys.begin());
  return is_average_key(key) ? kOtherAverages : kOthers;
}

// Finds every set in the root and one level below it.
class PlaceFinder {
 public:
  explicit PlaceFinder(const Pickle& pickle) : pickle_(pickle) {}

  std::vector<Place> find() {
    const std::vector<Entry> root = entries(pickle_.root);
    for (const Entry& entry : root) look_at(entry);
    if (places_.empty() || holds_tensors(root)) places_.push_back({pickle_.root, "", kOthers + 1});
    std::stable_sort(places_.begin(), places_.end(),
                     [](const Place& a, const Place& b) { return a.rank < b.rank; });
    return std::move(places_);
  }

 private:
  static constexpr size_t kMaxPlaces = 64;
  static constexpr size_t kMaxLooks = 1
                                      << 20;  // dicts may be shared: looking at them all could take for ever

  struct Entry {
    std::string_view key;
    PickleIndex value;
  };

  std::vector<Entry> entries(PickleIndex dict) {
    std::vector<Entry> result;
    if (pickle_[dict].kind != PickleKind::Dict || looks_ > kMaxLooks) return result;
    looks_ += pickle_[dict].item_count;
    const std::vector<PickleIndex> items = pickle_.items_of(dict);
    for (size_t i = 0; i + 1 < items.size(); i += 2) {
      const PickleValue& key = pickle_[items[i]];
      if (key.kind == PickleKind::String && key.text().size() <= kMaxNameBytes && is_utf8(key.text()))
        result.push_back({key.text(), items[i + 1]});
    }
    return result;
  }

  bool holds_tensors(const std::vector<Entry>& entries) const {
    return std::any_of(entries.begin(), entries.end(), [&](const Entry& entry) {
      return pickle_[entry.value].kind == PickleKind::Tensor && !is_counter_name(entry.key);
    });
  }

  // A list without names is of use under a key that says what it is.
  bool is_list(const Entry& entry) const {
    return pickle_[entry.value].kind == PickleKind::List && is_average_key(entry.key);
  }

  void add(Place place) {
    place.key = printable(place.key, place.key.npos);  // it is typed after --weights and told in messages
    if (places_.size() < kMaxPlaces) places_.push_back(std::move(place));
  }

  void look_at(const Entry& entry) {
    const PickleKind kind = pickle_[entry.value].kind;
    const size_t rank = rank_of(entry.key);
    if (kind == PickleKind::None || kind == PickleKind::Tensor) return;
    const std::string key(entry.key);
    if (is_list(entry)) return add({entry.value, key, rank});
    const std::vector<Entry> inner = entries(entry.value);
    if (holds_tensors(inner)) return add({entry.value, key, rank});
    const size_t before = places_.size();
    for (const Entry& below : inner) {
      const bool sets = is_list(below) || holds_tensors(entries(below.value));
      if (sets && (rank < kOthers || rank_of(below.key) < kOthers))
        add({below.value, key + "." + std::string(below.key), std::min(rank, rank_of(below.key))});
    }
    if (places_.size() == before && rank < kOthers) add({entry.value, key, rank});  // with a fault
  }

  const Pickle& pickle_;
  std::vector<Place> places_;
  size_t looks_ = 0;
};

// Reads the tensors of one place; Error becomes the set's fault.
class SetReader {
 public:
  SetReader(const Pickle& pickle, const TorchStorages& storages, const std::string& file)
      : pickle_(pickle), storages_(storages), file_(file) {}

  TorchWeights read(const Place& place) {
    TorchWeights set;
    set.key = place.key;
    set.averaged = place.rank < rank_of("model");
    try {
      const PickleKind kind = pickle_[place.value].kind;
      if (kind == PickleKind::List) {
        read_list(place.value, set);
      } else {
        DYDIT_CHECK(kind == PickleKind::Dict, "{}: {} a {}, not a dict of tensors. {}", file_,
                    place.key.empty() ? "holds" : set.key + " is", pickle_.describe(place.value),
                    kSaveStateDict);
        read_dict(place.value, set);
      }
      DYDIT_CHECK(!set.tensors.empty(), "{}: {} holds no tensors. {}", file_,
                  set.key.empty() ? "it" : set.key, kSaveStateDict);
      check_covered(set.tensors, file_);
    } catch (const Error& error) {
      set.tensors.clear();
      set.fault = error.what();
    }
    return set;
  }

 private:
  void charge(size_t entries, const TorchWeights& set) {
    total_ += entries;
    DYDIT_CHECK(total_ <= kMaxTensors, "{}: {} has {} entries; at most {} are read in all. {}", file_,
                set.key, entries, kMaxTensors, kSaveStateDict);
  }

  void read_dict(PickleIndex dict, TorchWeights& set) {
    charge(pickle_[dict].item_count / 2, set);
    const std::vector<PickleIndex> items = pickle_.items_of(dict);
    for (size_t i = 0; i + 1 < items.size(); i += 2) {
      const PickleValue& key = pickle_[items[i]];
      DYDIT_CHECK(key.kind == PickleKind::String, "{}: {} has a {} as a key; names are wanted. {}", file_,
                  set.key, pickle_.describe(items[i]), kSaveStateDict);
      const std::string label = fmt::format("{}[{}]", set.key, quote(key.text()));
      DYDIT_CHECK(key.text().size() <= kMaxNameBytes, "{}: {}: a name of {} bytes; at most {} are read. {}",
                  file_, label, key.text().size(), kMaxNameBytes, kSaveStateDict);
      std::string name(key.text());
      if (is_counter(name, items[i + 1])) {
        set.counters.push_back(std::move(name));
        continue;
      }
      DYDIT_CHECK(pickle_[items[i + 1]].kind == PickleKind::Tensor,
                  "{}: {} is a {}, not a tensor; every entry of the weights must be one. {}", file_, label,
                  pickle_.describe(items[i + 1]), kSaveStateDict);
      const auto [place, added] = set.tensors.insert_or_assign(
          name, read_torch_tensor(pickle_, storages_, items[i + 1], label, file_));
      if (added) set.names.push_back(std::move(name));
    }
  }

  // Named by their number for now.
  void read_list(PickleIndex list, TorchWeights& set) {
    charge(pickle_[list].item_count, set);
    for (const PickleIndex item : pickle_.items_of(list)) {
      const std::string name = std::to_string(set.names.size());
      const std::string label = fmt::format("{}[{}]", set.key, name);
      DYDIT_CHECK(pickle_[item].kind == PickleKind::Tensor, "{}: {} is a {}, not a tensor. {}", file_, label,
                  pickle_.describe(item), kSaveStateDict);
      set.tensors.emplace(name, read_torch_tensor(pickle_, storages_, item, label, file_));
      set.names.push_back(name);
    }
    set.matched += kUnnamed;
  }

  bool is_counter(std::string_view name, PickleIndex index) const {
    const PickleKind kind = pickle_[index].kind;
    if (kind == PickleKind::Tensor) return false;  // judged where its shape is known
    if (name.ends_with("_metadata") || name.ends_with("_extra_state")) return true;
    return is_counter_name(name) && (kind == PickleKind::None || kind == PickleKind::Bool ||
                                     kind == PickleKind::Int || kind == PickleKind::Float);
  }

  const Pickle& pickle_;
  const TorchStorages& storages_;
  const std::string& file_;
  size_t total_ = 0;
};

// Averages are often a list in the order of the model's parameters, whose names and shapes stand beside it.
// All shapes must agree, in order; what does not learn (pos_embed) may be left out.
bool match(TorchWeights& list, const TorchWeights& named) {
  for (const bool all : {true, false}) {
    std::vector<std::string> names;
    for (const std::string& name : named.names) {
      if (all || !name.ends_with("pos_embed")) names.push_back(name);
    }
    if (names.size() != list.names.size()) continue;
    bool same = true;
    for (size_t i = 0; i < names.size(); ++i)
      same = same && named.tensors.at(names[i]).shape == list.tensors.at(list.names[i]).shape;
    if (!same) continue;
    TensorViews tensors;
    for (size_t i = 0; i < names.size(); ++i) tensors[names[i]] = list.tensors.at(list.names[i]);
    if (!all) {
      for (const std::string& name : named.names) tensors.try_emplace(name, named.tensors.at(name));
    }
    list.tensors = std::move(tensors);
    list.names = named.names;
    list.matched = named.key;
    return true;
  }
  return false;
}

void name_lists(std::vector<TorchWeights>& sets, const std::string& file) {
  for (TorchWeights& list : sets) {
    if (list.matched != kUnnamed) continue;
    const bool found =
        list.fault.empty() && std::any_of(sets.begin(), sets.end(), [&](const TorchWeights& set) {
          return set.matched.empty() && set.fault.empty() && match(list, set);
        });
    if (found) continue;
    if (list.fault.empty())
      list.fault = fmt::format(
          "{}: {} is a list of {} tensors without names, and no set in the file has as many "
          "of the same shapes. {}",
          file, list.key, list.names.size(), kSaveStateDict);
    list.matched.clear();
    list.tensors.clear();
  }
}

}  // namespace

bool is_average_key(std::string_view key) {
  for (const std::string_view word : {"ema", "shadow", "averaged", "average"}) {
    const size_t at = key.find(word);
    if (at == key.npos) continue;
    const bool begins = at == 0 || key[at - 1] == '_' || key[at - 1] == '.';
    const size_t end = at + word.size();
    if (begins && (end == key.size() || key[end] == '_' || key[end] == '.')) return true;
  }
  return false;
}

bool is_counter_name(std::string_view name) {
  constexpr std::array<std::string_view, 17> kCounters = {
      "num_batches_tracked", "n_averaged",  "initted",     "step",   "steps",
      "global_step",         "train_steps", "epoch",       "epochs", "iter",
      "iteration",           "iterations",  "num_updates", "decay",  "optimization_step",
      "_metadata",           "version"};
  const size_t dot = name.rfind('.');
  const std::string_view last = dot == name.npos ? name : name.substr(dot + 1);
  return std::find(kCounters.begin(), kCounters.end(), last) != kCounters.end();
}

const TorchWeights& preferred_weights(const TorchCheckpoint& checkpoint) {
  const TorchWeights& set = checkpoint.sets.front();
  if (!set.fault.empty()) throw Error(set.fault);
  return set;
}

std::vector<TorchWeights> read_torch_sets(const Pickle& pickle, const TorchStorages& storages,
                                          const std::string& file) {
  DYDIT_CHECK(pickle[pickle.root].kind == PickleKind::Dict, "{}: holds a {}, not a dict of tensors. {}", file,
              pickle.describe(pickle.root), kSaveStateDict);
  std::vector<TorchWeights> sets;
  SetReader reader(pickle, storages, file);
  for (const Place& place : PlaceFinder(pickle).find()) sets.push_back(reader.read(place));
  name_lists(sets, file);
  return sets;
}

}  // namespace dydit

// The state file is safetensors: four flat tensors; counters, options, surroundings and digests in its
// metadata.
#include "dydit/train/state.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/io/json.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxJsonDepth = 8;  // ours has 4
// The metadata that digest "metadata" is of, in this order.
constexpr std::array kTexts = {"counters", "options", "surroundings"};
// Options that states without digests do not have yet.
constexpr std::array kNewOptions = {"class-names", "data-classes", "data-images-digest",
                                    "importance",  "router-bias",  "start"};

// The run is whole but another one was asked for: nothing to skip.
class OptionsDiffer : public Error {
 public:
  using Error::Error;
};

fs::path state_path(const fs::path& run, int64_t step) {
  return run / "checkpoints" / fmt::format("{:07}.state", step);
}

// Steps of the run's state files, the newest first.
std::vector<int64_t> saved_steps(const fs::path& run) {
  std::vector<int64_t> steps;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", error)) {
    if (entry.path().extension() != ".state") continue;
    if (const auto step = parse_number<int64_t>(entry.path().stem().string())) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end(), std::greater());
  return steps;
}

std::vector<std::pair<std::string, at::Tensor>> buffers_of(const ParameterStore& store) {
  return {{"values", store.values},
          {"exp_avg", store.exp_avg},
          {"exp_avg_sq", store.exp_avg_sq},
          {"ema", store.ema}};
}

std::string digest_of(const TensorView& tensor) {
  return sha256_hex({tensor.data, static_cast<size_t>(tensor.numel()) * dtype_size(tensor.dtype)});
}

std::string digest_of(const std::map<std::string, std::string>& metadata) {
  std::string text;
  for (const char* key : kTexts) text += metadata.at(key) + '\n';
  return sha256_hex(std::as_bytes(std::span(text)));
}

// What the metadata of a state file says.
struct StateHeader {
  RunState state;
  nlohmann::json digests;  // null in files of an older version
};

std::string digest_in(const nlohmann::json& digests, const char* key) {
  const auto found = digests.find(key);
  return found != digests.end() && found->is_string() ? found->get<std::string>() : "";
}

StateHeader read_header(const SafetensorsFile& file, const std::string& name) {
  const auto meta = [&](const char* key) {
    const auto found = file.metadata.find(key);
    DYDIT_CHECK(found != file.metadata.end(), "{}: metadata '{}' is missing; not a training state", name,
                key);
    auto value = parse_json(found->second, kMaxJsonDepth);
    DYDIT_CHECK(value && value->is_object(), "{}: metadata '{}' is no JSON object", name, key);
    return *value;
  };
  StateHeader header;
  if (file.metadata.contains("digests")) {
    header.digests = meta("digests");
    header.state.surroundings = meta("surroundings");
  }
  const nlohmann::json counters = meta("counters");
  header.state.options = meta("options");
  DYDIT_CHECK(header.digests.is_null() || digest_in(header.digests, "metadata") == digest_of(file.metadata),
              "{}: its metadata has changed since it was saved; the disk or a copy damaged it", name);
  for (const auto& [key, target] :
       {std::pair{"step", &header.state.step}, std::pair{"updates", &header.state.updates},
        std::pair{"skipped", &header.state.skipped}}) {
    DYDIT_CHECK(counters.contains(key) && counters[key].is_number_integer(), "{}: counter '{}' is missing",
                name, key);
    *target = counters[key].get<int64_t>();
  }
  return header;
}

constexpr size_t kLongestShown = 200;

// "lr = 0.1, this run has 0.2", of lists and objects their first part that differs; nullopt when they agree.
// What would be written compares, not what is in memory: bytes that are no UTF-8 are replaced on the way.
std::optional<std::string> difference(const std::string& key, const nlohmann::json& saved,
                                      const nlohmann::json& wanted) {
  if (json_text(saved) == json_text(wanted)) return std::nullopt;
  const bool same_shape = saved.type() == wanted.type() && saved.size() == wanted.size();
  if (same_shape && saved.is_array()) {
    for (size_t i = 0; i < saved.size(); ++i) {
      if (const auto found = difference(fmt::format("{}[{}]", key, i), saved[i], wanted[i])) return found;
    }
  }
  if (same_shape && saved.is_object()) {
    for (const auto& [part, value] : wanted.items()) {
      if (const auto found = difference(key + "." + part, saved.value(part, nlohmann::json()), value))
        return found;
    }
  }
  return fmt::format("{} = {}, this run has {}", key, shown(saved, kLongestShown),
                     shown(wanted, kLongestShown));
}

// What the name of an option does not say by itself.
std::string_view hint(const std::string& key) {
  if (key == "data-images-digest") return " (other images or labels under --data-path and --split)";
  if (key == "start") return " (the SHA-256 of --model and its --weights)";
  return "";
}

std::optional<std::string> difference(const std::string& name, const StateHeader& header,
                                      const nlohmann::json& wanted) {
  const nlohmann::json& saved = header.state.options;
  for (const auto& [key, value] : wanted.items()) {
    const bool is_new = std::find(kNewOptions.begin(), kNewOptions.end(), key) != kNewOptions.end();
    if (is_new && header.digests.is_null()) continue;  // told when it is loaded
    if (const auto found = difference(key, saved.value(key, nlohmann::json()), value))
      return fmt::format("{}: was saved with {}{}; resume with the same, or start a new run", name, *found,
                         hint(key));
  }
  // Some are written only where they are not the default.
  for (const auto& [key, value] : saved.items()) {
    if (!wanted.contains(key))
      return fmt::format(
          "{}: was saved with {} = {}, which this run leaves at its default; resume with the same, or start "
          "a new "
          "run",
          name, key, shown(value, kLongestShown));
  }
  return std::nullopt;
}

// Whether the model beside a state is the one that was saved with it; says why it is not.
bool model_is_whole(const fs::path& path, const std::string& digest, const TellFn& tell) {
  std::error_code error;
  if (!fs::exists(path, error)) {
    tell(fmt::format("{}: is missing; it is written again from the state beside it", path.string()));
    return false;
  }
  std::string reason = "is not the model that was saved with the state beside it: damaged, or replaced";
  try {
    if (sha256_hex(MappedFile::open(path)->bytes()) == digest) return true;
  } catch (const Error& unreadable) {
    reason = unreadable.what();
  }
  tell(fmt::format("{}: {}; it is written again from the state", path.string(), reason));
  return false;
}

RunState read_state(const fs::path& run, int64_t step, ParameterStore& store, const nlohmann::json& wanted,
                    const TellFn& tell) {
  const fs::path path = state_path(run, step);
  const std::string name = path.string();
  const SafetensorsFile file = read_safetensors(path);
  StateHeader header = read_header(file, name);
  if (const auto found = difference(name, header, wanted))  // before the sizes: it says why those differ
    throw OptionsDiffer(*found);
  DYDIT_CHECK(header.state.step == step, "{}: holds the state of step {}; was it renamed?", name,
              header.state.step);
  const bool has_digests = !header.digests.is_null();
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  for (auto& [key, buffer] : buffers_of(store)) {
    const auto found = file.tensors.find(key);
    DYDIT_CHECK(found != file.tensors.end() && found->second.dtype == Dtype::F32 &&
                    found->second.numel() == buffer.numel(),
                "{}: tensor '{}' does not hold {} float32 values; was the model another one?", name, key,
                buffer.numel());
    DYDIT_CHECK(!has_digests || digest_in(header.digests, key.c_str()) == digest_of(found->second),
                "{}: tensor '{}' has changed since it was saved; the disk or a copy damaged it", name, key);
    copies.emplace_back(buffer, to_tensor(found->second, file.file));
  }
  for (auto& [buffer, saved] : copies) buffer.copy_(saved);  // only once all of them are known to be good
  if (has_digests) {
    header.state.model_is_whole =
        model_is_whole(model_path(run, step), digest_in(header.digests, "model"), tell);
  } else {
    tell(
        fmt::format("{}: an older version saved it, without checksums and without the names and the digest "
                    "of its data; it is taken as it is",
                    name));
  }
  return header.state;
}

}  // namespace

fs::path model_path(const fs::path& run, int64_t step) {
  return run / "checkpoints" / fmt::format("{:07}.safetensors", step);
}

void save_model(const fs::path& run, int64_t step, const Checkpoint& ema) {
  save_checkpoint(model_path(run, step), ema, at::kFloat, Durability::Synced);
}

void save_state(const fs::path& run, const RunState& state, const ParameterStore& store,
                const Checkpoint& ema) {
  save_model(run, state.step, ema);
  nlohmann::json digests = {{"model", sha256_hex(MappedFile::open(model_path(run, state.step))->bytes())}};
  auto buffers = buffers_of(store);
  TensorViews views;
  for (auto& [name, buffer] : buffers) {
    buffer = buffer.cpu();
    views[name] = to_view(buffer);
    digests[name] = digest_of(views[name]);
  }
  const nlohmann::json counters = {
      {"step", state.step}, {"updates", state.updates}, {"skipped", state.skipped}};
  std::map<std::string, std::string> metadata = {
      {"counters", json_text(counters)},
      {"options", json_text(state.options)},
      {"surroundings",
       json_text(state.surroundings.is_null() ? nlohmann::json::object() : state.surroundings)}};
  digests["metadata"] = digest_of(metadata);
  metadata["digests"] = json_text(digests);
  write_safetensors(state_path(run, state.step), views, metadata, Durability::Synced);
}

std::optional<RunState> load_newest_state(const fs::path& run, ParameterStore& store,
                                          const nlohmann::json& options, const TellFn& tell) {
  for (const int64_t step : saved_steps(run)) {
    try {
      return read_state(run, step, store, options, tell);
    } catch (const OptionsDiffer&) {
      throw;
    } catch (const Error& error) {
      tell(error.what());
    }
  }
  return std::nullopt;
}

std::optional<std::string> why_not_resumed(const fs::path& run, const nlohmann::json& options) {
  for (const int64_t step : saved_steps(run)) {
    const fs::path path = state_path(run, step);
    try {
      return difference(path.string(), read_header(read_safetensors(path), path.string()), options);
    } catch (const Error&) {  // load_newest_state tells it
    }
  }
  return fmt::format("{}: no whole checkpoint to resume from", run.string());
}

std::string differing_surroundings(const nlohmann::json& saved, const nlohmann::json& now) {
  std::string text;
  for (const auto& [key, value] : now.items()) {
    if (!saved.contains(key) || saved[key] == value) continue;
    const auto plain = [](const nlohmann::json& v) {
      return v.is_string() ? printable(v.get<std::string>()) : shown(v, kLongestShown);
    };
    text += fmt::format("{}{} = {} (now {})", text.empty() ? "" : ", ", key, plain(saved[key]), plain(value));
  }
  return text;
}

void remove_leftovers(const fs::path& run) {
  std::error_code ignored;  // what cannot be removed does no harm
  for (const fs::path& folder : {run, run / "checkpoints"}) {
    std::vector<fs::path> leftovers;
    for (const auto& entry : fs::directory_iterator(folder, ignored)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with('.') && name.find(".tmp-") != std::string::npos)  // OutputFile's
        leftovers.push_back(entry.path());
    }
    for (const fs::path& path : leftovers) fs::remove(path, ignored);
  }
}

void rotate_checkpoints(const fs::path& run, int64_t step, int keep_last, int64_t keep_every) {
  std::vector<int64_t> steps = saved_steps(run);
  std::erase_if(steps, [&](int64_t saved) { return saved > step; });
  for (size_t i = static_cast<size_t>(keep_last); i < steps.size(); ++i) {
    if (keep_every > 0 && steps[i] % keep_every == 0) continue;
    std::error_code ignored;  // a file that is gone already is as good
    fs::remove(state_path(run, steps[i]), ignored);
    fs::remove(model_path(run, steps[i]), ignored);
  }
}

}  // namespace dydit

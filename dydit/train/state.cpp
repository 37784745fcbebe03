// The state file is safetensors: five flat tensors, and counters and options in its metadata.
#include "dydit/train/state.h"

#include <algorithm>
#include <charconv>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/io/safetensors.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

// The run is whole but another one was asked for: nothing to skip.
class OptionsDiffer : public Error {
 public:
  using Error::Error;
};

fs::path checkpoint_path(const fs::path& run, int64_t step, const char* extension) {
  return run / "checkpoints" / fmt::format("{:07}{}", step, extension);
}

// Steps of the run's state files, ascending.
std::vector<int64_t> saved_steps(const fs::path& run) {
  std::vector<int64_t> steps;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", error)) {
    const std::string stem = entry.path().stem().string();
    int64_t step = 0;
    const auto [end, parse_error] = std::from_chars(stem.data(), stem.data() + stem.size(), step);
    if (entry.path().extension() == ".state" && parse_error == std::errc() &&
        end == stem.data() + stem.size()) {
      steps.push_back(step);
    }
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::vector<std::pair<std::string, at::Tensor>> buffers_of(const ParameterStore& store) {
  return {{"values", store.values},
          {"exp_avg", store.exp_avg},
          {"exp_avg_sq", store.exp_avg_sq},
          {"ema", store.ema}};
}

void check_same_options(const fs::path& path, const nlohmann::json& saved, const nlohmann::json& wanted) {
  for (const auto& [key, value] : wanted.items()) {
    if (saved.contains(key) && saved[key] == value) continue;
    throw OptionsDiffer(
        fmt::format("{}: was saved with {} = {}, this run has {}; resume with the same, or start a new run",
                    path.string(), key, saved.value(key, nlohmann::json()).dump(), value.dump()));
  }
}

RunState read_state(const fs::path& path, ParameterStore& store, const nlohmann::json& wanted) {
  const SafetensorsFile file = read_safetensors(path);
  const auto meta = [&](const char* key) {
    const auto found = file.metadata.find(key);
    DYDIT_CHECK(found != file.metadata.end(), "{}: metadata '{}' is missing; not a training state",
                path.string(), key);
    nlohmann::json value = nlohmann::json::parse(found->second, nullptr, /*allow_exceptions=*/false);
    DYDIT_CHECK(!value.is_discarded(), "{}: metadata '{}' is not JSON", path.string(), key);
    return value;
  };
  RunState state;
  const nlohmann::json counters = meta("counters");
  for (const auto& [key, target] : {std::pair{"step", &state.step}, std::pair{"updates", &state.updates},
                                    std::pair{"skipped", &state.skipped}}) {
    DYDIT_CHECK(counters.contains(key) && counters[key].is_number_integer(), "{}: counter '{}' is missing",
                path.string(), key);
    *target = counters[key].get<int64_t>();
  }
  state.options = meta("options");
  check_same_options(path, state.options, wanted);  // before the sizes: the options say why those differ
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  for (auto& [name, buffer] : buffers_of(store)) {
    const auto found = file.tensors.find(name);
    DYDIT_CHECK(found != file.tensors.end() && found->second.dtype == Dtype::F32 &&
                    found->second.numel() == buffer.numel(),
                "{}: tensor '{}' does not hold {} float32 values; was the model another one?", path.string(),
                name, buffer.numel());
    copies.emplace_back(buffer, to_tensor(found->second, file.file));
  }
  for (auto& [buffer, saved] : copies) buffer.copy_(saved);  // only once all of them are known to be good
  return state;
}

}  // namespace

void save_state(const fs::path& run, const RunState& state, const ParameterStore& store,
                const Checkpoint& ema) {
  fs::create_directories(run / "checkpoints");
  save_checkpoint(checkpoint_path(run, state.step, ".safetensors"), ema, at::kFloat);
  auto buffers = buffers_of(store);
  TensorViews views;
  for (auto& [name, buffer] : buffers) {
    buffer = buffer.cpu();
    views[name] = to_view(buffer);
  }
  const nlohmann::json counters = {
      {"step", state.step}, {"updates", state.updates}, {"skipped", state.skipped}};
  write_safetensors(checkpoint_path(run, state.step, ".state"), views,
                    {{"counters", counters.dump()}, {"options", state.options.dump()}}, Durability::Synced);
}

std::optional<RunState> load_newest_state(const fs::path& run, ParameterStore& store,
                                          const nlohmann::json& options,
                                          const std::function<void(const std::string& reason)>& on_broken) {
  std::vector<int64_t> steps = saved_steps(run);
  for (; !steps.empty(); steps.pop_back()) {
    const fs::path path = checkpoint_path(run, steps.back(), ".state");
    try {
      return read_state(path, store, options);
    } catch (const OptionsDiffer&) {
      throw;
    } catch (const Error& error) {
      on_broken(error.what());
    }
  }
  return std::nullopt;
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

void rotate_checkpoints(const fs::path& run, int keep_last, int64_t keep_every) {
  const std::vector<int64_t> steps = saved_steps(run);
  for (size_t i = 0; i + static_cast<size_t>(keep_last) < steps.size(); ++i) {
    if (keep_every > 0 && steps[i] % keep_every == 0) continue;
    std::error_code ignored;  // a file that is gone already is as good
    fs::remove(checkpoint_path(run, steps[i], ".state"), ignored);
    fs::remove(checkpoint_path(run, steps[i], ".safetensors"), ignored);
  }
}

}  // namespace dydit

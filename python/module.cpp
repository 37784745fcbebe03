// The module dydit._dydit. Tensors pass through LibTorch's own casters, so both sides see the same memory;
// the interpreter's lock is released while the library computes, and taken again for a moment between steps.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <pybind11/stl.h>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/csrc/utils/pybind.h>

#include "dydit/dydit.h"

namespace dydit {
namespace {

using Class = std::variant<int, std::string>;                   // a label, or a name as --classes takes it
using Classes = std::variant<std::string, std::vector<Class>>;  // a list in one text, or one by one
using Numbers = std::variant<at::Tensor, int64_t, std::vector<int64_t>>;  // one for all rows, or one a row
using Times = std::variant<at::Tensor, double, std::vector<double>>;      // likewise

// Number: int64_t or double, what the variant holds as a single number.
template <class Number, class Given>
std::vector<Number> one_a_row(const Given& given, int64_t rows, const char* name) {
  constexpr bool kWhole = std::is_integral_v<Number>;
  if (const auto* number = std::get_if<Number>(&given)) return std::vector<Number>(rows, *number);
  std::vector<Number> numbers;
  if (const auto* list = std::get_if<std::vector<Number>>(&given)) {
    numbers = *list;
  } else {
    const at::Tensor& tensor = std::get<at::Tensor>(given);
    const bool right = kWhole ? at::isIntegralType(tensor.scalar_type(), /*includeBool=*/false)
                              : !at::isComplexType(tensor.scalar_type());
    DYDIT_USAGE_CHECK(right && tensor.dim() <= 1, "{}: expected {}numbers, one or one a row", name,
                      kWhole ? "whole " : "");
    const at::Tensor all = tensor.to(at::kCPU, c10::CppTypeToScalarType<Number>::value).contiguous();
    numbers.assign(all.data_ptr<Number>(), all.data_ptr<Number>() + all.numel());
    if (tensor.dim() == 0) numbers.assign(rows, numbers[0]);
  }
  DYDIT_USAGE_CHECK(static_cast<int64_t>(numbers.size()) == rows, "{}: {} numbers for {} rows of x", name,
                    numbers.size(), rows);
  return numbers;
}

void check_timesteps(const std::vector<double>& timesteps, const DiTConfig& config) {
  for (const double t : timesteps) {
    DYDIT_USAGE_CHECK(is_time(config.objective, t), "timestep {}: expected 0 to {}{}", t,
                      last_time(config.objective), config.objective.continuous() ? "" : ", a whole number");
  }
}

std::vector<int> labels_of(const Classes& given, const Checkpoint& checkpoint) {
  const auto resolve = [&](const std::string& list) {
    return resolve_classes(list, checkpoint.class_names, std::max(checkpoint.config.num_classes, 1));
  };
  if (const auto* list = std::get_if<std::string>(&given)) return resolve(*list);
  std::vector<int> labels;
  for (const Class& one : std::get<std::vector<Class>>(given)) {
    if (const int* label = std::get_if<int>(&one)) {
      labels.push_back(*label);
    } else {
      for (const int named : resolve(std::get<std::string>(one))) labels.push_back(named);
    }
  }
  return labels;
}

at::ScalarType dtype_or_auto(std::optional<at::ScalarType> given, const Checkpoint& checkpoint,
                             EngineKind kind) {
  const at::ScalarType dtype = given ? *given : auto_dtype(checkpoint, kind);
  DYDIT_USAGE_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kChar,
                    "dtype {}: expected float32, bfloat16 or int8", c10::toString(dtype));
  return dtype;
}
int threads_of(std::optional<int> given) {
  const int threads = given.value_or(default_threads());
  DYDIT_USAGE_CHECK(threads >= 1, "{} threads: expected 1 or more", threads);
  return threads;
}

// A checkpoint, and what was made of it: a pipeline for each engine and dtype that was asked for.
class Model {
 public:
  Model(const std::string& path, const CheckpointOptions& options)
      : checkpoint_(load_checkpoint(path, options)) {}

  const Checkpoint& checkpoint() const { return checkpoint_; }

  at::Tensor generate(const Classes& given, std::optional<int> num_images, std::optional<int> steps,
                      const std::string& sampler, float eta, std::optional<float> cfg_scale, uint64_t seed,
                      int batch, std::optional<at::ScalarType> dtype, std::optional<int> threads,
                      const std::string& engine, const std::string& mode, const std::string& cache,
                      int guide_from, int guide_to, int guide_every, bool guide_weak,
                      const std::vector<int>& weak_steps, const std::vector<int>& level_from,
                      const std::optional<std::string>& plan, const py::object& progress) {
    const std::vector<int> classes = labels_of(given, checkpoint_);
    Request request = {.classes = classes,
                       .num_images = num_images.value_or(static_cast<int>(classes.size())),
                       .num_steps = steps.value_or(250),
                       .sampler = {.kind = sampler == "auto" ? default_sampler(checkpoint_.config.objective)
                                                             : kSamplerNames.at(sampler),
                                   .eta = eta},
                       .cfg_scale = cfg_scale.value_or(checkpoint_.config.can_guide() ? 4.0f : 1.0f),
                       .seed = seed,
                       .mode = kModeNames.at(mode)};
    DYDIT_USAGE_CHECK(weak_steps.empty() || level_from.empty(),
                      "weak_steps and level_from are both given; leave one out");
    take_few_step(checkpoint_.few_step, {sampler == "auto", !cfg_scale, !steps}, request);
    if (plan) {
      DYDIT_USAGE_CHECK(cache == "none", "cache {}: a plan is given; leave one out", cache);
      DYDIT_USAGE_CHECK(weak_steps.empty() && level_from.empty(),
                        "a plan is given, whose steps say their level; leave weak_steps and level_from out");
      request.plan = read_plan(*plan, checkpoint_.config);
    } else {
      plan_by_policy(
          {.cache = cache,
           .levels = {.steps = weak_steps, .from = level_from},
           .guide = {.from = guide_from, .to = guide_to, .every = guide_every, .weak = guide_weak}},
          checkpoint_.config, request);
    }
    const SamplingOptions options = {.batch = batch, .threads = threads_of(threads)};
    const EngineKind kind = kEngineNames.at(engine);
    const at::ScalarType type = dtype_or_auto(dtype, checkpoint_, kind);
    const DiTConfig& config = checkpoint_.config;
    check_memory(
        2.0 * request.num_images * config.in_channels * config.input_size * config.input_size * sizeof(float),
        fmt::format("{} images in one tensor", request.num_images), "make fewer in a call");
    std::vector<at::Tensor> samples;
    GenerateCallbacks callbacks;
    callbacks.on_sample = [&](GeneratedSample&& sample) { samples.push_back(std::move(sample.sample)); };
    callbacks.on_progress = [&](const Progress& now) {
      const py::gil_scoped_acquire lock;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (!progress.is_none()) progress(now.done, now.total);
    };
    const py::gil_scoped_release unlocked;
    pipeline(kind, type, options.threads)->generate(request, options, callbacks);
    return at::stack(samples);  // outside of inference mode: a tensor that autograd may use
  }

  void prepare(const std::vector<double>& timesteps, std::optional<at::ScalarType> dtype,
               std::optional<int> threads, const std::string& engine, const std::string& mode) {
    DYDIT_USAGE_CHECK(!timesteps.empty(), "no timestep given");
    check_timesteps(timesteps, checkpoint_.config);
    const int count = threads_of(threads);
    const EngineKind kind = kEngineNames.at(engine);
    const at::ScalarType type = dtype_or_auto(dtype, checkpoint_, kind);
    const Mode wanted = kModeNames.at(mode);
    const py::gil_scoped_release unlocked;
    const auto made = std::make_shared<Prepared>(pipeline(kind, type, count), wanted, count);
    made->pipeline->widths(timesteps, wanted);
    const std::set<double> ascending(timesteps.begin(), timesteps.end());
    made->workspace->prepare({ascending.rbegin(), ascending.rend()});
    const std::lock_guard lock(mutex_);
    prepared_ = made;
  }

  at::Tensor forward(const at::Tensor& x, const Times& t, const Numbers& y) {
    const DiTConfig& config = checkpoint_.config;
    const int side = config.input_size;
    DYDIT_USAGE_CHECK(x.device().is_cpu() && x.scalar_type() == at::kFloat && x.dim() == 4 && x.size(0) > 0 &&
                          x.size(1) == config.in_channels && x.size(2) == side && x.size(3) == side,
                      "x: expected (rows, {}, {}, {}) in float32 on the CPU, got ({}) in {} on {}",
                      config.in_channels, side, side, fmt::join(x.sizes(), ", "),
                      c10::toString(x.scalar_type()), x.device().str());
    const int64_t rows = x.size(0);
    const std::vector<double> timesteps = one_a_row<double>(t, rows, "t");
    const std::vector<int64_t> labels = one_a_row<int64_t>(y, rows, "y");
    for (const int64_t label : labels) {
      DYDIT_USAGE_CHECK(label >= 0 && label <= config.last_label(), "y: class {}; expected 0 to {}{}", label,
                        std::max(config.num_classes - 1, 0),
                        config.can_guide() ? fmt::format(", or {} for none", config.null_class()) : "");
    }
    check_timesteps(timesteps, config);
    const py::gil_scoped_release unlocked;
    const std::shared_ptr<Prepared> prepared = prepared_or_default();
    const std::lock_guard one_at_a_time(prepared->mutex);
    const at::NoGradGuard no_grad;
    const RunPlan plan = prepared->pipeline->widths(timesteps, prepared->mode);
    std::vector<Row> described;
    for (int64_t row = 0; row < rows; ++row) described.push_back({&plan.steps[row], labels[row]});
    std::vector<Work> work(described.size());
    ForwardOutputs outputs{.work = work};
    prepared->pipeline->engine().forward(x, described, *prepared->workspace, outputs);
    return outputs.out;
  }

  py::dict plan(const std::vector<double>& timesteps, const std::string& mode) const {
    const DiTConfig& config = checkpoint_.config;
    const Mode wanted = kModeNames.at(mode);
    check_timesteps(timesteps, config);
    const int S = static_cast<int>(timesteps.size()), L = config.depth, H = config.num_heads;
    at::Tensor heads = at::empty({S, L, H}, at::kBool), groups = at::empty({S, L, H}, at::kBool);
    std::vector<double> gmacs(S);
    {
      const py::gil_scoped_release unlocked;
      const RunPlan plan = make_width_plan(checkpoint_, timesteps, wanted);
      checkpoint_.check_unchanged();
      for (int s = 0; s < S; ++s) {
        gmacs[s] = static_cast<double>(required_macs(config, plan.steps[s])) * 1e-9;
        for (int l = 0; l < L; ++l) {
          const BlockWidth& block = plan.steps[s].blocks[l];
          std::copy(block.heads.begin(), block.heads.end(), heads.data_ptr<bool>() + (s * L + l) * H);
          std::copy(block.groups.begin(), block.groups.end(), groups.data_ptr<bool>() + (s * L + l) * H);
        }
      }
    }
    py::dict result;
    if (config.objective.continuous()) {
      result["timesteps"] = timesteps;
    } else {
      result["timesteps"] = std::vector<int>(timesteps.begin(), timesteps.end());
    }
    result["heads"] = heads;
    result["groups"] = groups;
    result["gmacs"] = gmacs;
    return result;
  }

 private:
  // What forward() runs on; a workspace is in one forward at a time.
  struct Prepared {
    Prepared(std::shared_ptr<const Pipeline> pipeline, Mode mode, int threads)
        : pipeline(std::move(pipeline)),
          mode(mode),
          workspace(this->pipeline->engine().make_workspace({.threads = threads})) {}
    const std::shared_ptr<const Pipeline> pipeline;
    const Mode mode;
    const std::unique_ptr<Workspace> workspace;
    std::mutex mutex;
  };

  // Packs the weights once; `threads` pack them.
  std::shared_ptr<const Pipeline> pipeline(EngineKind kind, at::ScalarType dtype, int threads) {
    const std::lock_guard lock(mutex_);
    std::shared_ptr<const Pipeline>& made = pipelines_[{kind, dtype}];
    if (!made) {
      made = std::make_shared<Pipeline>(checkpoint_, kind, EngineOptions{.dtype = dtype, .threads = threads});
    }
    return made;
  }

  std::shared_ptr<Prepared> prepared_or_default() {
    {
      const std::lock_guard lock(mutex_);
      if (prepared_) return prepared_;
    }
    const int threads = threads_of({});
    const auto made = std::make_shared<Prepared>(
        pipeline(EngineKind::Cpu, dtype_or_auto({}, checkpoint_, EngineKind::Cpu), threads), Mode::Dynamic,
        threads);
    const std::lock_guard lock(mutex_);
    if (!prepared_) prepared_ = made;
    return prepared_;
  }

  const Checkpoint checkpoint_;
  std::mutex mutex_;  // of what follows
  std::map<std::pair<EngineKind, at::ScalarType>, std::shared_ptr<const Pipeline>> pipelines_;
  std::shared_ptr<Prepared> prepared_;
};

// An autoencoder, both of its halves packed.
class Vae {
 public:
  Vae(const std::string& path, const std::string& config, const Model* model, at::ScalarType dtype,
      int threads)
      : file_(load_autoencoder(path, {.config = config})),
        decoder_(file_,
                 model ? latent_origin(model->checkpoint().notes, file_.config.latent_channels,
                                       model->checkpoint().path.string())
                       : LatentOrigin(),
                 model ? model->checkpoint().config.in_channels : file_.config.latent_channels,
                 {.dtype = dtype, .threads = threads}),
        encoder_(make_autoencoder(file_,
                                  {.dtype = dtype, .threads = threads, .encoder = true, .decoder = false})) {}

  const AutoencoderFile& file() const { return file_; }
  std::vector<std::string> notes() const {
    std::vector<std::string> all = file_.notes;
    all.insert(all.end(), decoder_.notes().begin(), decoder_.notes().end());
    return all;
  }

  at::Tensor decode(const at::Tensor& latents) const {
    check(latents, file_.config.latent_channels, "latents");
    const py::gil_scoped_release unlocked;
    std::vector<at::Tensor> images;
    for (int64_t i = 0; i < latents.size(0); ++i)
      images.push_back(decoder_.decode(latents[i].contiguous(), fmt::format("latents[{}]", i)));
    return at::stack(images);
  }
  std::pair<at::Tensor, std::optional<at::Tensor>> encode(const at::Tensor& images) const {
    check(images, 3, "images");
    const py::gil_scoped_release unlocked;
    const at::NoGradGuard no_grad;
    const Posterior posterior = encoder_->encode(images.contiguous());
    if (!posterior.logvar.defined()) return {posterior.mean, std::nullopt};
    return {posterior.mean, posterior.logvar};
  }

 private:
  static void check(const at::Tensor& x, int channels, const char* name) {
    DYDIT_USAGE_CHECK(x.device().is_cpu() && x.scalar_type() == at::kFloat && x.dim() == 4 && x.size(0) > 0 &&
                          x.size(1) == channels,
                      "{}: expected (rows, {}, height, width) in float32 on the CPU, got ({}) in {} on {}",
                      name, channels, fmt::join(x.sizes(), ", "), c10::toString(x.scalar_type()),
                      x.device().str());
  }

  const AutoencoderFile file_;
  const LatentDecoder decoder_;
  const std::unique_ptr<const Autoencoder> encoder_;
};

void translate(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const UsageError& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const c10::Error& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what_without_backtrace());
  }
}

py::object to_python(const nlohmann::json& value) {
  return py::module_::import("json").attr("loads")(value.dump());
}

}  // namespace
}  // namespace dydit

PYBIND11_MODULE(_dydit, m) {
  using namespace dydit;
  using namespace py::literals;
  py::register_local_exception_translator(&translate);
  if (const char* cap = std::getenv("DYDIT_ISA")) apply_isa_cap(cap);
  m.attr("__version__") = std::string(kVersion);

  m.def(
      "load",
      [](const std::string& path, int num_heads, const std::string& weights, const std::string& noise_path,
         const std::string& prediction) {
        return std::make_unique<Model>(
            path,
            CheckpointOptions{
                .num_heads = num_heads, .weights = weights, .path = noise_path, .prediction = prediction});
      },
      "path"_a, "num_heads"_a = 0, "weights"_a = "", "noise_path"_a = "", "prediction"_a = "",
      py::call_guard<py::gil_scoped_release>(),
      "Loads a checkpoint: safetensors, a torch file or a folder of diffusers. num_heads: of a static DiT "
      "whose file does not say. noise_path and prediction: of a SiT whose file does not say (\"linear\", "
      "\"velocity\"). weights: the key of one of the file's sets of weights (\"model\"); empty: an "
      "average, else the model.");

  m.def(
      "load_vae",
      [](const std::string& path, const Model* model, const std::string& config,
         std::optional<at::ScalarType> dtype, std::optional<int> threads) {
        const at::ScalarType type = dtype.value_or(at::kFloat);
        DYDIT_USAGE_CHECK(type == at::kFloat || type == at::kBFloat16,
                          "dtype {}: expected float32 or bfloat16", c10::toString(type));
        return std::make_unique<Vae>(path, config, model, type, threads_of(threads));
      },
      "path"_a, "model"_a = py::none(), "config"_a = "", "dtype"_a = py::none(), "threads"_a = py::none(),
      py::call_guard<py::gil_scoped_release>(),
      "Loads an autoencoder: a folder of diffusers, a file (config: its config.json), an ldm checkpoint, "
      "TAESD's. With the\n"
      "model whose latents it is for, decode obeys the scale that the model was trained with.");

  py::class_<Vae>(m, "Vae")
      .def("decode", &Vae::decode, "latents"_a,
           "Images (n, 3, H, W) in about [-1, 1] of a model's latents (n, C, h, w), as Model.generate gives "
           "them.")
      .def("encode", &Vae::encode, "images"_a,
           "(mean, logvar) of images (n, 3, H, W) in [-1, 1]: latents (n, C, h, w), not scaled; logvar is "
           "None where the\n"
           "autoencoder is deterministic.")
      .def_property_readonly(
          "config", [](const Vae& v) { return to_python(autoencoder_config_to_json(v.file().config)); })
      .def_property_readonly("notes", &Vae::notes);

  py::class_<Model>(m, "Model")
      .def(
          "generate", &Model::generate, py::kw_only(), "classes"_a = std::vector<int>{0},
          "num_images"_a = py::none(), "steps"_a = py::none(), "sampler"_a = "auto", "eta"_a = 0.0f,
          "cfg_scale"_a = py::none(), "seed"_a = 0, "batch"_a = 16, "dtype"_a = py::none(),
          "threads"_a = py::none(), "engine"_a = "cpu", "mode"_a = "dynamic", "cache"_a = "none",
          "guide_from"_a = GuideOptions().from, "guide_to"_a = GuideOptions().to,
          "guide_every"_a = GuideOptions().every, "guide_weak"_a = false, "weak_steps"_a = std::vector<int>(),
          "level_from"_a = std::vector<int>(), "plan"_a = py::none(), "progress"_a = py::none(),
          "Samples (n, C, H, W) float32: latents, or pixels in about [-1, 1]; what dydit generate makes "
          "with the\n"
          "same options. Image i has class classes[i % len(classes)], a label or a name as --classes takes "
          "it; a "
          "text\n"
          "is a list of them. steps None: 250, of a model distilled to few steps 4. dtype None: bfloat16 "
          "where the processor\n"
          "has it. cache, weak_steps or level_from (lists) and guide_*, or plan (a file): which branches are "
          "computed, which steps have larger patches, and when guidance runs, "
          "as\n"
          "the flags of dydit generate. progress(done, total) is called after each step.")
      .def("prepare", &Model::prepare, "timesteps"_a, py::kw_only(), "dtype"_a = py::none(),
           "threads"_a = py::none(), "engine"_a = "cpu", "mode"_a = "dynamic",
           "Plans these timesteps and packs the weights, so that forward need not, and says how forward "
           "computes.\n"
           "forward is fastest when it goes from the largest to the smallest.")
      .def("forward", &Model::forward, "x"_a, "t"_a, "y"_a,
           "The model's output (rows, C or 2C, H, W) for x (rows, C, H, W), timesteps t in 0..999 and "
           "classes y\n"
           "(num_classes: none; 0 of a model without classes); of a SiT t is 0 to 1, 0 being noise, of a "
           "U-ViT 999 "
           "times\n"
           "the noise share. t and y are numbers, lists or tensors, rows of any timesteps. No gradient.\n"
           "Weights are packed once, whatever the timesteps.")
      .def("plan", &Model::plan, "timesteps"_a, py::kw_only(), "mode"_a = "dynamic",
           "Which heads and channel groups are on: {timesteps, heads (S, L, H) bool, groups (S, L, H) bool, "
           "gmacs\n"
           "(S): multiply-adds of a sample with all its tokens}.")
      .def_property_readonly("config",
                             [](const Model& m) { return to_python(config_to_json(m.checkpoint().config)); })
      .def_property_readonly("name", [](const Model& m) { return model_name(m.checkpoint().config); })
      .def_property_readonly("weights_key", [](const Model& m) { return m.checkpoint().weights_key; })
      .def_property_readonly("read_notes", [](const Model& m) { return m.checkpoint().read_notes; })
      .def_property_readonly("class_names", [](const Model& m) { return m.checkpoint().class_names; })
      .def_property_readonly("num_parameters",
                             [](const Model& m) { return m.checkpoint().num_parameters(); });
}

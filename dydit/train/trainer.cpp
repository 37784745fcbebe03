// See train() at the end; everything above it is one of its lines.
#include "dydit/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <future>
#include <optional>

#include <torch/torch.h>

#include "dydit/base/error.h"
#include "dydit/base/timer.h"
#include "dydit/io/file.h"
#include "dydit/model/dit.h"
#include "dydit/train/capacity.h"
#include "dydit/train/state.h"

namespace dydit {
namespace {

// The model with its master weights in float32 and the options' compute dtype.
DiT make_training_model(const Checkpoint& start, const TrainOptions& options) {
  DiT model = make_model(start);
  model->train();
  if (options.dynamic && options.router.capacity) {
    model->register_parameter(kKeepShareName, at::ones({3, start.config.depth, kQuarters}));
  }
  model->compute_dtype =
      options.dtype;  // weights are converted where they are used, gradients on the way back
  model->to(options.device);
  return model;
}

// What a resumed run must have in common with the one that was saved.
nlohmann::json run_identity(const Checkpoint& start, const Dataset& data, const TrainOptions& options) {
  nlohmann::json identity = options_to_json(options);
  identity["model"] = config_to_json(start.config);
  identity["data-images"] = data.size();
  return identity;
}

// Means of the terms over the steps of an interval.
class Interval {
 public:
  void add(const StepTerms& terms, double grad_norm) {
    const auto add_array = [](auto& sum, const auto& value) {
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += value[i];
    };
    for (const auto& field :
         {&StepTerms::mse, &StepTerms::vb, &StepTerms::complete_mse, &StepTerms::complete_vb,
          &StepTerms::ratio, &StepTerms::inference_ratio, &StepTerms::flops_loss}) {
      sum_.*field += terms.*field;
    }
    add_array(sum_.heads, terms.heads);
    add_array(sum_.groups, terms.groups);
    add_array(sum_.tokens, terms.tokens);
    if (std::isfinite(grad_norm)) {
      grad_norm_ += grad_norm;
      ++finite_;
    }
    ++steps_;
  }

  LogRow finish(const TrainOptions& options, const RunState& state) {
    LogRow row;
    const double n = steps_;
    row.step = state.step;
    row.terms = sum_;
    for (const auto& field :
         {&StepTerms::mse, &StepTerms::vb, &StepTerms::complete_mse, &StepTerms::complete_vb,
          &StepTerms::ratio, &StepTerms::inference_ratio, &StepTerms::flops_loss}) {
      row.terms.*field /= n;
    }
    for (auto* kept : {&row.terms.heads, &row.terms.groups, &row.terms.tokens}) {
      for (double& value : *kept) value /= n;
    }
    row.target = options.dynamic ? target_ratio(options.router, state.step - 1) : 1.0;
    row.grad_norm = finite_ ? grad_norm_ / finite_ : NAN;
    row.lr = learning_rate(options, state.step - 1);
    row.skipped = state.skipped;
    row.seconds = timer_.seconds();
    row.steps_per_second = n / row.seconds;
    row.images_per_second = row.steps_per_second * options.global_batch;
    *this = Interval();
    return row;
  }

  bool empty() const { return steps_ == 0; }

 private:
  static StepTerms zero() {
    StepTerms terms;
    terms.ratio = terms.inference_ratio = 0;
    return terms;
  }
  StepTerms sum_ = zero();
  double grad_norm_ = 0;
  int finite_ = 0, steps_ = 0;
  Timer timer_;
};

// Makes the inputs of the next step while the device computes this one.
class InputsAhead {
 public:
  InputsAhead(Loader& loader, const DiTConfig& config, const TrainOptions& options)
      : loader_(loader), config_(config), options_(options) {}

  StepInputs next() {
    StepInputs inputs = ahead_.valid() ? ahead_.get() : make();
    ahead_ = std::async(std::launch::async, [this] { return make(); });
    return inputs;
  }

 private:
  StepInputs make() {
    Batch batch = loader_.next();
    return make_step_inputs(config_, options_, batch.step, /*first=*/0, batch, /*begin=*/0,
                            options_.global_batch);
  }

  Loader& loader_;
  const DiTConfig& config_;
  const TrainOptions& options_;
  std::future<StepInputs> ahead_;
};

}  // namespace

void check_training(const Dataset& data, const DiTConfig& config, const TrainOptions& options,
                    int processes) {
  DYDIT_USAGE_CHECK(
      options.global_batch % (processes * options.accumulate) == 0,
      "--global-batch-size {}: cannot be cut into {} processes x {} micro-batches of equal size",
      options.global_batch, processes, options.accumulate);
  DYDIT_USAGE_CHECK(options.dynamic == config.is_dynamic(), "{}",
                    options.dynamic ? "a model with routers is needed to fine-tune dynamically"
                                    : "a static model is needed here, this one has routers");
  DYDIT_CHECK(data.side() == config.input_size && data.channels() == config.in_channels,
              "the images are {}x{} with {} channels, the model takes {}x{} with {}", data.side(),
              data.side(), data.channels(), config.input_size, config.input_size, config.in_channels);
  for (int64_t i = 0; i < data.size(); ++i) {
    DYDIT_CHECK(data.label(i) < config.num_classes, "image {} has label {}, the model has classes 0 to {}", i,
                data.label(i), config.num_classes - 1);
  }
}

void train(const Checkpoint& start, const Dataset& data, const TrainOptions& options, const RunOptions& run,
           Communicator& processes, const TrainCallbacks& callbacks) {
  check_training(data, start.config, options, processes.size());
  const bool root = processes.rank() == 0;
  const auto tell = [](const auto& callback, const std::string& line) {
    if (callback) callback(line);
  };
  std::optional<FolderLock> alone;  // two runs in one folder would spoil each other's checkpoints
  if (root) alone.emplace(run.run);
  DiT model = make_training_model(start, options);
  ParameterStore store(model, options.router_lr_scale);
  RunState state;
  state.options = run_identity(start, data, options);
  if (run.resume) {
    if (root) remove_leftovers(run.run);
    const auto saved = load_newest_state(run.run, store, state.options, [&](const std::string& reason) {
      tell(callbacks.on_warning, reason);
    });
    DYDIT_CHECK(saved, "{}: no whole checkpoint to resume from", run.run.string());
    state = *saved;
    tell(callbacks.on_text, fmt::format("resumed at step {}", state.step));
  }
  std::unique_ptr<Watch> watch;
  if (root) watch = std::make_unique<Watch>(run.run, state.step);
  // What is saved and sampled: the average's weights, and the counts that the shares stand for now.
  const auto ema_checkpoint = [&] {
    Checkpoint ema = start;
    ema.weights = store.ema_weights();
    if (const at::Tensor share = keep_share(model); share.defined()) {
      const double target = target_ratio(options.router, state.step);
      ema.keep_counts = keep_counts(start.config, choose_counts(start.config, share, target));
    }
    return ema;
  };
  const auto save = [&](const std::filesystem::path& folder) {
    if (root) save_state(folder, state, store, ema_checkpoint());
    processes.barrier();
  };

  const int share = options.global_batch / processes.size(), first = processes.rank() * share;
  Loader loader(data, {options.seed, options.global_batch, first, share, options.flip}, state.step);
  InputsAhead ahead(loader, start.config, options);
  const auto step_gradient = [&] {
    // On the CPU both would share the cores; micro-batches are made one by one, to save memory.
    if (options.device.is_cpu() || options.accumulate > 1) {
      Batch batch = loader.next();
      return compute_gradient(model, store, options, processes, state.step, first, batch);
    }
    return compute_gradient(model, store, options, processes, state.step, first,
                            [inputs = ahead.next()](int) { return inputs; });
  };
  Interval interval;
  while (state.step < options.total_steps) {
    const StepTerms terms = step_gradient();
    if (!std::isfinite(terms.loss())) {
      save(run.run / "nan");
      throw Error(fmt::format("step {}: the loss is {}; the state before it is saved in {}", state.step,
                              terms.loss(), (run.run / "nan").string()));
    }
    const double grad_norm = store.grad_norm();
    apply_update(model, store, options, grad_norm, state);
    interval.add(terms, grad_norm);
    if (root && (state.step % run.log_every == 0 || state.step == options.total_steps)) {
      const LogRow row = interval.finish(options, state);
      watch->add(row);
      if (callbacks.on_row) callbacks.on_row(row);
    }
    if (callbacks.on_progress) callbacks.on_progress({"steps", state.step, options.total_steps});
    double stop = callbacks.cancel && *callbacks.cancel ? 1 : 0;
    processes.sum(std::span<double>(&stop, 1));  // any process's signal stops all of them at the same step
    if (stop > 0 || state.step % run.checkpoint_every == 0 || state.step == options.total_steps) {
      save(run.run);
      if (root) rotate_checkpoints(run.run, run.keep_last, run.keep_every);
    }
    if (root && run.sample_every > 0 && callbacks.on_sample && state.step % run.sample_every == 0) {
      callbacks.on_sample(ema_checkpoint(), state.step, *watch);
    }
    if (stop > 0 && state.step < options.total_steps) throw Cancelled();
  }
}

}  // namespace dydit

// See train() at the end; everything above it is one of its lines.
#include "dydit/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <future>
#include <new>
#include <optional>

#include <torch/torch.h>

#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/base/timer.h"
#include "dydit/io/file.h"
#include "dydit/model/adapters.h"
#include "dydit/model/dit.h"
#include "dydit/train/capacity.h"
#include "dydit/train/distill.h"
#include "dydit/train/hooks.h"
#include "dydit/train/state.h"

namespace dydit {
namespace {

// The model with its master weights in float32 and the options' compute dtype.
DiT make_training_model(const Checkpoint& start, const TrainOptions& options) {
  DiT model = make_model(start);
  model->train();
  if (options.dynamic && options.router.gate_rule == GateRule::Capacity) {
    model->register_parameter(
        kKeepShareName,
        at::ones({3, start.config.levels() * start.config.depth, options.router.regions}, at::kFloat));
  }
  for (auto& parameter : model->named_parameters()) {
    if (!is_trained(parameter.key(), options)) parameter.value().set_requires_grad(false);
  }
  model->compute_dtype =
      options.dtype;  // weights are converted where they are used, gradients on the way back
  model->to(options.device);
  return model;
}

// Means of the terms over the steps of an interval.
class Interval {
 public:
  void add(StepTerms terms, double grad_norm) {
    terms.multiply_quarters();
    const std::vector<double*> sums = sum_.values(), values = terms.values();
    for (size_t i = 0; i < sums.size(); ++i) *sums[i] += *values[i];
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
    row.terms.divide(n);
    row.weighted = options.timesteps.weighs_loss();
    row.hooks = hook_names(options.hooks);
    row.distilled = options.distill.kind != DistillKind::None;
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

 private:
  StepTerms sum_;
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
    return make_step_inputs(config_, options_, batch, /*first=*/0, /*begin=*/0, options_.global_batch);
  }

  Loader& loader_;
  const DiTConfig& config_;
  const TrainOptions& options_;
  std::future<StepInputs> ahead_;
};

// The run cannot go on by its own doing; what there is to save is saved.
class Diverged : public Error {
 public:
  using Error::Error;
};

// The exception that is being handled, in one line.
std::string current_reason() {
  const auto first_line = [](std::string_view text) { return std::string(text.substr(0, text.find('\n'))); };
  try {
    throw;
  } catch (const c10::Error& error) {
    return first_line(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return "out of memory; take a smaller --global-batch-size or more --accumulate";
  } catch (const std::filesystem::filesystem_error& error) {
    return fmt::format("{}: {}", error.path1().string(), error.code().message());
  } catch (const std::exception& error) {
    return first_line(error.what());
  }
}

class Training {
 public:
  Training(const Checkpoint& start, const Dataset& data, const TrainOptions& options, const RunOptions& run,
           Communicator& processes, const TrainCallbacks& callbacks)
      : start_(start),
        data_(data),
        options_(options),
        run_(run),
        processes_(processes),
        callbacks_(callbacks),
        root_(processes.rank() == 0) {
    if (root_) alone_.emplace(run.run);
    model_ = make_training_model(start, options);
    if (options.hooks.any()) hooks_.emplace(options.hooks, model_, options.seed);
    store_.emplace(model_, [&](const std::string& name) { return lr_scale(name, options); });
    if (options.hooks.align == Align::Self) hooks_->set_teacher(store_->average_view(model_));
    if (options.distill.kind != DistillKind::None) distillation_.emplace(options_, model_, *store_);
    state_.options = run.identity;
    state_.surroundings = run.surroundings;
    if (run_.resume) resume();
    if (root_) watch_.emplace(run_.run, state_.step);
  }

  int64_t to_the_end() {
    try {
      all_steps();
    } catch (const Cancelled&) {
      throw;
    } catch (const Diverged&) {
      throw;
    } catch (...) {
      if (!root_) throw;
      fail(current_reason());
    }
    return state_.step;
  }

 private:
  // Up to where the run was broken off.
  void resume() {
    if (root_) remove_leftovers(run_.run);
    const auto saved = load_newest_state(run_.run, *store_, state_.options, callbacks_.on_warning);
    DYDIT_CHECK(saved, "{}: no whole checkpoint to resume from", run_.run.string());
    state_.step = saved->step;
    state_.updates = saved->updates;
    state_.skipped = saved->skipped;
    saved_step_ = saved->step;
    if (root_ && !saved->model_is_whole) save_model(run_.run, state_.step, ema_checkpoint());
    if (const std::string others = differing_surroundings(saved->surroundings, run_.surroundings);
        !others.empty()) {
      callbacks_.on_warning(
          fmt::format("{}: was saved with {}; it goes on, but not bit for bit as it would have",
                      run_.run.string(), others));
    }
    callbacks_.on_text(fmt::format("resumed at step {}", state_.step));
  }

  void all_steps() {
    const int share = options_.global_batch / processes_.size(), first = processes_.rank() * share;
    LoaderOptions batches{options_.seed, options_.global_batch, first, share, options_.flip};
    if (data_.decodes()) batches.threads = at::get_num_threads();  // one thread would starve the model
    Loader loader(data_, batches, state_.step);
    InputsAhead ahead(loader, start_.config, options_);
    const auto step_gradient = [&] {
      const int micro = share / options_.accumulate;
      const auto gradient_of = [&](const auto& inputs_of) {
        return compute_gradient(model_, *store_, options_, processes_, state_.step, first, inputs_of,
                                {hooks_ ? &*hooks_ : nullptr, distillation_ ? &*distillation_ : nullptr});
      };
      // On the CPU both would share the cores; micro-batches are made one by one, to save memory.
      if (!options_.device.is_cpu() && options_.accumulate == 1)
        return gradient_of([inputs = ahead.next()](int) { return inputs; });
      Batch batch = loader.next();
      return gradient_of([&](int m) {
        return make_step_inputs(start_.config, options_, batch, first, int64_t{m} * micro, micro);
      });
    };
    Interval interval;
    while (state_.step < options_.total_steps) {
      const StepTerms terms = step_gradient();
      check_loss(terms.loss());
      const double grad_norm = store_->grad_norm();
      between_steps_ = false;
      apply_update(model_, *store_, options_, grad_norm, state_);
      between_steps_ = true;
      interval.add(terms, grad_norm);
      if (root_ && (state_.step % run_.log_every == 0 || state_.step == options_.total_steps)) {
        const LogRow row = interval.finish(options_, state_);
        watch_->add(row);
        callbacks_.on_row(row);
      }
      if (callbacks_.on_progress) callbacks_.on_progress({"steps", state_.step, options_.total_steps});
      double stop = callbacks_.cancel && *callbacks_.cancel ? 1 : 0;
      processes_.sum(std::span<double>(&stop, 1));  // any process's signal stops all of them at the same step
      if (stop > 0 || state_.step % run_.checkpoint_every == 0 || state_.step == options_.total_steps) save();
      if (root_ && run_.sample_every > 0 && callbacks_.on_sample && state_.step % run_.sample_every == 0) {
        callbacks_.on_sample(ema_checkpoint(), state_.step, *watch_);
      }
      if (stop > 0 && state_.step < options_.total_steps) {
        callbacks_.on_text(
            fmt::format("stopped at step {}; the state is saved, --resume goes on", state_.step));
        throw Cancelled();
      }
    }
  }

  // What is saved and sampled: the average's weights, and the counts that the shares stand for now.
  Checkpoint ema_checkpoint() {
    Checkpoint ema = start_;
    ema.weights = store_->ema_weights();
    ema.files.clear();  // these weights lie in none
    ema.few_step = few_step_of(options_.distill);
    if (const at::Tensor share = keep_share(model_); share.defined()) {
      const double target = target_ratio(options_.router, state_.step);
      ema.keep_counts = keep_counts(start_.config, choose_counts(start_.config, share, target));
    }
    return ema;
  }

  void save() {
    if (!store_->is_finite()) {
      throw Diverged(
          fmt::format("step {}: the weights are no longer finite, so they are not saved; is the learning "
                      "rate too high? {}",
                      state_.step, newest_checkpoint()));
    }
    if (root_) {
      can_save_ = false;
      save_state(run_.run, state_, *store_, ema_checkpoint());
      can_save_ = true;
      saved_step_ = state_.step;
      rotate_checkpoints(run_.run, state_.step, run_.keep_last, run_.keep_every);
    }
    processes_.barrier();
  }

  void check_loss(double loss) {
    if (std::isfinite(loss)) return;
    const auto folder = run_.run / "nan";
    if (root_) save_state(folder, state_, *store_, ema_checkpoint());
    std::string line = fmt::format("step {}: the loss is {}; the state before it is saved in {}", state_.step,
                                   loss, folder.string());
    if (!store_->is_finite())
      line += fmt::format(", but its weights are not finite either: {}", newest_checkpoint());
    processes_.barrier();
    throw Diverged(line);
  }

  std::string newest_checkpoint() const {
    return saved_step_ ? fmt::format("the newest checkpoint is that of step {}", *saved_step_)
                       : "there is no checkpoint yet";
  }

  // Ends a run that something outside of it stopped. Other processes may wait for this one, so it waits for
  // none.
  [[noreturn]] void fail(const std::string& reason) {
    if (!between_steps_ || !can_save_ || state_.step == saved_step_.value_or(0))
      throw Error(fmt::format("{}; {}", reason, newest_checkpoint()));
    std::string why_not = "the weights are not finite";
    try {
      if (store_->is_finite()) {
        save_state(run_.run, state_, *store_, ema_checkpoint());
        why_not.clear();
      }
    } catch (const std::exception&) {
      why_not = current_reason();
    }
    if (why_not.empty())
      throw Error(
          fmt::format("{}; the state of step {} is saved in {}", reason, state_.step, run_.run.string()));
    throw Error(fmt::format("{}; the state of step {} could not be saved ({}), {}", reason, state_.step,
                            why_not, newest_checkpoint()));
  }

  const Checkpoint& start_;
  const Dataset& data_;
  const TrainOptions& options_;
  const RunOptions& run_;
  Communicator& processes_;
  const TrainCallbacks& callbacks_;
  const bool root_;
  std::optional<FolderLock> alone_;  // two runs in one folder would spoil each other's checkpoints
  DiT model_{nullptr};
  std::optional<Hooks> hooks_;  // where the options have any
  std::optional<ParameterStore> store_;
  std::optional<Distillation> distillation_;
  RunState state_;
  std::optional<Watch> watch_;         // of the root
  std::optional<int64_t> saved_step_;  // of the newest checkpoint
  bool between_steps_ = true;          // weights, moments and average belong to one step
  bool can_save_ = true;               // saving has not failed
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
  DYDIT_USAGE_CHECK(options.adapter == config.adapter,
                    "the model's adapters are {}, and {} are to be trained; both must be the same",
                    adapter_text(config.adapter), adapter_text(options.adapter));
  DYDIT_USAGE_CHECK(options.trained == TrainedPart::All || options.adapter.kind == AdapterKind::None,
                    "--train routers: adapters are trained beside the routers; leave one of the two out");
  DYDIT_USAGE_CHECK(options.trained == TrainedPart::All || options.dynamic,
                    "--train routers: a static model has no routers, so nothing would be trained");
  DYDIT_USAGE_CHECK(
      options.trained == TrainedPart::All || options.router.complete_steps == 0,
      "--complete-steps {}: the complete model has no routers, and --train routers rests all else",
      options.router.complete_steps);
  (void)TimestepSampler(options.timesteps, config.objective);  // throws where they do not fit
  check_hooks(data, config, options, processes);
  check_distillation(config, options);
  DYDIT_USAGE_CHECK(
      options.timesteps.draw != TimestepDraw::LogitNormal || !options.dynamic ||
          options.router.gate_rule == GateRule::Capacity,
      "--timesteps logit-normal: near noise and image hardly a t is drawn, so the mean work over even "
      "times, which the threshold rule trains by, cannot be told; take --gate-rule capacity or stratified");
  DYDIT_CHECK(data.side() == config.input_size && data.channels() == config.in_channels,
              "the images are {}x{} with {} channels, the model takes {}x{} with {}", data.side(),
              data.side(), data.channels(), config.input_size, config.input_size, config.in_channels);
  for (int64_t i = 0; i < data.size(); ++i) {
    DYDIT_CHECK(config.num_classes == 0 || data.label(i) < config.num_classes,
                "image {} has label {}, the model has classes 0 to {}", i, data.label(i),
                config.num_classes - 1);
  }
  if (levels_share_time(config)) {
    DYDIT_USAGE_CHECK(options.timesteps.draw == TimestepDraw::Stratified,
                      "--level-from: a level that sees some of t alone needs --timesteps stratified, got {}",
                      kTimestepDrawNames[options.timesteps.draw]);
    for (const int from : config.level_from)
      DYDIT_USAGE_CHECK(!options.dynamic || options.router.gate_rule == GateRule::Threshold ||
                            from * options.router.regions % kNumTrainTimesteps == 0,
                        "--level-from {}: the capacity rule counts by {} regions of t; take a multiple of {}",
                        from, options.router.regions, kNumTrainTimesteps / options.router.regions);
  }
  if (options.device.is_cpu()) {
    const int micro = options.global_batch / (processes * options.accumulate);
    TrainOptions none = options;
    none.global_batch = 0;
    check_memory(least_training_bytes(config, none, processes), model_name(config), "take a smaller model");
    check_memory(least_training_bytes(config, options, processes),
                 fmt::format("a micro-batch of {} images", micro),
                 "raise --accumulate or take a smaller --global-batch-size");
  }
}

nlohmann::json run_identity(const Checkpoint& start, const Dataset& data, const TrainOptions& options) {
  nlohmann::json identity = options_to_json(options);
  identity["model"] = config_to_json(start.config);
  // What the keys of a DiT do not say.
  if (start.config.join != Join::None || start.config.time_token)
    identity["family"] = model_name(start.config);
  // Empty for weights that were drawn.
  identity["start"] = start.sha256 + (start.weights_key.empty() ? "" : ", " + start.weights_key);
  identity["class-names"] = start.class_names;
  identity["data-classes"] = data.class_names();
  identity["data-images"] = data.size();
  identity["data-images-digest"] = data.fingerprint(at::get_num_threads());
  return identity;
}

int64_t train(const Checkpoint& start, const Dataset& data, const TrainOptions& options,
              const RunOptions& run, Communicator& processes, const TrainCallbacks& callbacks) {
  check_training(data, start.config, options, processes.size());
  return Training(start, data, options, run, processes, callbacks).to_the_end();
}

}  // namespace dydit

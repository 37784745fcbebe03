// Consistency distillation: whose weights give the targets, what gets a gradient, and that a run resumes.
#include "dydit/train/distill.h"

#include <functional>
#include <memory>
#include <string>

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dydit/base/error.h"
#include "dydit/diffusion/lcm.h"
#include "dydit/engine/engine.h"
#include "dydit/io/safetensors.h"
#include "dydit/model/edit.h"
#include "dydit/train/capacity.h"
#include "dydit/train/trainer.h"
#include "tests/support/files.h"
#include "tests/support/noise_images.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr int kBatch = 8;

DiTConfig tiny_pixels() {
  DiTConfig config = test::static_config();
  config.in_channels = 3;
  config.hidden_size = 32;
  config.mlp_hidden = 128;
  return config;
}

// Of another width than the student's.
std::shared_ptr<const Checkpoint> teacher_of(const std::function<void(DiTConfig&)>& change = {}) {
  DiTConfig config = tiny_pixels();
  config.hidden_size = 48;
  config.mlp_hidden = 192;
  if (change) change(config);
  auto teacher = std::make_shared<Checkpoint>(test::random_checkpoint(config, /*seed=*/12));
  teacher->sha256 = "teacher";
  return teacher;
}

TrainOptions distilling(bool dynamic = false, GateRule rule = GateRule::Threshold) {
  TrainOptions options;
  options.global_batch = kBatch;
  options.lr = 1e-3;
  options.ema_decay = 0.5;
  options.label_dropout = 0;
  options.distill = {.kind = DistillKind::Lcm, .teacher = teacher_of(), .guidance = 2};
  options.dynamic = dynamic;
  if (dynamic) {
    options.router = {.lambda = 0.5, .anneal_start = 0, .anneal_steps = 1, .complete_steps = 3};
    options.router.gate_rule = rule;
  }
  return options;
}

Checkpoint student_of(const TrainOptions& options) {
  const Checkpoint plain = test::random_checkpoint(tiny_pixels());
  return options.dynamic ? add_routers(plain, {.width_bias = 0, .token_bias = 0}, 5) : plain;
}

Batch make_batch(const DiTConfig& config, uint64_t step) {
  const int values = config.in_channels * config.input_size * config.input_size;
  Batch batch{.step = step, .images = std::vector<float>(size_t(kBatch) * values), .labels = {}};
  for (int b = 0; b < kBatch; ++b) {
    fill_normal({batch.images.data() + size_t(b) * values, size_t(values)}, /*seed=*/31, step * 100 + b, 0);
    batch.labels.push_back(b % config.num_classes);
  }
  return batch;
}

// A student on its way: its average is not its weights.
struct Student {
  explicit Student(const TrainOptions& options)
      : options(options), start(student_of(options)), model(make_model(start)) {
    model->train();
    if (options.dynamic && options.router.gate_rule == GateRule::Capacity)
      model->register_parameter(kKeepShareName, at::full({3, start.config.depth, kQuarters}, 0.5f));
    store.emplace(model, 1);
    distillation.emplace(this->options, model, *store);
    store->values.add_(test::random_tensor(store->values.sizes(), /*seed=*/51, 0, 0.01));
    store->ema_step(options.ema_decay);
  }
  StepTerms gradient(uint64_t step = 0) {
    Communicator alone;
    Batch batch = make_batch(start.config, step);
    const int micro = kBatch / options.accumulate;
    return compute_gradient(
        model, *store, options, alone, step, 0,
        [&](int m) { return make_step_inputs(start.config, options, batch, 0, int64_t{m} * micro, micro); },
        {.distillation = &*distillation});
  }
  at::Tensor keep() {
    const at::Tensor share = keep_share(model);
    return share.defined() ? choose_counts(start.config, share, 0.5) : at::Tensor();
  }

  const TrainOptions options;
  const Checkpoint start;
  DiT model;
  std::optional<ParameterStore> store;
  std::optional<Distillation> distillation;
};

at::Tensor eps(const at::Tensor& output) { return output.slice(1, 0, 3); }

TEST(Distillation, LearnsFromTheTeachersStepAndTheAverage) {
  Student student(distilling());
  const StepTerms terms = student.gradient();
  EXPECT_EQ(terms.vb, 0);

  Batch batch = make_batch(student.start.config, 0);
  const StepInputs in = make_step_inputs(student.start.config, student.options, batch, 0, 0, kBatch);
  DiT teacher = make_model(*student.options.distill.teacher), plain = make_model(student.start);
  Checkpoint averaged = student.start;
  averaged.weights = student.store->ema_weights();
  DiT average = make_model(averaged);
  at::Tensor g;
  {
    const at::NoGradGuard no_grad;
    const at::Tensor t_emb = teacher->embed_timestep(in.t), null = at::full_like(in.y, 5);
    const at::Tensor x = lcm_teacher_step(in.x_t, eps(teacher->forward(in.x_t, t_emb, in.y)),
                                          eps(teacher->forward(in.x_t, t_emb, null)), in.t, at::ones({1}));
    const at::Tensor end = lcm_previous(in.t);
    g = lcm_consistency(x, eps(average->forward(x, average->embed_timestep(end), in.y)), end);
    auto parameters = plain->named_parameters();
    for (const auto& parameter : student.model->named_parameters())
      parameters[parameter.key()].copy_(parameter.value());
  }
  const at::Tensor output = plain->forward(in.x_t, plain->embed_timestep(in.t), in.y);
  const at::Tensor loss =
      consistency_loss(lcm_consistency(in.x_t, eps(output), in.t), g, ConsistencyLoss::L2).mean();
  loss.backward();
  EXPECT_NEAR(terms.loss(), loss.item<double>(), 1e-5 * loss.item<double>());
  EXPECT_EQ(terms.mse, terms.loss());
  const auto wanted = plain->named_parameters();
  for (const auto& parameter : student.model->named_parameters()) {
    if (!parameter.value().requires_grad()) continue;
    const at::Tensor& want = wanted[parameter.key()].grad();
    EXPECT_LT((parameter.value().grad() - want).norm().item<double>(),
              1e-4 * want.norm().item<double>() + 1e-6)
        << parameter.key();
  }
}

TEST(Distillation, GivesNeitherTeacherNorAverageNorVarianceAGradient) {
  Student student(distilling());
  student.gradient();
  const auto is_free = [](const DiT& model) {
    for (const at::Tensor& parameter : model->parameters()) {
      EXPECT_FALSE(parameter.requires_grad());
      EXPECT_FALSE(parameter.grad().defined());
    }
  };
  is_free(student.distillation->teacher());
  is_free(student.distillation->average());
  // (p * p * 6): eps, then variance
  const at::Tensor bias = student.model->named_parameters()["final_layer.linear.bias"].grad().view({4, 6});
  EXPECT_EQ(bias.slice(1, 3).abs().max().item<float>(), 0);
  EXPECT_GT(bias.slice(1, 0, 3).abs().max().item<float>(), 0);
}

TEST(Distillation, TargetsFollowTheAverageAndNotTheWeights) {
  Student student(distilling());
  Batch batch = make_batch(student.start.config, 0);
  const StepInputs in = make_step_inputs(student.start.config, student.options, batch, 0, 0, kBatch);
  const auto target = [&] { return student.distillation->target(student.model, in, {}).clone(); };
  const at::Tensor before = target();
  student.store->values.add_(0.01);
  EXPECT_TRUE(at::equal(target(), before));
  student.store->ema_step(0.5);
  EXPECT_FALSE(at::equal(target(), before));
}

TEST(Distillation, AtGuidanceOneTheNullClassIsNotAsked) {
  TrainOptions options = distilling();
  options.distill.guidance = 1;
  options.distill.teacher = teacher_of([](DiTConfig& config) { config.has_null_class = false; });
  Student student(options);
  EXPECT_GT(student.gradient().loss(), 0);
}

// The average must be judged as it will be sampled: by the gates of inference, which the engines have.
void expect_inference_gates(GateRule rule) {
  Student student(distilling(/*dynamic=*/true, rule));
  Batch batch = make_batch(student.start.config, 0);
  StepInputs in = make_step_inputs(student.start.config, student.options, batch, 0, 0, kBatch);
  const at::Tensor keep = student.keep(), target = student.distillation->target(student.model, in, keep);

  Checkpoint average = student.start;
  average.weights = student.store->ema_weights();
  if (keep.defined()) average.keep_counts = keep_counts(average.config, keep);
  const auto engine = make_engine(EngineKind::Reference, average, {});
  const auto workspace = engine->make_workspace({});
  const at::NoGradGuard no_grad;
  DiT teacher = make_model(*student.options.distill.teacher);
  const at::Tensor t_emb = teacher->embed_timestep(in.t), end = lcm_previous(in.t),
                   x = lcm_teacher_step(in.x_t, eps(teacher->forward(in.x_t, t_emb, in.y)),
                                        eps(teacher->forward(in.x_t, t_emb, at::full_like(in.y, 5))), in.t,
                                        at::ones({1}));
  std::vector<double> times;
  for (int b = 0; b < kBatch; ++b) times.push_back(static_cast<double>(end[b].item<int64_t>()));
  const RunPlan plan = make_width_plan(average, times, Mode::Dynamic);
  std::vector<Row> rows;
  int closed = 0;
  for (int b = 0; b < kBatch; ++b) {
    rows.push_back({&plan.steps[static_cast<size_t>(b)], in.y[b].item<int64_t>()});
    for (const BlockWidth& block : plan.steps[static_cast<size_t>(b)].blocks)
      closed += average.config.num_heads - block.active_heads();
  }
  EXPECT_GT(closed, 0);
  std::vector<Work> work(rows.size());
  ForwardOutputs outputs{.work = work};
  engine->forward(x, rows, *workspace, outputs);
  EXPECT_LT(test::relative_difference(target, lcm_consistency(x, eps(outputs.out), end)), 1e-4);
}
TEST(Distillation, TheAverageHasTheGatesOfInferenceByThreshold) {
  expect_inference_gates(GateRule::Threshold);
}
TEST(Distillation, TheAverageHasTheGatesOfInferenceByCapacity) { expect_inference_gates(GateRule::Capacity); }

TEST(Distillation, OfADynamicStudentHasRatioAndCompleteTerm) {
  Student student(distilling(/*dynamic=*/true));
  const StepTerms first = student.gradient(0), late = student.gradient(3);
  EXPECT_GT(first.complete_mse, 0);
  EXPECT_EQ(first.complete_vb, 0);
  EXPECT_EQ(late.complete_mse, 0);  // complete_steps is 3
  EXPECT_LT(first.ratio, 1);
  EXPECT_GT(first.flops_loss, 0);
}

TEST(Distillation, GradientsDoNotDependOnMicroBatches) {
  for (const bool dynamic : {false, true}) {
    TrainOptions options = distilling(dynamic);
    Student whole(options);
    options.accumulate = 4;
    Student cut(options);
    const double a = whole.gradient().loss(), b = cut.gradient().loss();
    EXPECT_NEAR(a, b, 1e-4 * a);
    EXPECT_LT((whole.store->grads - cut.store->grads).norm().item<double>(),
              1e-4 * whole.store->grads.norm().item<double>());
  }
}

TEST(DrawDistillTimes, CountTheQuartersEvenlyUnderTheCapacityRule) {
  EXPECT_FALSE(draw_distill_times(distilling(true), 0, 0, 8).visits.defined());
  const DistillTimes drawn = draw_distill_times(distilling(true, GateRule::Capacity), 0, 0, 64);
  for (int b = 0; b < 64; ++b) {
    const int64_t quarter = drawn.t[b].item<int64_t>() / 250;
    EXPECT_FLOAT_EQ(drawn.visits[b].item<float>(), quarter % 2 == 0 ? 0.25f / 0.24f : 0.25f / 0.26f);
  }
}

TEST(AverageView, IsTheAverageInPlaceWithoutGradients) {
  DiT model = test::random_model(test::tiny_config());
  ParameterStore store(model, 1);
  const DiT average = store.average_view(model);
  store.values.add_(1);
  store.ema_step(0.25);
  const Weights wanted = store.ema_weights();
  for (const auto& parameter : average->named_parameters()) {
    EXPECT_TRUE(at::equal(parameter.value(), wanted.at(parameter.key()))) << parameter.key();
    EXPECT_FALSE(parameter.value().requires_grad()) << parameter.key();
  }
  const at::Tensor weight = average->named_parameters()["blocks.0.attn.qkv.weight"];
  store.ema.zero_();
  EXPECT_EQ(weight.abs().max().item<float>(), 0);
}

// What a run of the loop says and leaves.
struct Outcome {
  std::string error;
  std::vector<LogRow> rows;
};
Outcome run(const fs::path& folder, const TrainOptions& options, int64_t steps, bool resume = false) {
  fs::create_directories(folder);
  Outcome outcome;
  Communicator alone;
  const test::NoiseImages data;
  TrainOptions longer = options;
  longer.total_steps = steps;
  try {
    const Checkpoint start = student_of(options);
    RunOptions where;
    where.run = folder;
    where.resume = resume;
    where.checkpoint_every = where.log_every = 1;
    where.keep_last = 100;
    where.identity = run_identity(start, data, longer);
    TrainCallbacks callbacks;
    callbacks.on_row = [&](const LogRow& row) { outcome.rows.push_back(row); };
    train(start, data, longer, where, alone, callbacks);
  } catch (const Error& error) {
    outcome.error = error.what();
  }
  return outcome;
}

std::map<std::string, at::Tensor> saved(const fs::path& folder, int step) {
  const SafetensorsFile file = read_safetensors(folder / "checkpoints" / fmt::format("{:07}.state", step));
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, view] : file.tensors) tensors[name] = to_tensor(view, file.file).clone();
  return tensors;
}

TEST(Distillation, AResumedRunIsTheUnbrokenOneBitForBit) {
  for (const TrainOptions& options : {distilling(), distilling(true), distilling(true, GateRule::Capacity)}) {
    const test::TemporaryFolder folder;
    EXPECT_EQ(run(folder / "whole", options, 6).error, "");
    EXPECT_EQ(run(folder / "broken", options, 3).error, "");
    EXPECT_EQ(run(folder / "broken", options, 6, /*resume=*/true).error, "");
    const auto whole = saved(folder / "whole", 6), broken = saved(folder / "broken", 6);
    EXPECT_EQ(whole.size(), 4u);  // values, both moments, average
    for (const auto& [name, tensor] : whole) EXPECT_TRUE(at::equal(tensor, broken.at(name))) << name;
  }
}

TEST(Distillation, ARunIsOfItsTeacherAndSaysSo) {
  const test::TemporaryFolder folder;
  TrainOptions options = distilling();
  const Outcome first = run(folder / "run", options, 2);
  ASSERT_EQ(first.rows.size(), 2u);
  EXPECT_TRUE(first.rows[0].distilled);
  auto other = std::make_shared<Checkpoint>(*options.distill.teacher);
  other->sha256 = "another";
  options.distill.teacher = other;
  const std::string error = run(folder / "run", options, 3, /*resume=*/true).error;
  EXPECT_NE(error.find("teacher = \"teacher\", this run has \"another\""), std::string::npos) << error;
}

TEST(Distillation, TheModelSaysHowItIsSampled) {
  const test::TemporaryFolder folder;
  run(folder / "run", distilling(), 1);
  const Checkpoint made = load_checkpoint(folder / "run/checkpoints/0000001.safetensors");
  ASSERT_TRUE(made.few_step);
  EXPECT_EQ(made.few_step->kind, "lcm");
  EXPECT_EQ(made.few_step->guidance, 2);
  EXPECT_EQ(made.few_step->timesteps.size(), 50u);
  EXPECT_EQ(made.few_step->timesteps.front(), 999);
}

TEST(Distillation, AddsNoOptionToARunWithoutIt) {
  const nlohmann::json plain = options_to_json({}), distilled = options_to_json(distilling());
  for (const char* key : {"distill", "distill-guidance", "loss", "teacher"}) {
    EXPECT_FALSE(plain.contains(key)) << key;
    EXPECT_TRUE(distilled.contains(key)) << key;
  }
}

void expect_refused(const std::function<void(TrainOptions&, DiTConfig& student)>& change,
                    const std::string& part) {
  TrainOptions options = distilling();
  DiTConfig student = tiny_pixels();
  change(options, student);
  EXPECT_THROW(check_distillation(student, options), UsageError) << part;
  test::expect_error([&] { check_distillation(student, options); }, part);
}

TEST(CheckDistillation, RefusesWhatCannotBe) {
  EXPECT_NO_THROW(check_distillation(tiny_pixels(), distilling()));
  expect_refused([](auto& options, auto&) { options.distill.teacher = nullptr; },
                 "--distill lcm: needs --teacher, the model to learn from");
  expect_refused([](auto& options, auto&) { options.timesteps.draw = TimestepDraw::Speed; },
                 "--timesteps speed: --distill lcm draws from a grid of its own");
  expect_refused([](auto& options, auto&) { options.label_dropout = 0.1; }, "--label-dropout 0.1");
  expect_refused(
      [](auto&, auto& student) {
        student.objective = {Path::Linear, Prediction::Velocity, ModelClock::Data};
      },
      "is about the 1000 betas of a DiT");
  expect_refused([](auto&, auto& student) { student.num_classes = 7; }, "classes 5, the model has 7");
  expect_refused([](auto&, auto& student) { student.input_size = 16; }, "image side 8, the model has 16");
  expect_refused([](auto&, auto& student) { student.in_channels = 4; }, "channels 3, the model has 4");
  const auto with_teacher = [](const auto& change) {
    return [change](TrainOptions& options, DiTConfig&) {
      auto teacher = std::make_shared<Checkpoint>(*options.distill.teacher);
      change(*teacher);
      options.distill.teacher = teacher;
    };
  };
  expect_refused(with_teacher([](Checkpoint& teacher) { teacher.config.has_null_class = false; }),
                 "--distill-guidance 2: random.safetensors has no null class");
  expect_refused(with_teacher([](Checkpoint& teacher) { teacher.config.width_routers = true; }),
                 "has routers");
  expect_refused(with_teacher([](Checkpoint& teacher) {
                   teacher.few_step = FewStep{"lcm", {999}, 1};
                 }),
                 "is distilled itself");
  expect_refused(with_teacher([](Checkpoint& teacher) { teacher.quantization = Quantization(); }),
                 "is quantised");
}

}  // namespace
}  // namespace dydit

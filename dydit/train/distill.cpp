#include "dydit/train/distill.h"

#include <torch/torch.h>

#include "dydit/base/error.h"
#include "dydit/diffusion/consistency.h"
#include "dydit/diffusion/lcm.h"
#include "dydit/model/checkpoint.h"
#include "dydit/plan/run_plan.h"
#include "dydit/train/capacity.h"
#include "dydit/train/gates.h"

namespace dydit {
namespace {

// Noise that lets the logits alone decide, as inference does.
GateNoise no_noise(const DiTConfig& config, int64_t samples, at::Device device) {
  const auto zeros = [&](int64_t parts) {
    return at::zeros({samples, parts}, at::device(device).dtype(at::kFloat));
  };
  GateNoise noise;
  for (int l = 0; l < config.depth; ++l) {
    if (config.width_routers) {
      noise.heads.push_back(zeros(config.num_heads - 1));
      noise.groups.push_back(zeros(config.num_heads - 1));
    }
    if (config.token_routers) noise.tokens.push_back(zeros(config.num_tokens()));
  }
  return noise;
}

// The first channels, which predict noise.
at::Tensor eps_of(const at::Tensor& output, const at::Tensor& x) { return output.slice(1, 0, x.size(1)); }

}  // namespace

DistillTimes draw_distill_times(const TrainOptions& options, uint64_t step, int first, int64_t count) {
  const int regions = options.router.regions;
  std::vector<int64_t> times;
  std::vector<float> visits;
  for (int64_t b = 0; b < count; ++b) {
    const int t = lcm_draw(options.seed, step, first + static_cast<int>(b));
    times.push_back(t);
    visits.push_back(static_cast<float>(1 / (regions * lcm_share_of(region_of({}, t, regions), regions))));
  }
  DistillTimes drawn{at::tensor(times, at::kLong), {}};
  // Of the threshold rule the mean over the grid counts; of the capacity rule that over its regions.
  if (options.dynamic && options.router.gate_rule == GateRule::Capacity)
    drawn.visits = at::tensor(visits, at::kFloat);
  return drawn;
}

void check_distillation(const DiTConfig& student, const TrainOptions& options) {
  const DistillOptions& distill = options.distill;
  if (distill.kind == DistillKind::None) return;
  DYDIT_USAGE_CHECK(distill.teacher != nullptr, "--distill lcm: needs --teacher, the model to learn from");
  const Checkpoint& teacher = *distill.teacher;
  const DiTConfig& config = teacher.config;
  const std::string name = "--teacher " + teacher.path.string();
  DYDIT_USAGE_CHECK(!student.objective.continuous(),
                    "--distill lcm: is about the 1000 betas of a DiT, the model is a {}",
                    model_name(student));
  DYDIT_USAGE_CHECK(options.timesteps.draw == TimestepDraw::Stratified,
                    "--timesteps {}: --distill lcm draws from a grid of its own; leave one out",
                    kTimestepDrawNames[options.timesteps.draw]);
  DYDIT_USAGE_CHECK(!options.hooks.any(),
                    "--distill lcm: its loss is the consistency alone; leave --align and --plr out");
  DYDIT_USAGE_CHECK(student.levels() == 1, "--distill lcm: is for models of one patch size, this one has {}",
                    student.levels());
  DYDIT_USAGE_CHECK(
      options.label_dropout == 0,
      "--label-dropout {}: while distilling all labels are kept, the null class is the teacher's "
      "for guidance; leave it out",
      options.label_dropout);
  DYDIT_USAGE_CHECK(config.objective == student.objective, "{}: {}, the model {}", name,
                    objective_text(config.objective), objective_text(student.objective));
  const auto agree = [&](const char* what, int of_teacher, int of_student) {
    DYDIT_USAGE_CHECK(of_teacher == of_student, "{}: {} {}, the model has {}; they must agree", name, what,
                      of_teacher, of_student);
  };
  agree("image side", config.input_size, student.input_size);
  agree("channels", config.in_channels, student.in_channels);
  agree("classes", config.num_classes, student.num_classes);
  DYDIT_USAGE_CHECK(distill.guidance == 1 || config.can_guide(),
                    "--distill-guidance {}: {} has no null class to be guided away from; take 1",
                    distill.guidance, teacher.path.string());
  DYDIT_USAGE_CHECK(!config.is_dynamic(), "{}: has routers; a teacher is a static model", name);
  DYDIT_USAGE_CHECK(!teacher.quantization, "{}: is quantised; take the model that it was made of", name);
  DYDIT_USAGE_CHECK(!teacher.few_step, "{}: is distilled itself and has no path to teach", name);
}

Distillation::Distillation(const TrainOptions& options, const DiT& student, const ParameterStore& store)
    : options_(options),
      teacher_(make_model(*options.distill.teacher)),
      average_(store.average_view(student)) {
  teacher_->compute_dtype = options.dtype;
  for (const at::Tensor& parameter : teacher_->parameters()) parameter.set_requires_grad(false);
  teacher_->to(options.device);
}

at::Tensor Distillation::target(DiT& student, const StepInputs& inputs, const at::Tensor& keep) {
  const at::NoGradGuard no_grad;
  const DistillOptions& distill = options_.distill;
  const at::Tensor &x = inputs.x_t, &t = inputs.t, t_emb = teacher_->embed_timestep(t),
                   cond = eps_of(teacher_->forward(x, t_emb, inputs.y), x);
  at::Tensor uncond;
  if (distill.guidance != 1) {
    const at::Tensor none = at::full_like(inputs.y, teacher_->config.null_class());
    uncond = eps_of(teacher_->forward(x, t_emb, none), x);
  }
  const at::Tensor w = at::full({1}, distill.guidance - 1, x.options()), end = lcm_previous(t),
                   x_end = lcm_teacher_step(x, cond, uncond, t, w);
  return lcm_consistency(x_end, average_eps(student, x_end, end, inputs.y, keep), end);
}

at::Tensor Distillation::average_eps(DiT& student, const at::Tensor& x, const at::Tensor& t,
                                     const at::Tensor& y, const at::Tensor& keep) {
  const at::Tensor t_emb = average_->embed_timestep(t);
  if (!options_.dynamic) return eps_of(average_->forward(x, t_emb, y), x);
  CapacityInputs capacity;
  if (keep.defined())
    capacity = {keep_share(student), keep, at::div(t, kNumTrainTimesteps / options_.router.regions, "floor")};
  TrainingGates gates(average_, t_emb, no_noise(average_->config, x.size(0), x.device()),
                      options_.router.gates, capacity);
  return eps_of(average_->forward(x, t_emb, y, gates.gates()), x);
}

}  // namespace dydit

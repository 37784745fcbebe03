// A sampling loop of one's own: Euler steps along the probability flow,
//   d(x / sqrt(a)) / d sigma = eps(x, t),   sigma = sqrt((1 - a) / a),   a = alphas_cumprod of t,
// which is DDIM with eta 0.   custom_sampler CHECKPOINT CLASS STEPS OUT.png
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <dydit/dydit.h>

#include <ATen/ATen.h>

namespace {

double sigma(double a) { return std::sqrt((1 - a) / a); }

void run(const char* checkpoint_path, int label, int steps, const char* png_path) {
  const dydit::Checkpoint checkpoint = dydit::load_checkpoint(checkpoint_path);
  const dydit::DiTConfig& config = checkpoint.config;
  if (label < 0 || label >= config.num_classes) throw dydit::UsageError("no such class in this model");

  // Widths depend on the timestep alone, so the plan of all steps is known before the first.
  const auto timesteps = dydit::choose_timesteps(dydit::SamplerKind::Ddim, steps).timesteps;
  const dydit::RunPlan plan = dydit::make_width_plan(checkpoint, timesteps, dydit::Mode::Dynamic);
  const dydit::DiffusionTables tables = dydit::make_diffusion_tables(timesteps);
  const int threads = dydit::default_threads();
  const auto engine = dydit::make_engine(dydit::EngineKind::Cpu, checkpoint, {.threads = threads});
  const auto workspace = engine->make_workspace({.threads = threads});
  workspace->prepare({timesteps.rbegin(), timesteps.rend()});

  at::Tensor x = at::empty({1, config.in_channels, config.input_size, config.input_size});
  dydit::fill_normal({x.data_ptr<float>(), static_cast<size_t>(x.numel())}, /*seed=*/7, /*sample=*/0,
                     /*draw=*/0);
  std::vector<dydit::Work> work(1);
  dydit::ForwardOutputs outputs{.work = work};
  for (int step = steps - 1; step >= 0; --step) {
    // The second half of the channels, where there is one, is the learned variance: a flow needs none.
    engine->forward(x, std::vector<dydit::Row>{{&plan.steps[step], label}}, *workspace, outputs);
    const at::Tensor eps = outputs.out.slice(/*dim=*/1, 0, config.in_channels);
    const double a = tables.alphas_cumprod[step], a_next = tables.alphas_cumprod_prev[step];
    x = (x / std::sqrt(a) + (sigma(a_next) - sigma(a)) * eps) * std::sqrt(a_next);
  }
  dydit::write_png(png_path, dydit::to_image(x[0]), {});
  std::printf("%.3f GMACs needed, %.3f executed\n", work[0].required * 1e-9, work[0].executed * 1e-9);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 5) throw dydit::UsageError("usage: custom_sampler CHECKPOINT CLASS STEPS OUT.png");
  c10::InferenceMode guard;
  run(argv[1], std::atoi(argv[2]), std::atoi(argv[3]), argv[4]);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}

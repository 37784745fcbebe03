// Generates one image, with progress, and stops cleanly on Ctrl-C.   generate CHECKPOINT CLASS STEPS OUT.png
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <dydit/dydit.h>

namespace {

dydit::CancelFlag cancelled{false};  // an atomic without a lock, so that a signal handler may set it

void run(const char* checkpoint_path, int label, int steps, const char* png_path) {
  const dydit::Checkpoint checkpoint = dydit::load_checkpoint(checkpoint_path);
  dydit::GenerateOptions options;
  options.classes = {label};
  options.num_steps = steps;
  options.seed = 7;
  options.threads = dydit::default_threads();
  const auto write = [&](dydit::GeneratedSample&& sample) {
    const auto record = nlohmann::json::array({dydit::image_record(checkpoint, options, sample)});
    dydit::write_png(png_path, dydit::to_image(sample.sample),
                     dydit::png_text(dydit::run_record(checkpoint, options), record));
  };
  const auto show = [](const dydit::Progress& p) {
    std::fprintf(stderr, "step %ld of %ld\n", p.done, p.total);
  };
  dydit::generate(checkpoint, options, {.on_sample = write, .on_progress = show, .cancel = &cancelled});
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 5) throw dydit::UsageError("usage: generate CHECKPOINT CLASS STEPS OUT.png");
  std::signal(SIGINT, [](int) { cancelled = true; });
  run(argv[1], std::atoi(argv[2]), std::atoi(argv[3]), argv[4]);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}

// The flags are of the kinds that `dydit generate` has.
#include "toml.h"

#include <string>
#include <vector>

#include "programs/dydit/cli.h"
#include "programs/dydit/config_file.h"

namespace dydit::fuzz {
namespace {

void read_toml(Bytes bytes) {
  Cli cli("generate", "");
  std::string model, sampler = "ddpm", noise = "philox", out;
  std::vector<std::string> classes;
  std::string timesteps;
  int images = 0, steps = 250;
  float eta = 0, cfg_scale = 4;
  double epochs = 0;
  std::vector<double> biases = {15, 35};
  uint64_t seed = 0;
  CLI::App& app = cli.app;
  cli.add_text("--model,--ckpt", model, "")->required();
  app.add_option("-c,--classes,--class-labels", classes)->delimiter(',');
  cli.add_number("-n,--num-images", images, 1, 100'000'000, "");
  cli.add_number("--steps", steps, 1, 1000, "");
  cli.add_text("--timesteps", timesteps, "");
  cli.add_choice("--sampler", sampler, {"ddpm", "ddim", "dpm++"}, "");
  cli.add_choice("--noise", noise, {"philox", "torch"}, "", {"cuda"}, "built without CUDA");
  cli.add_number("--eta", eta, 0, 1, "");
  cli.add_number("--cfg-scale", cfg_scale, 0, 1000, "");
  cli.add_number("--epochs", epochs, 1e-6, 1e9, "");
  cli.add_numbers("--router-bias", biases, -1e6, 1e6, "");
  cli.add_seed("--seed", seed, "");
  cli.add_text("-o,--out", out, "");
  take_config(app, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, "FILE");
}

std::string repeated(const std::string& part, size_t count) {
  std::string out;
  for (size_t i = 0; i < count; ++i) out += part;
  return out;
}

}  // namespace

Target toml_target() {
  return {
      .name = "toml",
      .seeds =
          {"model = \"models/dit.safetensors\"\nclasses = [207, 360, \"cat\"]\nseed = 7\nsteps = 50\n"
           "sampler = \"ddim\"\ncfg-scale = 1.5\neta = 0.3\nnum-images = 8\nout = \"samples/img_%03d.png\"\n",
           "# of a run\nckpt='m.pt'\n\n  timesteps = \"999, 500, 0\"  # by hand\nn = 3\nquiet = true\n"
           "noise=torch\n",
           "classes = [1,\n  2,\n  \"a b\"\n]\njson\nepochs = 1e3\r\nseed = 18446744073709551615\n", ""},
      .tokens = {"[",    "]",      "\"",  "'",     "=",    "#",  ",",  ".",           "\n",
                 "\\\"", "`",      "[[",  "]]",    "true", "{}", "++", "--",          "--steps",
                 "help", "config", "nan", "1e999", "-1",   "0x", "%%", "classes = [", "steps = 3\n"},
      .hostile = {{"100 MB", [] { return std::string(100'000'000, 'a'); }},
                  {"a list of 16,000 numbers", [] { return "classes = [" + repeated("1,", 16'000) + "1]"; }},
                  {"nested lists",
                   [] { return "classes = " + std::string(16'000, '[') + "1" + std::string(16'000, ']'); }},
                  {"a nested list in one text",
                   [] { return "out = '" + std::string(16'000, '[') + std::string(16'000, ']') + "'"; }},
                  {"a section of 16,000 parts", [] { return "[" + repeated("a.", 16'000) + "a]"; }},
                  {"10,000 keys in a section of 200 parts",
                   [] { return "[" + repeated("a.", 200) + "a]\n" + repeated("b=\n", 10'000); }},
                  {"a key of 16,000 parts", [] { return repeated("a.", 16'000) + "a = 1"; }},
                  {"100 keys of 150 parts", [] { return repeated(repeated("a.", 150) + "a = 1\n", 100); }},
                  {"8,000 flags", [] { return repeated("n=1\n", 8'000); }},
                  {"16,000 escaped quotes", [] { return "out = `" + repeated("\\`", 16'000) + "` b"; }},
                  {"a value of 32,000 characters", [] { return "steps = " + std::string(32'000, '1'); }},
                  {"blanks", [] { return "classes = [1," + std::string(32'000, ' ') + "1]"; }}},
      .read = read_toml};
}

}  // namespace dydit::fuzz

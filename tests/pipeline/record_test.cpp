// Pixels and the record of a run.
#include "dydit/pipeline/record.h"

#include <limits>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/base/version.h"
#include "dydit/io/text.h"
#include "dydit/pipeline/pixels.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using nlohmann::json;
using test::random_checkpoint;
using test::tiny_config;

Checkpoint named_checkpoint() {
  Checkpoint checkpoint = random_checkpoint(tiny_config());
  checkpoint.path = "some/folder/tiny.safetensors";
  checkpoint.sha256 = "0123456789abcdef";
  checkpoint.class_names = {"ant", "bee", "cat", "dog", "eel"};
  return checkpoint;
}

GenerateOptions some_options() {
  GenerateOptions options;
  options.classes = {2, 4};
  options.num_images = 6;
  options.num_steps = 50;
  options.seed = 18446744073709551615u;
  options.cfg_scale = 1.5f;
  return options;
}

json some_images() {
  const GeneratedSample sample{1, 4, {}, 0.5, {3'000'000'000, 4'000'000'000}};
  return json::array({image_record(named_checkpoint(), some_options(), sample)});
}

uint8_t pixel_of(float value) { return to_image(at::full({3, 1, 1}, value)).pixels[0]; }

TEST(ToImage, TruncatesAfterTheShift) {
  EXPECT_EQ(pixel_of(0.0f), 128);
  EXPECT_EQ(pixel_of(0.999f / 127.5f), 128);  // 128.999
  EXPECT_EQ(pixel_of(-0.001f / 127.5f), 127);
}

TEST(ToImage, ClampsToBytes) {
  EXPECT_EQ(pixel_of(-1.0f), 0);   // 0.5
  EXPECT_EQ(pixel_of(1.0f), 255);  // 255.5
  EXPECT_EQ(pixel_of(-7.0f), 0);
  EXPECT_EQ(pixel_of(7.0f), 255);
  EXPECT_EQ(pixel_of(std::numeric_limits<float>::infinity()), 255);
  EXPECT_EQ(pixel_of(-std::numeric_limits<float>::infinity()), 0);
}

TEST(ToImage, InterleavesTheChannels) {
  // Channel c, row h, column w holds the byte 6c + 3h + w.
  const at::Tensor bytes = at::arange(18, at::kFloat).view({3, 2, 3});
  const Image image = to_image((bytes + 0.5 - 128) / 127.5);
  EXPECT_EQ(image.height, 2);
  EXPECT_EQ(image.width, 3);
  EXPECT_EQ(image.channels, 3);
  EXPECT_EQ(image.pixels,
            (std::vector<uint8_t>{0, 6, 12, 1, 7, 13, 2, 8, 14, 3, 9, 15, 4, 10, 16, 5, 11, 17}));
}

TEST(Record, OfARunHoldsItsParameters) {
  const json run = run_record(named_checkpoint(), some_options());
  EXPECT_EQ(run["model"]["file"], "tiny.safetensors");
  EXPECT_EQ(run["model"]["sha256"], "0123456789abcdef");
  EXPECT_EQ(run["classes"], json({2, 4}));
  EXPECT_EQ(run["steps"], 50);
  EXPECT_EQ(run["sampler"], "ddpm");
  EXPECT_EQ(run["spacing"], "even sections");
  EXPECT_EQ(run["mode"], "dynamic");
  EXPECT_EQ(run["dtype"], "f32");
  EXPECT_EQ(run["cfg_channels"], 3);
}

TEST(Record, KeepsASeedOf64Bits) {
  EXPECT_EQ(json::parse(run_record(named_checkpoint(), some_options()).dump())["seed"].get<uint64_t>(),
            18446744073709551615u);
}

TEST(Record, OfAStaticModelSaysStatic) {
  Checkpoint checkpoint = random_checkpoint(test::static_config());
  EXPECT_EQ(run_record(checkpoint, some_options())["mode"], "static");
}

TEST(Record, CallsAllChannelsByTheirNumber) {
  GenerateOptions options = some_options();
  options.guided_channels = 99;
  EXPECT_EQ(run_record(named_checkpoint(), options)["cfg_channels"], 4);
}

TEST(Record, OfAnImageHoldsItsWorkAsShareOfStatic) {
  const json image = some_images()[0];
  const double complete = static_cast<double>(static_macs_per_sample(tiny_config(), some_options()));
  EXPECT_EQ(image["index"], 1);
  EXPECT_EQ(image["class_name"], "eel");
  EXPECT_DOUBLE_EQ(image["required_gmacs"], 3);
  EXPECT_DOUBLE_EQ(image["executed_gmacs"], 4);
  EXPECT_DOUBLE_EQ(image["required_share"], 3e9 / complete);
}

TEST(Record, OfAnImageHasTheMeanTokenShareWhereThereIsOne) {
  GeneratedSample sample;
  sample.token_share = at::tensor({0.25f, 0.75f, 1.0f, 0.0f});
  EXPECT_DOUBLE_EQ(image_record(named_checkpoint(), some_options(), sample)["token_share"], 0.5);
  EXPECT_FALSE(some_images()[0].contains("token_share"));
}

TEST(PngTextOfARun, HoldsTheRecordAsJson) {
  const json run = run_record(named_checkpoint(), some_options());
  const json read = json::parse(png_text(run, some_images()).at(kRecordKey));
  EXPECT_EQ(read["images"], some_images());
  json rest = read;
  rest.erase("images");
  EXPECT_EQ(rest, run);
}

TEST(PngTextOfARun, HoldsTheLineThatImageToolsRead) {
  const json run = run_record(named_checkpoint(), some_options());
  EXPECT_EQ(
      png_text(run, some_images()).at("parameters"),
      fmt::format("eel\nSteps: 50, Sampler: ddpm, CFG scale: 1.5, Seed: 18446744073709551615, Size: 8x8, "
                  "Model hash: 0123456789, Model: tiny, Version: dydit {}",
                  kVersion));
}

TEST(PngTextOfARun, WithoutClassNamesNumbersThem) {
  Checkpoint checkpoint = named_checkpoint();
  checkpoint.class_names = {};
  const json images = json::array({image_record(checkpoint, some_options(), {0, 3, {}, 0, {}})});
  EXPECT_TRUE(
      png_text(run_record(checkpoint, some_options()), images).at("parameters").starts_with("class 3\n"));
}

TEST(ReproducingCommand, SaysEveryParameterThatTheImageDependsOn) {
  EXPECT_EQ(
      reproducing_command(run_record(named_checkpoint(), some_options())),
      "dydit generate --model tiny.safetensors --classes 2,4 -n 6 --seed 18446744073709551615 --steps 50 "
      "--sampler ddpm --cfg-scale 1.5 --cfg-channels 3 --mode dynamic --dtype f32 --engine cpu");
}

TEST(ReproducingCommand, NamesEtaWhereThereIsOne) {
  GenerateOptions options = some_options();
  options.sampler = {SamplerKind::Ddim, 0.25f};
  const std::string command = reproducing_command(run_record(named_checkpoint(), options));
  EXPECT_NE(command.find("--sampler ddim"), std::string::npos);
  EXPECT_TRUE(command.ends_with(" --eta 0.25"));
}

TEST(ReproducingCommand, NamesTheTimestepsGivenByHand) {
  GenerateOptions options = some_options();
  options.sampler.kind = SamplerKind::Dpm;
  options.timesteps = {0, 999, 40};
  const json run = run_record(named_checkpoint(), options);
  EXPECT_EQ(run["steps"], 3);
  EXPECT_EQ(run["spacing"], "by hand");
  EXPECT_EQ(run["timesteps"], json({999, 40, 0}));
  const std::string command = reproducing_command(run);
  EXPECT_NE(command.find("--timesteps 999,40,0 --sampler dpm++"), std::string::npos) << command;
  EXPECT_EQ(command.find("--steps"), std::string::npos) << command;
}

TEST(ReproducingCommand, NamesTorchNoiseAndItsOneBatch) {
  GenerateOptions options = some_options();
  options.noise = NoiseKind::Torch;
  const json run = run_record(named_checkpoint(), options);
  EXPECT_EQ(run["noise"], "torch");
  EXPECT_TRUE(reproducing_command(run).ends_with(" --noise torch --batch 6"));
}

TEST(ReproducingCommand, NamesHowTheModelWasLoaded) {
  const json run = run_record(named_checkpoint(), some_options(),
                              {{"num_heads", 6}, {"weights", "the ema"}, {"class_names", "-names.txt"}});
  EXPECT_NE(
      reproducing_command(run).find(
          "--model tiny.safetensors --num-heads 6 --weights 'the ema' --class-names ./-names.txt --classes"),
      std::string::npos);
}

TEST(ReproducingCommand, NamesGuidedChannelsOnlyWithGuidance) {
  GenerateOptions options = some_options();
  options.cfg_scale = 1;
  EXPECT_EQ(reproducing_command(run_record(named_checkpoint(), options)).find("--cfg-channels"),
            std::string::npos);
}

TEST(ReproducingCommand, OfAPreviewAndACostMapMakesThem) {
  json run = run_record(named_checkpoint(), some_options());
  run["preview_step"] = 20;
  run["cost_map"] = {{"min", 0}};
  EXPECT_TRUE(reproducing_command(run).ends_with(" --preview-every 20 --cost-map cost-map.png"));
}

TEST(ReproducingCommand, QuotesEveryWord) {
  Checkpoint checkpoint = named_checkpoint();
  checkpoint.path = "it's; rm -r $HOME.pt";
  EXPECT_NE(reproducing_command(run_record(checkpoint, some_options())).find("'it'\\''s; rm -r $HOME.pt'"),
            std::string::npos);
}

TEST(ReproducingCommand, IsNotMadeOfWhatNoDyditWrites) {
  const json run = run_record(named_checkpoint(), some_options());
  const std::pair<const char*, json> changes[] = {{"sampler", "ddpm; touch owned #"},
                                                  {"mode", "$(id)"},
                                                  {"dtype", "f16"},
                                                  {"engine", "cpu\n"},
                                                  {"noise", "`id`"},
                                                  {"classes", json::array()},
                                                  {"classes", {1, -1}},
                                                  {"classes", {"1"}},
                                                  {"classes", "1"},
                                                  {"num_images", 0},
                                                  {"num_images", 1.5},
                                                  {"num_images", "3"},
                                                  {"seed", -1},
                                                  {"seed", 1e30},
                                                  {"steps", 1001},
                                                  {"timesteps", {1, 1000}},
                                                  {"timesteps", 3},
                                                  {"cfg_scale", "4"},
                                                  {"cfg_scale", -1},
                                                  {"cfg_channels", 0},
                                                  {"eta", 2},
                                                  {"model", "x.pt"},
                                                  {"model", {{"file", 3}}},
                                                  {"model", {{"file", "x\x1b[31m"}}},
                                                  {"loading", {{"weights", 3}}},
                                                  {"loading", 3},
                                                  {"preview_step", 0}};
  for (const auto& [key, value] : changes) {
    json changed = run;
    changed[key] = value;
    EXPECT_THROW(reproducing_command(changed), Error) << key << " " << value;
  }
  for (const char* key : {"sampler", "seed", "model", "classes", "eta"}) {
    json changed = run;
    changed.erase(key);
    EXPECT_THROW(reproducing_command(changed), Error) << key;
  }
}

TEST(Record, OfNamesThatAreNoTextIsText) {
  Checkpoint checkpoint = named_checkpoint();
  checkpoint.path = "caf\xe9\x1b.pt";
  checkpoint.class_names[4] = "\xff\n";
  const json image = image_record(checkpoint, some_options(), {1, 4, {}, 0.5, {}});
  EXPECT_EQ(image["class_name"], "\\xff\\x0a");
  const PngText text =
      png_text(run_record(checkpoint, some_options(), {{"class_names", "\xe9.txt"}}), json::array({image}));
  for (const auto& [key, value] : text) EXPECT_TRUE(is_utf8(value) && value.find('\0') == value.npos) << key;
  EXPECT_NE(text.at("parameters").find("Model: caf\\xe9\\x1b,"), std::string::npos);
}

TEST(ReproducingCommand, SaysTheBudgetAndTheStepsOfTheFullRun) {
  json run = run_record(named_checkpoint(), some_options());
  run["plan"] = {{"name", "search:18"}, {"budget", 0.25}, {"steps_of_full", 50}, {"cost", 0.24}};
  std::string command = reproducing_command(run);
  EXPECT_NE(command.find(" --steps 50 "), command.npos) << command;
  EXPECT_TRUE(command.ends_with(" --budget 0.25")) << command;
  run["plan"]["plans"] = "-p.json";
  run["plan"]["force"] = true;
  EXPECT_TRUE(reproducing_command(run).ends_with(" --budget 0.25 --plans ./-p.json --force"));
}

TEST(ReproducingCommand, SurvivesTheJson) {
  const json run = run_record(named_checkpoint(), some_options());
  EXPECT_EQ(reproducing_command(json::parse(run.dump())), reproducing_command(run));
}

}  // namespace
}  // namespace dydit

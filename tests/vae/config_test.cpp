// What config.json may say, and what it says by being silent.
#include "dydit/vae/config.h"

#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/support/autoencoder_files.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

using nlohmann::json;
using test::expect_error;

AutoencoderConfig parse(const json& config, std::vector<std::string>* notes = nullptr) {
  std::vector<std::string> told;
  const AutoencoderConfig result = parse_autoencoder_config(config.dump(), "FILE", told);
  if (notes) *notes = told;
  return result;
}

json sd_config(const json& changes = json::object()) {
  json config = {{"_class_name", "AutoencoderKL"},
                 {"_diffusers_version", "0.4.2"},
                 {"block_out_channels", {128, 256, 512, 512}},
                 {"layers_per_block", 2}};
  config.update(changes);
  return config;
}

void expect_refused(const json& changes, const std::string& part) {
  expect_error([&] { parse(sd_config(changes)); }, part);
}

TEST(AutoencoderConfig, MissingKeysTakeDefaults) {
  const AutoencoderConfig config = parse(sd_config());
  EXPECT_EQ(config.kind, AutoencoderKind::Kl);
  EXPECT_EQ(config.scale.scaling, 0.18215);
  EXPECT_EQ(config.scale.shift, 0);
  EXPECT_EQ(config.latent_channels, 4);
  EXPECT_EQ(config.norm_groups, 32);
  EXPECT_EQ(config.sample_size, 32);
  EXPECT_TRUE(config.quant_conv && config.post_quant_conv && config.mid_attention);
  EXPECT_EQ(config.factor(), 8);
  const AutoencoderConfig bare = parse({{"_class_name", "AutoencoderKL"}});
  EXPECT_EQ(bare.channels, std::vector<int>{64});
  EXPECT_EQ(bare.layers, 1);
}

TEST(AutoencoderConfig, NumbersOfOtherModelsAreRead) {
  const AutoencoderConfig flux = parse(sd_config({{"latent_channels", 16},
                                                  {"scaling_factor", 0.3611},
                                                  {"shift_factor", 0.1159},
                                                  {"use_quant_conv", false},
                                                  {"use_post_quant_conv", false},
                                                  {"latents_mean", nullptr},
                                                  {"force_upcast", true},
                                                  {"sample_size", {1024, 512}}}));
  EXPECT_EQ(flux.latent_channels, 16);
  EXPECT_EQ(flux.scale.scaling, 0.3611);
  EXPECT_EQ(flux.scale.shift, 0.1159);
  EXPECT_FALSE(flux.quant_conv || flux.post_quant_conv);
  EXPECT_EQ(flux.sample_size, 1024);
  const AutoencoderConfig playground =
      parse(sd_config({{"latents_mean", {1, 2, 3, 4}}, {"latents_std", {1, 2, 0.5, 4}}}));
  EXPECT_EQ(playground.scale.std, (std::vector<double>{1, 2, 0.5, 4}));
}

TEST(AutoencoderConfig, UnknownKeysAreTold) {
  std::vector<std::string> notes;
  parse(sd_config({{"new_idea", 1}, {"another\n", {}}, {"_name_or_path", "x"}}), &notes);
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_EQ(notes[0], "FILE: passed over what is not known: another\\x0a, new_idea");
}

TEST(AutoencoderConfig, OtherClassesAreRefusedByName) {
  for (const char* kind : {"AutoencoderKLFlux2", "VQModel", "AutoencoderDC", "DiTTransformer2DModel"})
    expect_refused({{"_class_name", kind}},
                   std::string("is of \"") + kind + "\"; AutoencoderKL or AutoencoderTiny is wanted");
  expect_error([] { parse({{"latent_channels", 4}}); }, "is of no class (_class_name)");
  expect_error([] { parse(json::array()); }, "an object is wanted, as diffusers writes it");
}

TEST(AutoencoderConfig, FactorsThatNothingCanBeDividedBy) {
  for (const json& value : {json(0), json(-0.18215), json(1e-9), json(1e300)})
    expect_refused({{"scaling_factor", value}}, "scaling_factor is");
  expect_refused({{"scaling_factor", 0}}, "a number above 0 is wanted, from 1e-06");
  expect_refused({{"scaling_factor", nullptr}}, "scaling_factor is null; a number above 0 is wanted");
  expect_refused({{"scaling_factor", "0.18215"}}, "a number is wanted, at most");
  expect_refused({{"scaling_factor", {0.18215}}}, "a number is wanted, at most");
  expect_refused({{"latents_mean", {1, 2, 3, 4}}, {"latents_std", {1, 2, 0, 4}}}, "latents_std is 0");
  std::vector<std::string> notes;
  for (const char* text : {R"({"_class_name":"AutoencoderKL","scaling_factor":NaN})",
                           R"({"_class_name":"AutoencoderKL","scaling_factor":1e999})"})
    expect_error([&] { parse_autoencoder_config(text, "FILE", notes); }, "FILE: ");
}

TEST(AutoencoderConfig, ShiftsThatContradictEachOther) {
  expect_refused({{"latents_mean", {1, 2, 3, 4}}}, "of latents_mean and latents_std one alone is given");
  expect_refused({{"latents_mean", {1, 2, 3}}, {"latents_std", {1, 2, 3}}},
                 "4 numbers are wanted, one a latent channel");
  expect_refused({{"latents_mean", {1, 2, 3, 4}}, {"latents_std", {1, 2, 3, 4}}, {"shift_factor", 1}},
                 "has shift_factor and latents_mean; latents are shifted by one of them");
}

TEST(AutoencoderConfig, OtherNetworksAreRefused) {
  expect_refused({{"down_block_types", {"DownEncoderBlock2D", "AttnDownEncoderBlock2D", "x", "x"}}},
                 "down_block_types is");
  expect_refused({{"up_block_types", {"UpDecoderBlock2D"}}}, "does not have; expected");
  expect_refused({{"act_fn", "gelu"}}, "act_fn is \"gelu\"");
  expect_refused({{"in_channels", 1}}, "in_channels is 1");
  expect_refused({{"norm_num_groups", 24}}, "norm_num_groups 24 does not divide the 128 channels of a level");
  expect_refused({{"block_out_channels", std::vector<int>(7, 32)}},
                 "block_out_channels has 7 levels; at most 6");
}

TEST(AutoencoderConfig, ValuesOfOtherKindsAreNamed) {
  expect_refused({{"block_out_channels", 128}}, "block_out_channels is 128; a list of sizes is wanted");
  expect_refused({{"block_out_channels", json::array()}}, "a list of sizes is wanted");
  expect_refused({{"block_out_channels", {128, -1}}}, "is -1; a whole number from 1 to");
  expect_refused({{"layers_per_block", 2.5}}, "layers_per_block is 2.5");
  expect_refused({{"latent_channels", 1u << 31}}, "latent_channels is 2147483648");
  expect_refused({{"use_quant_conv", 1}}, "use_quant_conv is 1; true or false is wanted");
  std::vector<std::string> notes;
  expect_error([&] { parse_autoencoder_config(std::string(1 << 21, ' '), "FILE", notes); },
               "bytes; at most 1048576 are read of a configuration");
}

TEST(AutoencoderConfig, TinyIsTaesds) {
  const AutoencoderConfig config = parse({{"_class_name", "AutoencoderTiny"},
                                          {"latent_channels", 16},
                                          {"num_encoder_blocks", {1, 3, 3, 3}},
                                          {"num_decoder_blocks", {3, 3, 3, 1}},
                                          {"latent_magnitude", 3},
                                          {"latent_shift", 0.5},
                                          {"scaling_factor", 1.0}});
  EXPECT_EQ(config.kind, AutoencoderKind::Tiny);
  EXPECT_EQ(config.latent_channels, 16);
  EXPECT_EQ(config.factor(), 8);
  EXPECT_EQ(config.scale.scaling, 1);
  expect_error(
      [] {
        parse({{"_class_name", "AutoencoderTiny"}, {"num_encoder_blocks", {1, 1, 1, 1}}});
      },
      "num_encoder_blocks is [1,1,1,1], which the layout of TAESD does not have");
}

TEST(AutoencoderConfig, WhatIsWrittenIsReadAgain) {
  AutoencoderConfig config = test::small_kl();
  config.latent_channels = 2;
  config.scale = {0.5, 0, {1, -2}, {3, 4}};
  config.quant_conv = config.mid_attention = false;
  std::vector<std::string> notes;
  const AutoencoderConfig again = parse(autoencoder_config_to_json(config), &notes);
  EXPECT_TRUE(notes.empty());
  EXPECT_EQ(autoencoder_config_to_json(again), autoencoder_config_to_json(config));
  EXPECT_EQ(again.scale.mean, config.scale.mean);
  const AutoencoderConfig tiny = parse(autoencoder_config_to_json(tiny_config(4, false)), &notes);
  EXPECT_EQ(tiny.channels, tiny_config(4, false).channels);
}

}  // namespace
}  // namespace dydit

// What is no autoencoder, or not a whole one: an error that names file and tensor.
#include <filesystem>
#include <limits>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/vae/autoencoder.h"
#include "tests/support/autoencoder_files.h"
#include "tests/support/golden.h"
#include "tests/support/shared.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using test::expect_error;
using test::write_file;

class Refused : public testing::Test {
 protected:
  fs::path at(const std::string& name) const { return top_ / name; }

  void expect_refused(const Weights& weights, const std::string& part, VaeNames names = VaeNames::Diffusers) {
    test::save_autoencoder(at("vae"), config_, test::respelled(weights, names, 2));
    expect_error([&] { load_autoencoder(at("vae")); }, at("vae").string() + ": ");
    expect_error([&] { load_autoencoder(at("vae")); }, part);
  }
  // Without a configuration.
  void expect_bare_refused(const Weights& weights, const std::string& part) {
    test::save_weights(at("a.safetensors"), weights);
    expect_error([&] { load_autoencoder(at("a.safetensors")); }, at("a.safetensors").string() + ": ");
    expect_error([&] { load_autoencoder(at("a.safetensors")); }, part);
  }

  test::TemporaryFolder top_;
  const AutoencoderConfig config_ = test::small_kl();
  const Weights weights_ = test::recipe_weights(config_);
};

TEST_F(Refused, MissingTensorsInTheFilesSpelling) {
  Weights weights = weights_;
  weights.erase("decoder.up_blocks.0.resnets.1.conv2.bias");
  expect_refused(weights, "tensor decoder.up_blocks.0.resnets.1.conv2.bias is missing (nearest present: ");
  expect_refused(weights, "tensor decoder.up.1.block.1.conv2.bias is missing", VaeNames::Ldm);
}

TEST_F(Refused, TensorsThatAreLeftOver) {
  Weights weights = weights_;
  weights["decoder.extra.weight"] = at::zeros({2});
  expect_refused(weights, "tensor decoder.extra.weight belongs to no part of this autoencoder");
  expect_refused(weights, "decoder.extra.weight belongs to no part", VaeNames::Ldm);
  weights = weights_;
  weights["loss.logvar"] = at::zeros({2});  // passed over in a checkpoint of training alone
  expect_refused(weights, "tensor loss.logvar belongs to no part of this autoencoder");
}

TEST_F(Refused, OtherShapesAndTypes) {
  Weights weights = weights_;
  weights["decoder.conv_in.weight"] = at::zeros({16, 8, 3, 3});
  expect_refused(weights, "decoder.conv_in.weight has shape (16, 8, 3, 3), expected (16, 4, 3, 3) by " +
                              at("vae/config.json").string());
  weights = weights_;
  weights["encoder.conv_in.bias"] = at::zeros({8}, at::kLong);
  expect_refused(weights, "encoder.conv_in.bias is I64, expected a floating-point tensor");
}

TEST_F(Refused, NumbersThatAreNone) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Weights weights = weights_;
    weights["decoder.conv_norm_out.bias"] = at::full({8}, value).to(at::kHalf);
    expect_refused(weights, "decoder.conv_norm_out.bias holds NaN or infinity; the autoencoder is broken");
  }
}

TEST_F(Refused, BothSpellingsOfAttention) {
  Weights weights = weights_;
  weights["encoder.mid_block.attentions.0.query.weight"] = at::zeros({16, 16});
  expect_refused(weights, "its attention has both spellings of names");
}

TEST_F(Refused, AttentionInsideLevels) {
  Weights weights = test::respelled(weights_, VaeNames::Ldm, 2, "first_stage_model.");
  weights["first_stage_model.encoder.down.1.attn.0.q.weight"] = at::zeros({16, 16, 1, 1});
  expect_bare_refused(weights,
                      "first_stage_model.encoder.down.1.attn.0.q.weight is attention inside a level");
}

TEST_F(Refused, QuantConvsThatAreNotSquare) {
  Weights weights = weights_;
  weights["quant_conv.weight"] = at::zeros({16, 8, 1, 1});
  expect_refused(weights, "quant_conv.weight has shape (16, 8, 1, 1): embed_dim is not z_channels");
}

TEST_F(Refused, WithoutAConfigurationWhatShapesDoNotTell) {
  expect_bare_refused(weights_, "the usual 32 groups do not divide its 8 channels; --vae-config");
  AutoencoderConfig wide = config_;
  wide.channels = {32, 32};
  wide.latent_channels = 16;
  expect_bare_refused(
      test::recipe_weights(wide),
      "16 latent channels do not tell its scaling factor (SD3 has 1.5305 and a shift of 0.0609");
  wide.quant_conv = wide.post_quant_conv = false;
  expect_bare_refused(test::recipe_weights(wide),
                      "16 latent channels without quant convolutions do not tell");
  Weights weights = test::recipe_weights(wide);
  weights["decoder.conv_in.weight"] = at::zeros({16});
  expect_bare_refused(weights, "decoder.conv_in.weight has shape (16); no autoencoder has such a layer");
  weights = weights_;
  for (const char* part : {"weight", "bias"})
    weights.erase(std::string("encoder.down_blocks.0.resnets.0.conv1.") + part);
  expect_bare_refused(weights, "tensor encoder.down_blocks.0.resnets.0.conv1.weight is missing");
}

TEST_F(Refused, OtherAutoencodersByTheirName) {
  for (const auto& [name, what] : std::vector<std::pair<std::string, std::string>>{
           {"bn.running_mean", "this autoencoder is FLUX.2's (AutoencoderKLFlux2), by its tensor names"},
           {"quantize.embedding.weight", "one of codes (VQModel)"},
           {"encoder.stages.0.0.conv.weight", "a deep-compression one (AutoencoderDC)"}})
    expect_bare_refused({{name, at::zeros({2, 2})}}, what);
  Weights flux2 = weights_;
  flux2["bn.running_mean"] = at::zeros({8});
  expect_bare_refused(flux2, "AutoencoderKLFlux2");
}

TEST_F(Refused, OtherModelsByTheirName) {
  expect_error([] { load_autoencoder(test::golden_path("model.safetensors")); },
               "is a DiT, which --model takes; an autoencoder is wanted");
  write_file(at("pipeline/model_index.json"), "{}");
  expect_error([&] { load_autoencoder(at("pipeline")); },
               "is a pipeline of diffusers without an autoencoder (vae/config.json)");
  expect_error([] { load_autoencoder(test::golden_path("diffusers/transformer")); },
               "is of \"DiTTransformer2DModel\"");
  expect_bare_refused(
      {{"layer1.0.conv1.weight", at::zeros({2})}, {"layer1.0.conv2.weight", at::zeros({2})}},
      "holds no autoencoder by its tensor names (layer1.0.conv1.weight, ...). It seems to be");
}

TEST_F(Refused, AnAutoencoderAsAModel) {
  test::save_autoencoder(at("vae"), config_, weights_);
  expect_error([&] { load_checkpoint(at("vae")); }, "holds \"AutoencoderKL\"; a DiT is wanted");
  expect_error([&] { load_checkpoint(at("vae")); }, "; an autoencoder goes to --vae");
  expect_error([&] { load_checkpoint(at("vae/diffusion_pytorch_model.safetensors")); },
               "It seems to be an autoencoder (VAE), which --vae takes.");
  const Weights tiny = test::recipe_weights(tiny_config(4, false));
  for (const char* half : {"encoder", "decoder"}) {
    test::save_weights(at("half.safetensors"), test::half_of_taesd(tiny, half));
    expect_error([&] { load_checkpoint(at("half.safetensors")); }, "which --vae takes");
  }
}

TEST_F(Refused, TinyOnesOfAnotherLayout) {
  Weights weights = test::half_of_taesd(test::recipe_weights(tiny_config(4, false)), "encoder");
  Weights other = weights;
  other["0.weight"] = at::zeros({32, 3, 3, 3});
  expect_bare_refused(other,
                      "this tiny autoencoder is of another layout than TAESD's (taesana's?): "
                      "encoder.0.weight has 32 outputs");
  other = weights;
  other["11.skip.weight"] = at::zeros({64, 64, 1, 1});
  expect_bare_refused(other, "tensor encoder.11.skip.weight belongs to no part");
  other = weights;
  other.erase("12.conv.2.bias");
  expect_bare_refused(other, "tensor encoder.12.conv.2.bias is missing");
}

TEST_F(Refused, PairsThatAreNone) {
  const Weights tiny = test::recipe_weights(tiny_config(4, false)),
                decoder = test::half_of_taesd(tiny, "decoder");
  fs::create_directories(at("pair"));
  for (const char* name : {"pair/a_encoder.safetensors", "pair/a_decoder.safetensors"})
    test::save_weights(at(name), decoder);
  expect_error([&] { load_autoencoder(at("pair")); },
               "both files hold decoder.1.bias; one of an encoder and one of a decoder");
  test::save_weights(at("kl.safetensors"), weights_);
  expect_error(
      [&] {
        load_autoencoder(at("pair/a_decoder.safetensors").string() + "," + at("kl.safetensors").string());
      },
      "kl.safetensors: is no half of a tiny autoencoder of TAESD's layout");
  test::save_weights(at("pair/b_decoder.safetensors"), decoder);
  expect_error([&] { load_autoencoder(at("pair")); },
               "holds halves of several autoencoders (a_decoder.safetensors, a_encoder.safetensors, "
               "b_decoder.safetensors); name two of them with a comma");
}

TEST_F(Refused, AConfigurationOfAnotherKind) {
  test::save_autoencoder(at("vae"), tiny_config(4, false), weights_);
  expect_error([&] { load_autoencoder(at("vae")); },
               "config.json: is of AutoencoderTiny, but the tensors of");
  expect_error([&] { load_autoencoder(at("vae")); }, "are named as one of AutoencoderKL");
}

TEST_F(Refused, FilesThatAreNoWeights) {
  write_file(at("page.safetensors"), "<!DOCTYPE html><html>");
  expect_error([&] { load_autoencoder(at("page.safetensors")); }, "a web page (HTML)");
  expect_error([&] { load_autoencoder(at("page.safetensors")); }, "not an autoencoder's weights; wanted");
  write_file(at("empty/readme.txt"), "x");
  expect_error([&] { load_autoencoder(at("empty")); },
               "not an autoencoder's folder; wanted one of diffusers");
  expect_error([&] { load_autoencoder(at("missing.pt")); }, "No such file");
  write_file(at("alone/config.json"), autoencoder_config_to_json(config_).dump());
  expect_error([&] { load_autoencoder(at("alone")); }, "fetch the weights, too");
}

TEST_F(Refused, CutShort) {
  test::save_weights(at("a.safetensors"),
                     test::half_of_taesd(test::recipe_weights(tiny_config(4, false)), "encoder"));
  const std::string bytes = test::contents(at("a.safetensors"));
  for (const size_t size : {size_t{4}, size_t{100}, bytes.size() / 2, bytes.size() - 1}) {
    write_file(at("cut.safetensors"), bytes.substr(0, size));
    expect_error([&] { load_autoencoder(at("cut.safetensors")); }, at("cut.safetensors").string());
  }
  write_file(at("cut.safetensors.part"), bytes.substr(0, bytes.size() / 2));
  expect_error([&] { load_autoencoder(at("cut.safetensors.part")); }, "the download has not ended");
}

}  // namespace
}  // namespace dydit

// Weights as trainers leave them: behind prefixes, under other keys, several in one file. What was taken is
// said.
#include <gtest/gtest.h>

#include "dydit/model/checkpoint.h"
#include "tests/support/checkpoint_files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::error_of;
using test::expect_error;
using test::parse;
using test::random_checkpoint;
using test::TorchBuilder;
using namespace test::pickle;

Weights weights_of(uint64_t seed) { return random_checkpoint(test::tiny_config(), seed).weights; }

Weights prefixed(const Weights& weights, const std::string& prefix) {
  Weights out;
  for (const auto& [name, tensor] : weights) out[prefix + name] = tensor;
  return out;
}

bool same(const Weights& a, const Weights& b) {
  return a.size() == b.size() && std::all_of(a.begin(), a.end(), [&](const auto& entry) {
           return b.contains(entry.first) && at::equal(entry.second, b.at(entry.first));
         });
}

bool says(const Checkpoint& checkpoint, const std::string& part) {
  return std::any_of(checkpoint.read_notes.begin(), checkpoint.read_notes.end(),
                     [&](const std::string& note) { return note.find(part) != note.npos; });
}

TEST(WeightPrefixes, AreTakenOffAndSaid) {
  const Weights weights = weights_of(1);
  for (const char* prefix : {"module.", "_orig_mod.", "model.", "net.", "module.module.", "_orig_mod.module.",
                             "model._orig_mod.", "module.model.net.", "ema_model.", "denoiser.dit."}) {
    TorchBuilder file;
    const Checkpoint checkpoint = parse(file.build({text("ema"), file.state_dict(weights, prefix)}));
    EXPECT_TRUE(same(checkpoint.weights, weights)) << prefix;
    EXPECT_EQ(checkpoint.weights_key, "ema");
    EXPECT_TRUE(says(checkpoint, "names are read without ")) << prefix;
    const Checkpoint flat = test::load(prefixed(weights, prefix));
    EXPECT_EQ(flat.weights.size(), weights.size()) << prefix;
    EXPECT_TRUE(says(flat, "names are read without ")) << prefix;
  }
}

TEST(WeightPrefixes, OfCompiledBlocksAreTakenOff) {
  Weights wrapped;
  const Weights weights = weights_of(1);
  for (const auto& [name, tensor] : weights) {
    std::string inner = name;
    if (name.starts_with("blocks.0.")) inner.replace(0, 9, "blocks.0._orig_mod.");
    if (name.starts_with("blocks.1.")) inner.replace(0, 9, "blocks.1._checkpoint_wrapped_module.");
    wrapped[inner] = tensor;
  }
  const Checkpoint checkpoint = test::load(wrapped);
  EXPECT_EQ(checkpoint.config.depth, 2);
  EXPECT_TRUE(says(checkpoint, "_checkpoint_wrapped_module, _orig_mod"));
}

TEST(WeightPrefixes, PlainNamesSayNothing) { EXPECT_TRUE(test::load(weights_of(1)).read_notes.empty()); }

TEST(WeightPrefixes, TensorsOfOtherModelsAreCounted) {
  Weights weights = prefixed(weights_of(1), "model.");
  weights["vae.decoder.conv_in.weight"] = weights["vae.decoder.conv_in.bias"] = at::zeros({2, 2});
  EXPECT_TRUE(says(test::load(weights), "passed over 2 tensors (vae.decoder.conv_in.bias, "));
}

TEST(WeightPrefixes, AnUnknownTensorBehindThePrefixIsRefused) {
  Weights weights = prefixed(weights_of(1), "module.");
  weights["module.extra.weight"] = at::zeros({2});
  expect_error([&] { test::load(weights); }, "tensor extra.weight belongs to no part of DyDiT");
}

TEST(WeightPrefixes, TwoSetsInOneFileAreChoices) {
  const Weights average = weights_of(1), online = weights_of(2);
  Weights both = prefixed(average, "ema_model.");
  both.merge(prefixed(online, "online_model."));
  both["initted"] = at::ones({1});
  both["step"] = at::ones({});
  const Checkpoint taken = test::load(both);
  EXPECT_EQ(taken.weights_key, "ema_model");
  EXPECT_TRUE(says(taken, "passed over 2 counters (initted, step)"));
  EXPECT_TRUE(says(taken, "took the weights 'ema_model' of 'ema_model' ("));
  EXPECT_EQ(test::load(both, {}, {.weights = "online_model"}).weights_key, "online_model");
  Weights plain = weights_of(1);
  plain.merge(prefixed(average, "ema."));
  EXPECT_EQ(test::load(plain).weights_key, "ema");
  EXPECT_EQ(test::load(plain, {}, {.weights = "plain"}).weights_key, "plain");
}

TEST(WeightKeys, AveragesAreTakenFirst) {
  const Weights average = weights_of(1), model = weights_of(2);
  for (const char* key : {"ema", "model_ema", "ema_model", "params_ema", "ema_params", "state_dict_ema"}) {
    TorchBuilder file;
    const std::string bytes =
        file.build({text("model"), file.state_dict(model), text(key), file.state_dict(average)});
    const Checkpoint checkpoint = parse(bytes);
    EXPECT_EQ(checkpoint.weights_key, key);
    EXPECT_TRUE(same(checkpoint.weights, average)) << key;
    EXPECT_TRUE(same(parse(bytes, {.weights = "model"}).weights, model)) << key;
    ASSERT_EQ(checkpoint.choices.size(), 2u);
    EXPECT_EQ(checkpoint.choices[1].key, "model");
    EXPECT_EQ(checkpoint.choices[1].tensors, model.size());
  }
}

TEST(WeightKeys, OthersAreRead) {
  const Weights weights = weights_of(1);
  for (const char* key : {"model", "state_dict", "model_state_dict", "net", "params", "module", "my_dit"}) {
    TorchBuilder file;
    EXPECT_TRUE(same(parse(file.build({text(key), file.state_dict(weights)})).weights, weights)) << key;
  }
}

TEST(WeightKeys, LieOneLevelDeeper) {
  const Weights weights = weights_of(1);
  TorchBuilder file;
  const Checkpoint checkpoint = parse(
      file.build({text("state"), dict({text("model"), file.state_dict(weights)}), text("epoch"), number(3)}));
  EXPECT_EQ(checkpoint.weights_key, "state.model");
  TorchBuilder other;
  EXPECT_EQ(parse(other.build({text("ema"), dict({text("module"), other.state_dict(weights)})})).weights_key,
            "ema.module");
}

TEST(WeightKeys, ShadowParametersTakeTheNamesOfTheModel) {
  const Weights average = weights_of(1), model = weights_of(2);
  TorchBuilder file;
  const Checkpoint checkpoint =
      parse(file.build({text("model"), file.state_dict(model), text("ema"),
                        dict({text("decay"), real(0.99), text("shadow_params"), file.list(average)})}));
  EXPECT_EQ(checkpoint.weights_key, "ema.shadow_params");
  EXPECT_TRUE(same(checkpoint.weights, average));
  EXPECT_TRUE(says(checkpoint, "they were given those of 'model'"));
}

TEST(WeightKeys, AnUnusableAverageIsPassedOverAndSaid) {
  const Weights model = weights_of(2);
  Weights partial = weights_of(1);
  partial.erase("blocks.1.mlp.fc2.bias");
  for (const bool list : {false, true}) {
    TorchBuilder file;
    const std::string ema = list
                                ? dict({text("decay"), real(0.99), text("shadow_params"), file.list(partial)})
                                : file.state_dict(partial);
    const std::string bytes = file.build({text("model"), file.state_dict(model), text("ema"), ema});
    const Checkpoint checkpoint = parse(bytes);
    EXPECT_EQ(checkpoint.weights_key, "model");
    EXPECT_TRUE(says(checkpoint, "passed over: "));
    EXPECT_NE(error_of([&] { parse(bytes, {.weights = list ? "ema.shadow_params" : "ema"}); }), "");
  }
}

TEST(WeightKeys, ABrokenAverageIsNoReasonToTakeTheModel) {
  Weights average = weights_of(1);
  average["pos_embed"][0][0][0] = std::nan("");
  TorchBuilder file;
  const std::string bytes =
      file.build({text("model"), file.state_dict(weights_of(2)), text("ema"), file.state_dict(average)});
  const std::string message = error_of([&] { parse(bytes); });
  EXPECT_NE(message.find("pos_embed holds NaN or infinity"), message.npos) << message;
  EXPECT_NE(message.find("these are the weights 'ema', --weights takes another"), message.npos) << message;
  EXPECT_EQ(parse(bytes, {.weights = "model"}).weights_key, "model");
}

TEST(WeightKeys, AnUnknownOneListsThem) {
  TorchBuilder file;
  const std::string bytes = file.build(
      {text("model"), file.state_dict(weights_of(2)), text("ema"), file.state_dict(weights_of(1))});
  expect_error([&] { parse(bytes, {.weights = "emma"}); },
               "--weights emma: m.pt has no such weights; it holds 'ema' (");
  expect_error([&] { test::load(weights_of(1), {}, {.weights = "ema"}); },
               "one set of weights without a name");
}

TEST(WeightKeys, CountersOfTheDictArePassedOverAndSaid) {
  const Weights weights = weights_of(1);
  TorchBuilder file;
  const Checkpoint checkpoint =
      parse(file.build({text("model"), file.state_dict(weights, "module.",
                                                       {text("n_averaged"), file.add(at::ones({})),
                                                        text("epoch"), number(3), text("_metadata"), "N"})}));
  EXPECT_TRUE(same(checkpoint.weights, weights));
  EXPECT_TRUE(says(checkpoint, "passed over 1 counter (n_averaged)"));
  EXPECT_TRUE(says(checkpoint, "passed over 2 entries that are no tensors (epoch, ...)"));
}

TEST(WeightNames, OfOtherModelsAreGuessed) {
  for (const auto& [name, what] : std::vector<std::pair<std::string, std::string>>{
           {"in_blocks.0.attn.qkv.weight", "a U-ViT"},
           {"y_embedder.y_proj.fc1.weight", "a PixArt"},
           {"en_inblocks.0.attn.qkv.weight", "an MDT"},
           {"text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder (CLIP)"},
           {"post_quant_conv.weight", "an autoencoder (VAE)"},
           {"transformer_blocks.0.attn1.to_q.weight", "a transformer of diffusers"}}) {
    expect_error([&, name = name] { test::load({{name, at::zeros({2, 2})}}); }, "It seems to be " + what);
  }
}

}  // namespace
}  // namespace dydit

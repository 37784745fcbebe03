// Adapters: the start changes nothing, merged is unmerged, files hold them and know their base.
#include "dydit/model/adapters.h"

#include <cmath>
#include <fstream>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <torch/torch.h>

#include "dydit/io/safetensors.h"
#include "dydit/model/edit.h"
#include "dydit/model/macs.h"
#include "dydit/model/quantization.h"
#include "dydit/plan/run_plan.h"
#include "tests/support/checkpoint_files.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::relative_difference;
using test::TemporaryFolder;

constexpr int kRows = 3;
constexpr AdapterConfig kLora{AdapterKind::Lora, 6, 1, 0.75, AdapterMix::A};
constexpr AdapterConfig kTdLora{AdapterKind::TdLora, 4, 3, 1.5, AdapterMix::A};
constexpr AdapterConfig kOnB{AdapterKind::TdLora, 4, 3, 1.5, AdapterMix::B};

DiTConfig adapted_config(const AdapterConfig& adapter, DiTConfig config = test::tiny_config()) {
  config.adapter = adapter;
  return config;
}

at::Tensor times() { return at::tensor({20, 480, 940}, at::kLong); }

// Static, or with some heads and channel groups off.
at::Tensor forward(const Checkpoint& checkpoint, bool gated = false, at::ScalarType dtype = at::kFloat) {
  at::NoGradGuard no_grad;
  DiT model = make_model(checkpoint, dtype);
  const test::Inputs inputs = test::random_inputs(checkpoint.config, kRows);
  Gates gates;
  for (int l = 0; gated && l < checkpoint.config.depth; ++l) {
    const at::Tensor on = at::ones({kRows, checkpoint.config.num_heads});
    on.slice(1, 1 + l, 3 + l).zero_();
    gates.heads.push_back(on);
    gates.groups.push_back(on.flip(0));
  }
  return model->forward(inputs.x, model->embed_timestep(times()), inputs.labels(), gates);
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void expect_says(const std::string& error, const std::string& part) {
  EXPECT_NE(error.find(part), std::string::npos) << error << "\nlacks: " << part;
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
}

class EveryAdapter : public testing::TestWithParam<AdapterConfig> {};
INSTANTIATE_TEST_SUITE_P(Adapters, EveryAdapter, testing::Values(kLora, kTdLora, kOnB));

TEST_P(EveryAdapter, LeavesTheModelAsItIsAtTheStart) {
  const Checkpoint base = test::random_checkpoint(test::tiny_config());
  const Checkpoint adapted = add_adapters(base, GetParam(), /*seed=*/3);
  for (const bool gated : {false, true})
    EXPECT_TRUE(at::equal(forward(base, gated), forward(adapted, gated)));
  EXPECT_TRUE(at::equal(forward(base, false, at::kBFloat16), forward(adapted, false, at::kBFloat16)));
}

TEST_P(EveryAdapter, ChangesTheModelWhenBIsNotZero) {
  const Checkpoint adapted = test::random_checkpoint(adapted_config(GetParam()));
  Checkpoint bare = adapted;
  bare.config.adapter = {};
  EXPECT_GT(relative_difference(forward(adapted), forward(bare)), 1e-2);
}

TEST_P(EveryAdapter, HasAsManyParametersAsItsShapesSay) {
  const Checkpoint adapted = test::random_checkpoint(adapted_config(GetParam()));
  EXPECT_EQ(num_parameters(adapted.config), adapted.num_parameters());
  int64_t adapters = 0, routers = 0;
  for (const auto& [name, tensor] : adapted.weights) {
    if (is_adapter_parameter(name)) adapters += tensor.numel();
    if (is_router_parameter(name)) routers += tensor.numel();
  }
  EXPECT_EQ(adapter_parameters(adapted.config), adapters);
  EXPECT_EQ(router_parameters(adapted.config), routers);
}

TEST_P(EveryAdapter, SurvivesAFile) {
  const TemporaryFolder folder;
  Checkpoint adapted = test::random_checkpoint(adapted_config(GetParam()));
  adapted.adapter_base = "abc, ema";
  for (const char* name : {"a.safetensors", "a.pt"}) {
    const std::string path = folder / name;
    (path.ends_with(".pt")
         ? save_torch_checkpoint
         : static_cast<void (*)(const std::filesystem::path&, const Checkpoint&, at::ScalarType)>(
               save_checkpoint))(path, adapted, at::kFloat);
    const Checkpoint read = load_checkpoint(path);
    EXPECT_EQ(read.config, adapted.config);
    EXPECT_EQ(read.adapter_base, "abc, ema");
    EXPECT_EQ(read.notes.count("adapter"), 0u);
    ASSERT_EQ(read.weights.size(), adapted.weights.size());
    for (const auto& [key, tensor] : adapted.weights)
      EXPECT_TRUE(at::equal(read.weights.at(key), tensor)) << key;
  }
}

// Adapters of each row's timestep as a LoRA's: what TD-LoRA is at one t.
at::Tensor forward_of_row(const Checkpoint& adapted, int row) {
  at::NoGradGuard no_grad;
  DiT model = make_model(adapted);
  Checkpoint at_t = adapted;
  at_t.config.adapter.kind = AdapterKind::Lora;
  at_t.config.adapter.experts = 1;
  at_t.config.adapter.mix = AdapterMix::A;
  const at::Tensor t_emb = model->embed_timestep(times().slice(0, row, row + 1));
  for (int l = 0; l < adapted.config.depth; ++l) {
    const std::string block = fmt::format("blocks.{}.", l);
    const at::Tensor shares = model->blocks[l]->expert_shares(t_emb);
    at_t.weights.erase(block + "lora_alpha.weight");
    at_t.weights.erase(block + "lora_alpha.bias");
    for (const std::string_view layer : kBlockLayers) {
      const auto of = [&](const char* which) { return fmt::format("{}{}.lora.{}", block, layer, which); };
      at_t.weights[of("A")] =
          mixed(adapted.weights.at(of("A")), shares).reshape({1, adapted.config.adapter.rank, -1});
      const at::Tensor B = mixed(adapted.weights.at(of("B")), shares);
      at_t.weights[of("B")] = B.dim() == 3 ? B[0] : B;
    }
  }
  return forward(merge_adapters(at_t))[row];
}

TEST(TdLora, IsAtEveryTimestepTheModelWithItsMatricesMergedIn) {
  for (const AdapterConfig& adapter : {kTdLora, kOnB}) {
    const Checkpoint adapted = test::random_checkpoint(adapted_config(adapter));
    const at::Tensor out = forward(adapted);
    for (int row = 0; row < kRows; ++row)
      EXPECT_LT(relative_difference(out[row], forward_of_row(adapted, row)), 1e-5);
    // Of another timestep it is another model.
    const DiT model = make_model(adapted);
    const at::Tensor shares = DiTBlock(model->blocks[0])->expert_shares(DiT(model)->embed_timestep(times()));
    EXPECT_GT((shares[0] - shares[2]).abs().max().item<double>(), 1e-3);
    EXPECT_TRUE(at::allclose(shares.sum(1), at::ones({kRows})));
  }
}

TEST(Lora, MergedIsUnmergedAndGatesCutBothAlike) {
  const Checkpoint adapted = test::random_checkpoint(adapted_config(kLora));
  const Checkpoint merged = merge_adapters(adapted);
  EXPECT_EQ(merged.config, test::tiny_config());
  for (const bool gated : {false, true})
    EXPECT_LT(relative_difference(forward(merged, gated), forward(adapted, gated)), 1e-5);
}

TEST(Lora, IsMergedInFloat32AndRoundedOnce) {
  const TemporaryFolder folder;
  const Checkpoint adapted = in_dtype(test::random_checkpoint(adapted_config(kLora)), at::kBFloat16);
  const std::string name = "blocks.1.mlp.fc2";
  const auto of = [&](const char* what) { return adapted.weights.at(name + what).to(at::kFloat); };
  const at::Tensor wanted = of(".weight") + at::matmul(of(".lora.B"), of(".lora.A")[0]) * kLora.scale;
  save_checkpoint(folder / "m.safetensors", merge_adapters(adapted), at::kBFloat16);
  EXPECT_TRUE(at::equal(load_checkpoint(folder / "m.safetensors").weights.at(name + ".weight"),
                        wanted.to(at::kBFloat16)));
}

TEST(AddAdapters, DrawsEveryExpertByItselfAndMixesByLoudRouters) {
  const Checkpoint base = test::random_checkpoint(test::tiny_config());
  const Checkpoint adapted = add_adapters(base, kTdLora, /*seed=*/3);
  const at::Tensor A = adapted.weights.at("blocks.1.mlp.fc2.lora.A");
  EXPECT_FALSE(at::equal(A[0], A[1]));
  EXPECT_FALSE(at::equal(A[1], A[2]));
  const double bound = 1 / std::sqrt(256.0);  // Kaiming's of sqrt 5
  EXPECT_LE(A.abs().max().item<double>(), bound);
  EXPECT_GT(A.abs().max().item<double>(), 0.95 * bound);
  EXPECT_FALSE(at::equal(adapted.weights.at("blocks.0.mlp.fc2.lora.A"), A));
  EXPECT_TRUE(at::equal(add_adapters(base, kTdLora, 3).weights.at("blocks.1.mlp.fc2.lora.A"), A));
  EXPECT_FALSE(at::equal(add_adapters(base, kTdLora, 4).weights.at("blocks.1.mlp.fc2.lora.A"), A));
  EXPECT_GT(adapted.weights.at("blocks.0.lora_alpha.weight").abs().max().item<double>(), 0.1);
  for (const auto& [name, tensor] : adapted.weights) {
    const bool zero = name.ends_with(".lora.B") || name.ends_with("lora_alpha.bias");
    EXPECT_TRUE(!zero || (tensor == 0).all().item<bool>()) << name;
  }
}

TEST(Mixing, TellsWhetherSharesFollowTheTimestep) {
  Checkpoint adapted = test::random_checkpoint(adapted_config(kTdLora));
  EXPECT_GT(mixing_of(adapted).range, 0.01);
  EXPECT_LT(mixing_of(adapted).entropy[0], 0.999);
  for (int l = 0; l < adapted.config.depth; ++l) {
    adapted.weights.at(fmt::format("blocks.{}.lora_alpha.weight", l)).zero_();
    adapted.weights.at(fmt::format("blocks.{}.lora_alpha.bias", l)).zero_();
  }
  EXPECT_NEAR(mixing_of(adapted).entropy[3], 1, 1e-6);  // all alike
  EXPECT_EQ(mixing_of(adapted).range, 0);
  for (int l = 0; l < adapted.config.depth; ++l)
    adapted.weights.at(fmt::format("blocks.{}.lora_alpha.bias", l))[1] = 100;
  EXPECT_NEAR(mixing_of(adapted).entropy[3], 0, 1e-6);  // one alone
}

TEST(Adapters, HaveTheParametersAndTheWorkOfTheirFormulas) {
  DiTConfig config{.input_size = 32,
                   .patch_size = 4,
                   .in_channels = 3,
                   .hidden_size = 256,
                   .depth = 8,
                   .num_heads = 8,
                   .mlp_hidden = 1024};
  config.adapter = {AdapterKind::TdLora, 8, 4};
  const int64_t r = 8, E = 4, C = 256, L = 8, N = 64;
  EXPECT_EQ(adapter_parameters(config), r * C * L * (7 * E + 9) + L * (C * E + E));
  EXPECT_EQ(adapter_attention_macs(config, 8, config.num_tokens()) + adapter_mlp_macs(config, 8, N),
            N * 16 * r * C + E * r * 7 * C);
  EXPECT_EQ(adapter_router_macs(config), C * E);
  EXPECT_EQ(adapter_attention_macs(config, 2, config.num_tokens()),
            N * r * (2 * C + 4 * C / 4) + E * r * 2 * C);
  EXPECT_EQ(adapter_mlp_macs(config, 2, 10), 10 * r * (2 * C + 2 * C) + E * r * 5 * C);
  config.adapter.mix = AdapterMix::B;
  EXPECT_EQ(adapter_attention_macs(config, 8, config.num_tokens()) + adapter_mlp_macs(config, 8, N),
            N * 16 * r * C + E * r * 9 * C);
  EXPECT_EQ(static_macs(config), static_macs({.input_size = 32,
                                              .patch_size = 4,
                                              .in_channels = 3,
                                              .hidden_size = 256,
                                              .depth = 8,
                                              .num_heads = 8,
                                              .mlp_hidden = 1024}));
}

TEST(Adapters, CountInTheRequiredWorkOfAPlan) {
  const auto required = [](const AdapterConfig& adapter) {
    const Checkpoint checkpoint = test::random_checkpoint(adapted_config(adapter, test::static_config()));
    const RunPlan plan = make_width_plan(checkpoint, std::vector<int>{500}, Mode::Static);
    return required_macs(plan.config, plan.steps[0]);
  };
  const DiTConfig config = adapted_config(kTdLora, test::static_config());
  EXPECT_EQ(required(kTdLora) - required({}),
            config.depth * (adapter_attention_macs(config, 4, config.num_tokens()) +
                            adapter_mlp_macs(config, 4, 16) + adapter_router_macs(config)));
}

TEST(Adapters, AreRefusedWhereTheyDoNotFit) {
  const Checkpoint lora = test::random_checkpoint(adapted_config(kLora)),
                   td_lora = test::random_checkpoint(adapted_config(kTdLora)),
                   bare = test::random_checkpoint(test::static_config());
  expect_says(error_of([&] { add_adapters(lora, kTdLora, 0); }),
              "already has adapters (LoRA, rank 6, scale 0.75)");
  expect_says(error_of([&] { add_adapters(bare, {AdapterKind::Lora, 65}, 0); }), "rank 65: the hidden size");
  expect_says(
      error_of([&] { merge_adapters(td_lora); }),
      "TD-LoRA (our form), rank 4, 3 experts on A, scale 1.5, which make other weights at every timestep");
  expect_says(error_of([&] { merge_adapters(bare); }), "no adapters to merge");
  expect_says(error_of([&] { reorder_by_importance(lora); }), "another order of heads and channels");
  expect_says(error_of([&] { quantize_checkpoint(lora, {}, {}); }), "merge them first");
  const TemporaryFolder folder;
  Checkpoint still = test::random_checkpoint(adapted_config(kLora, test::static_config()));
  expect_says(error_of([&] { save_diffusers_folder(folder / "d", still, at::kFloat); }), "no place for");
  expect_says(error_of([&] { save_adapters(folder / "a", bare, at::kFloat); }), "has no adapters");
}

// The weights of a LoRA with this metadata 'adapter'.
std::string refused_metadata(const std::string& text, const std::string& format = "2") {
  test::Metadata metadata = {{"dydit_format", format}};
  if (!text.empty()) metadata["adapter"] = text;
  return error_of([&] { test::load(test::random_checkpoint(adapted_config(kLora)).weights, metadata); });
}

TEST(AdapterMetadata, ThatDoNotDescribeTheTensorsAreOneLine) {
  const nlohmann::json good = {{"kind", "lora"}, {"rank", 6},  {"experts", 1},
                               {"scale", 0.75},  {"mix", "A"}, {"base_sha256", "x"}};
  EXPECT_EQ(refused_metadata(good.dump()), "");
  const auto with = [&](const char* key, const nlohmann::json& value) {
    nlohmann::json changed = good;
    changed[key] = value;
    return refused_metadata(changed.dump());
  };
  expect_says(refused_metadata(""), "no metadata 'adapter' says how adapters are scaled");
  expect_says(refused_metadata("{"), "metadata 'adapter' is not JSON");
  expect_says(refused_metadata("[]"), "an object {...} is wanted");
  expect_says(with("rank", 5), "says LoRA, rank 5, scale 0.75, but its tensors are those of LoRA, rank 6");
  expect_says(with("rank", 0), "rank is 0; 1 to 65536 is wanted");
  expect_says(with("kind", "td-lora"), "td-lora of 1 experts on A");
  expect_says(with("kind", "dora"), "kind is \"dora\"; none or lora or td-lora is wanted");
  expect_says(with("mix", "B"), "lora of 1 experts on B; TD-LoRA (our form) has two or more, LoRA one, on A");
  expect_says(with("experts", 2), "lora of 2 experts on A");
  expect_says(with("scale", "1"), "scale is \"1\"; a number is wanted");
  expect_says(with("bias", 1), "key \"bias\" is unknown");
  const std::string bare = error_of([&] {
    test::load(test::random_checkpoint(test::tiny_config()).weights,
               {{"dydit_format", "2"}, {"adapter", good.dump()}});
  });
  expect_says(bare, "speaks of adapters, but tensor blocks.0.attn.qkv.lora.A is missing");
  // Another program's word, of a model without any.
  const Checkpoint foreign =
      test::load(test::random_checkpoint(test::tiny_config()).weights, {{"adapter", "us"}});
  EXPECT_EQ(foreign.notes.at("adapter"), "us");
}

TEST(AdapterMetadata, ThatDescribeOtherTensorsAreOneLine) {
  const Weights weights = test::random_checkpoint(adapted_config(kTdLora)).weights;
  const auto with = [&](const AdapterConfig& adapter) {
    const nlohmann::json stated = {{"kind", kAdapterNames[adapter.kind]},  {"rank", adapter.rank},
                                   {"experts", adapter.experts},           {"scale", 1},
                                   {"mix", kAdapterMixNames[adapter.mix]}, {"base_sha256", ""}};
    return error_of([&] { test::load(weights, {{"adapter", stated.dump()}}); });
  };
  EXPECT_EQ(with(kTdLora), "");
  expect_says(with(kOnB),
              "says TD-LoRA (our form), rank 4, 3 experts on B, scale 1, but its tensors are those of "
              "TD-LoRA (our form), rank 4, 3 experts on A, scale 1");
  expect_says(with({AdapterKind::Lora, 4}),
              "says LoRA, rank 4, scale 1, but its tensors are those of TD-LoRA");
  expect_says(with({AdapterKind::TdLora, 4, 2}), "4, 2 experts on A, scale 1, but its tensors are those of");
}

TEST(AdapterMetadata, OfTensorsThatHoldNothingMakeNoModel) {
  Weights weights = test::random_checkpoint(adapted_config(kTdLora)).weights;
  weights["blocks.0.attn.qkv.lora.A"] = at::empty({1024, 65536, 0});
  expect_says(error_of([&] {
                test::load(weights, {{"adapter", R"({"kind":"td-lora","rank":65536,"experts":1024,"scale":1,)"
                                                 R"("mix":"A","base_sha256":""})"}});
              }),
              "with at least");
}

TEST(AdapterMetadata, MakeAFormatThatOlderProgramsRefuse) {
  const TemporaryFolder folder;
  const auto format = [&](const AdapterConfig& adapter) {
    save_checkpoint(folder / "m.safetensors", test::random_checkpoint(adapted_config(adapter)), at::kFloat);
    return read_safetensors(folder / "m.safetensors").metadata.at("dydit_format");
  };
  EXPECT_EQ(format({}), "1");
  EXPECT_EQ(format(kLora), "2");
}

// Of a base in a file: trained adapters and routers, in the whole model and in a file of their own.
struct Trained {
  Trained() {
    save_checkpoint(folder / "base.safetensors", test::random_checkpoint(test::static_config()),
                    at::kBFloat16);
    base = load_checkpoint(folder / "base.safetensors");
    whole = add_adapters(add_routers(reorder_by_importance(base), {}, 1), kTdLora, 1);
    for (auto& [name, tensor] : whole.weights) {
      if (is_adapter_parameter(name) || is_router_parameter(name))
        tensor = test::random_tensor(tensor.sizes(), 4, 0);
    }
    whole.adapter_base = base_identity(base);
    whole.notes[kOrderNote] = "magnitude";
    whole.lambda = 0.5;
    save_adapters(folder / "alone.safetensors", whole, at::kFloat);
  }
  TemporaryFolder folder;
  Checkpoint base, whole;
};

TEST(AdaptersAlone, MakeTheWholeModelOfTheirBase) {
  const Trained trained;
  const SafetensorsFile file = read_safetensors(trained.folder / "alone.safetensors");
  for (const auto& [name, view] : file.tensors)
    EXPECT_TRUE(is_adapter_parameter(name) || is_router_parameter(name)) << name;
  const Checkpoint made = put_adapters(trained.base, trained.folder / "alone.safetensors");
  EXPECT_EQ(made.config, trained.whole.config);
  EXPECT_EQ(made.lambda, 0.5);
  ASSERT_EQ(made.weights.size(), trained.whole.weights.size());
  for (const auto& [name, tensor] : trained.whole.weights)
    EXPECT_TRUE(at::equal(made.weights.at(name), tensor)) << name;
}

TEST(AdaptersAlone, AreRefusedOnAnyOtherBase) {
  const Trained trained;
  const std::string alone = trained.folder / "alone.safetensors";
  Checkpoint other = trained.base;
  other.sha256 = "other";
  expect_says(error_of([&] { put_adapters(other, alone); }),
              fmt::format("trained on weights of sha256 {}, and {} is other", trained.base.sha256,
                          (trained.folder / "base.safetensors").string()));
  Checkpoint routed = add_routers(trained.base, {}, 0);
  expect_says(error_of([&] { put_adapters(routed, alone); }), "has routers already");
  expect_says(error_of([&] { put_adapters(trained.base, trained.folder / "base.safetensors"); }),
              "no file of adapters alone");
  save_checkpoint(trained.folder / "whole.safetensors", trained.whole, at::kFloat);
  expect_says(error_of([&] { put_adapters(trained.base, trained.folder / "whole.safetensors"); }),
              "no file of adapters alone");
  expect_says(error_of([&] { load_checkpoint(alone); }), "It seems to be adapters without their model");
}

}  // namespace
}  // namespace dydit

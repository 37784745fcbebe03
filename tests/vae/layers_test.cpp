// One list of layers: sizes, work and names of published autoencoders follow from it.
#include "dydit/vae/layers.h"

#include <map>

#include <gtest/gtest.h>

#include "dydit/vae/config.h"
#include "tests/support/autoencoder_files.h"

namespace dydit {
namespace {

struct Count {
  int64_t tensors = 0, values = 0;
};

std::map<VaeHalf, Count> count(const AutoencoderConfig& config) {
  std::map<VaeHalf, Count> counts;
  for (const auto& [name, tensor] : test::recipe_weights(config)) {
    Count& half = counts[half_of(name)];
    half.tensors += 1;
    half.values += tensor.numel();
  }
  return counts;
}

TEST(AutoencoderLayers, StableDiffusionHasItsPublishedSize) {
  auto counts = count(AutoencoderConfig{});
  EXPECT_EQ(counts[VaeHalf::Encoder].values, 34'163'664);
  EXPECT_EQ(counts[VaeHalf::Decoder].values, 49'490'199);
  EXPECT_EQ(counts[VaeHalf::Encoder].tensors + counts[VaeHalf::Decoder].tensors, 248);
}

TEST(AutoencoderLayers, TinyOnesHaveTheirPublishedSizes) {
  struct Size {
    int channels;
    bool pool;
    int64_t encoder, decoder;
  };
  for (const Size& size : {Size{4, false, 1'222'532, 1'222'531},
                           {16, false, 1'229'456, 1'229'443},
                           {32, true, 1'338'528, 1'338'499}}) {
    auto counts = count(tiny_config(size.channels, size.pool));
    EXPECT_EQ(counts[VaeHalf::Encoder].values, size.encoder);
    EXPECT_EQ(counts[VaeHalf::Decoder].values, size.decoder);
  }
}

TEST(AutoencoderMacs, AreThePublishedOnes) {
  const AutoencoderConfig sd;
  EXPECT_NEAR(static_cast<double>(encode_macs(sd, 256, 256)), 136.4e9, 0.05e9);
  EXPECT_NEAR(static_cast<double>(decode_macs(sd, 32, 32)), 311.1e9, 0.05e9);
  EXPECT_NEAR(static_cast<double>(encode_macs(sd, 1024, 1024)), 2439e9, 0.5e9);
  EXPECT_NEAR(static_cast<double>(decode_macs(sd, 128, 128)), 5235e9, 0.5e9);
  const AutoencoderConfig taesd = tiny_config(4, false), taef2 = tiny_config(32, true);
  EXPECT_NEAR(static_cast<double>(encode_macs(taesd, 256, 256)), 15.3e9, 0.05e9);
  EXPECT_NEAR(static_cast<double>(decode_macs(taesd, 32, 32)), 17.7e9, 0.05e9);
  EXPECT_NEAR(static_cast<double>(encode_macs(taef2, 256, 256)), 15.4e9, 0.05e9);
  EXPECT_NEAR(static_cast<double>(decode_macs(taef2, 32, 32)), 17.8e9, 0.05e9);
}

TEST(AutoencoderMacs, OddSidesRoundAsTheNetworksDo) {
  AutoencoderConfig kl = test::small_kl();  // down for one, up for the other
  const auto at_level = [](const AutoencoderConfig& config, int side) {
    int64_t macs = 0;
    for (const VaeLayer& layer : autoencoder_layers(config)) {
      if (half_of(layer.name) == VaeHalf::Encoder && layer.level > 0 && !layer.is_norm())
        macs += layer.weight_values() * (side >> layer.level) * (side >> layer.level);
    }
    return macs;
  };
  kl.mid_attention = false;
  const AutoencoderConfig tiny = tiny_config(4, false);
  const auto full = [](const AutoencoderConfig& config) {
    int64_t macs = 0;
    for (const VaeLayer& layer : autoencoder_layers(config)) {
      if (half_of(layer.name) == VaeHalf::Encoder && layer.level == 0 && !layer.is_norm())
        macs += layer.weight_values();
    }
    return macs;
  };
  EXPECT_EQ(encode_macs(kl, 9, 9), full(kl) * 81 + at_level(kl, 8));
  EXPECT_EQ(encode_macs(tiny, 63, 63), full(tiny) * 63 * 63 + at_level(tiny, 64));
}

TEST(AutoencoderNames, OfOtherPrograms) {
  const std::string attention = "decoder.mid_block.attentions.0.";
  EXPECT_EQ(spelled(VaeNames::Diffusers, attention + "to_out.0.bias", 4), attention + "to_out.0.bias");
  EXPECT_EQ(spelled(VaeNames::OldDiffusers, attention + "to_out.0.bias", 4), attention + "proj_attn.bias");
  EXPECT_EQ(spelled(VaeNames::OldDiffusers, attention + "to_v.weight", 4), attention + "value.weight");
  EXPECT_EQ(spelled(VaeNames::OldDiffusers, attention + "group_norm.weight", 4),
            attention + "group_norm.weight");
  for (const auto& [ours, theirs] : std::map<std::string, std::string>{
           {attention + "to_k.weight", "decoder.mid.attn_1.k.weight"},
           {attention + "group_norm.bias", "decoder.mid.attn_1.norm.bias"},
           {attention + "to_out.0.weight", "decoder.mid.attn_1.proj_out.weight"},
           {"encoder.mid_block.resnets.1.norm1.bias", "encoder.mid.block_2.norm1.bias"},
           {"encoder.down_blocks.2.resnets.0.conv_shortcut.weight",
            "encoder.down.2.block.0.nin_shortcut.weight"},
           {"encoder.down_blocks.0.downsamplers.0.conv.bias", "encoder.down.0.downsample.conv.bias"},
           {"decoder.up_blocks.0.resnets.2.conv2.bias", "decoder.up.3.block.2.conv2.bias"},
           {"decoder.up_blocks.3.resnets.0.conv_shortcut.bias", "decoder.up.0.block.0.nin_shortcut.bias"},
           {"decoder.up_blocks.2.upsamplers.0.conv.weight", "decoder.up.1.upsample.conv.weight"},
           {"decoder.conv_norm_out.weight", "decoder.norm_out.weight"},
           {"encoder.conv_in.weight", "encoder.conv_in.weight"},
           {"post_quant_conv.bias", "post_quant_conv.bias"}})
    EXPECT_EQ(spelled(VaeNames::Ldm, ours, 4), theirs);
  EXPECT_EQ(spelled(VaeNames::DiffusersTiny, "encoder.14.bias", 4), "encoder.layers.14.bias");
  EXPECT_EQ(spelled(VaeNames::DiffusersTiny, "decoder.1.weight", 4), "decoder.layers.0.weight");
  EXPECT_EQ(spelled(VaeNames::DiffusersTiny, "decoder.18.conv.2.bias", 4), "decoder.layers.17.conv.2.bias");
}

}  // namespace
}  // namespace dydit

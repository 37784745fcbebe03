// Multiply-adds against the papers' numbers and the formulas written out.
#include "dydit/model/macs.h"

#include <gtest/gtest.h>

#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::odd_config;
using test::static_config;

double static_gmacs(int hidden, int depth, int heads) {
  return 1e-9 * static_cast<double>(static_macs(
                    {.hidden_size = hidden, .depth = depth, .num_heads = heads, .mlp_hidden = 4 * hidden}));
}

// DyDiT's tables; for S/2 the DiT paper's 6.06, since DyDiT's 6.07 seems to count more than multiply-adds.
TEST(Macs, OfDiTXL2AreThePapers) { EXPECT_NEAR(static_gmacs(1152, 28, 16), 118.69, 0.002 * 118.69); }
TEST(Macs, OfDiTB2AreThePapers) { EXPECT_NEAR(static_gmacs(768, 12, 12), 23.02, 0.002 * 23.02); }
TEST(Macs, OfDiTS2AreThePapers) { EXPECT_NEAR(static_gmacs(384, 12, 6), 6.06, 0.002 * 6.06); }

TEST(Macs, OfWholeAttentionAre4NCCPlus2NNC) {
  const int64_t N = 9, C = 36;
  EXPECT_EQ(attention_macs(odd_config(), 3), 4 * N * C * C + 2 * N * N * C);
}

TEST(Macs, OfAttentionAreProportionalToHeads) {
  EXPECT_EQ(3 * attention_macs(odd_config(), 1), attention_macs(odd_config(), 3));
}

TEST(Macs, OfAWholeMlpAre8NCC) {
  const int64_t N = 16, C = 64;
  EXPECT_EQ(mlp_macs(static_config(), 4, N), 8 * N * C * C);
}

TEST(Macs, OfAnMlpAreProportionalToGroupsAndTokens) {
  EXPECT_EQ(mlp_macs(odd_config(), 2, 5) * 3 * 9, mlp_macs(odd_config(), 3, 9) * 2 * 5);
}

TEST(Macs, OfRoutersAreThoseOfTheirLinears) {
  const int64_t L = 3, N = 9, C = 36, H = 3, R = 2;
  EXPECT_EQ(router_macs(odd_config()), L * (2 * C * (H - 1) + N * (C * R + R)));
}

TEST(Macs, OfAStaticModelsRoutersAreNone) { EXPECT_EQ(router_macs(static_config()), 0); }

TEST(Macs, OfTheStaticModelDoNotCountRouters) {
  DiTConfig without = odd_config();
  without.width_routers = without.token_routers = false;
  EXPECT_EQ(static_macs(odd_config()), static_macs(without));
}

TEST(ModelName, IsThePublishedOne) {
  EXPECT_EQ(model_name({}), "DiT-XL/2");
  EXPECT_EQ(model_name({.hidden_size = 384, .depth = 12, .num_heads = 6, .width_routers = true}),
            "DyDiT-S/2");
}

TEST(ModelName, OfOtherSizesSpellsThemOut) {
  EXPECT_EQ(model_name(static_config()), "DiT (2 blocks, hidden 64, 4 heads, patch 2)");
}

TEST(NumParameters, AreThoseOfTheModule) {
  DiTConfig widths = test::tiny_config(), tokens = test::tiny_config();
  widths.token_routers = false;
  tokens.width_routers = false;
  for (const DiTConfig& config :
       {test::tiny_config(), odd_config(), static_config(), test::one_head_config(), widths, tokens}) {
    EXPECT_EQ(num_parameters(config), test::random_checkpoint(config).num_parameters()) << model_name(config);
  }
}

TEST(NumParameters, OfDiTXL2AreThePapers) {
  EXPECT_NEAR(1e-6 * static_cast<double>(num_parameters(named_config("DiT-XL/2"))), 675, 1);
}

}  // namespace
}  // namespace dydit

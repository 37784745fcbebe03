// What an encoder's moments say.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/vae/autoencoder.h"

namespace dydit {
namespace {

TEST(Posterior, IsClampedAtBothEnds) {
  const at::Tensor moments = at::tensor({1.0f, 2.0f, 25.0f, -31.0f}).view({1, 4, 1, 1});
  const Posterior posterior = posterior_of(moments, AutoencoderKind::Kl);
  EXPECT_TRUE(at::equal(posterior.mean.flatten(), at::tensor({1.0f, 2.0f})));
  EXPECT_TRUE(at::equal(posterior.logvar.flatten(), at::tensor({20.0f, -30.0f})));
  const Posterior tiny = posterior_of(moments, AutoencoderKind::Tiny);
  EXPECT_TRUE(at::equal(tiny.mean, moments));
  EXPECT_FALSE(tiny.logvar.defined());
}

}  // namespace
}  // namespace dydit

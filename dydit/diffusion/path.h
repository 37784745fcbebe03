// Paths of continuous time from noise to data, and what a network's output says at a point of one. Letters:
// s the noise share (dydit/base/objective.h), x = alpha(s) data + sigma(s) noise.
#pragma once

#include "dydit/base/objective.h"

namespace dydit {

/// A point of a path, in double; derivatives by s.
struct NoiseLevel {
  double share = 0;
  double alpha = 1, sigma = 0;
  double d_alpha = 0, d_sigma = 0;  // of Vp at s = 0 d_sigma is infinite
};

/// Of a path that is no table. (SiT, section 2.1 and appendix; U-ViT's code)
NoiseLevel level_at(Path path, double share);

/// A linear function of a state and of what the network gives for it: x_factor x + out_factor out.
struct Combination {
  double x = 0, out = 0;

  friend Combination operator+(const Combination& a, const Combination& b) {
    return {a.x + b.x, a.out + b.out};
  }
  friend Combination operator*(double factor, const Combination& a) { return {factor * a.x, factor * a.out}; }
};

/// The noise in x, the image in it, and dx/ds along the path: closed forms that divide by nothing which is 0
/// where a velocity is known; with Prediction::Noise alpha must not be 0.
Combination noise_of(const Objective& objective, const NoiseLevel& level);
Combination image_of(const Objective& objective, const NoiseLevel& level);
Combination slope_of(const Objective& objective, const NoiseLevel& level);

/// Half the squared diffusion of the path's own forward SDE: sigma d_sigma - sigma^2 d_alpha / alpha;
/// infinite where alpha is 0.
double half_squared_diffusion(Path path, const NoiseLevel& level);

/// Where training draws the noise share from, [0, .): all of it but what the path has no velocity for (SiT,
/// intervals of its code).
struct ShareInterval {
  double least = 0, most = 1;
};
ShareInterval training_shares(const Objective& objective);

}  // namespace dydit

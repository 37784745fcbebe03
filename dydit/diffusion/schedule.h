// Which timesteps a run visits: the linear beta schedule and its respacing. Everything in double.
#pragma once

#include <string>
#include <vector>

#include "dydit/base/objective.h"
#include "dydit/base/timesteps.h"

namespace dydit {

inline constexpr double kBetaStart = 1e-4;
inline constexpr double kBetaEnd = 2e-2;

/// Betas of the linear schedule, (1000).
std::vector<double> linear_betas();

/// `steps` timesteps spread evenly over 0..999, ascending: stride 999/(steps-1) accumulated in double, each
/// entry rounded half to even; one step gives {0}. Throws UsageError outside 1..1000.
std::vector<int> even_timesteps(int steps);

/// `steps` times spread evenly over those that there are, noise and image included: a table's even_timesteps,
/// else even in the noise share. By noise, the noisiest last.
std::vector<double> even_times(const Objective& objective, int steps);

/// The smallest integer stride from 0 that gives exactly `steps` timesteps, ascending; empty when none does
/// ("ddimN" of the original; 62 values of N work). Throws UsageError outside 1..1000.
std::vector<int> strided_timesteps(int steps);

/// DPM-Solver++'s `steps` timesteps, ascending: i * 999 / steps for i = 1 .. steps, rounded half to even. 0
/// is not among them: the last step goes straight to the image. Throws UsageError outside 1..999, the most
/// that gives no timestep twice.
std::vector<int> linspace_timesteps(int steps);

/// A list given by hand, in any order -> by noise, the noisiest last (a table's ascend). Throws UsageError
/// for none, one that the clock does not have or one given twice.
std::vector<double> sorted_timesteps(std::vector<double> timesteps, const Objective& objective = {});

}  // namespace dydit

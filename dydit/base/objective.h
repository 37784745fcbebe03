// What a network was trained to predict, and what its time means: plain data, shared by those who build the
// network and those who sample with it.
#pragma once

#include <algorithm>

#include "dydit/base/enum_names.h"
#include "dydit/base/timesteps.h"

namespace dydit {

/// x_t = alpha data + sigma noise. Table: DDPM's 1000 betas (DiT). Linear: (1 - s, s) of the noise share s.
/// Gvp: (cos, sin) of a quarter turn s. Vp: the VP-SDE with beta = 0.1 + 19.9 s. (SiT, table 1; U-ViT)
enum class Path { Table, Linear, Gvp, Vp };
/// Velocity: the derivative of x_t by the clock's time.
enum class Prediction { Noise, Velocity };
/// The time that the network is given, of the noise share s (0: the image, 1: noise). Steps: 0 to 999, whole;
/// s = t / 1000. Scaled: 999 s (U-ViT). Data: 1 - s (SiT: 0 is noise). Noise: s (REPA).
enum class ModelClock { Steps, Scaled, Data, Noise };

inline constexpr EnumNames<Prediction, 2> kPredictionNames = {
    "prediction", {{"noise", Prediction::Noise}, {"velocity", Prediction::Velocity}}};

struct Objective {
  Path path = Path::Table;
  Prediction prediction = Prediction::Noise;
  ModelClock clock = ModelClock::Steps;

  bool operator==(const Objective&) const = default;
  /// Whether times are any numbers of an interval, not steps of a table.
  bool continuous() const { return path != Path::Table; }
};

/// What files and flags call a path with the clock that goes with it: SiT's, REPA's, and U-ViT's "vp-999".
struct PathName {
  Path path;
  ModelClock clock;
  bool operator==(const PathName&) const = default;
};
inline constexpr EnumNames<PathName, 6> kPathNames = {"path",
                                                      {{"table", {Path::Table, ModelClock::Steps}},
                                                       {"linear", {Path::Linear, ModelClock::Data}},
                                                       {"linear-reversed", {Path::Linear, ModelClock::Noise}},
                                                       {"gvp", {Path::Gvp, ModelClock::Data}},
                                                       {"vp", {Path::Vp, ModelClock::Data}},
                                                       {"vp-999", {Path::Vp, ModelClock::Scaled}}}};

/// Whether of this path noise is all that a network predicts: of a velocity of a table or of U-ViT's clock
/// nobody could say what it is.
inline bool only_noise(const PathName& path) {
  return path.path == Path::Table || path.clock == ModelClock::Scaled;
}

/// The largest time of the clock; the smallest is 0.
inline double last_time(const Objective& objective) {
  return objective.clock == ModelClock::Steps || objective.clock == ModelClock::Scaled
             ? kNumTrainTimesteps - 1
             : 1;
}

inline double noise_share(const Objective& objective, double time) {
  switch (objective.clock) {
    case ModelClock::Steps:
      return time / kNumTrainTimesteps;
    case ModelClock::Scaled:
      return time / (kNumTrainTimesteps - 1);
    case ModelClock::Data:
      return 1 - time;
    default:
      return time;
  }
}

/// The time of a noise share; of a table the nearest step below.
inline double time_at(const Objective& objective, double share) {
  switch (objective.clock) {
    case ModelClock::Steps:
      return std::min(static_cast<int>(share * kNumTrainTimesteps + 1e-6), kNumTrainTimesteps - 1);
    case ModelClock::Scaled:
      return share * (kNumTrainTimesteps - 1);
    case ModelClock::Data:
      return 1 - share;
    default:
      return share;
  }
}

/// Whether a network can be given this time.
inline bool is_time(const Objective& objective, double time) {
  const bool inside = time >= 0 && time <= last_time(objective);  // NaN is not
  return inside && (objective.continuous() || time == static_cast<int>(time));
}

}  // namespace dydit

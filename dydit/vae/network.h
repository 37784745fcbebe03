// An encoder or a decoder as a list of convolutions over two maps: the stream x and, beside it, a branch h
// that a block computes and adds to x.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dydit/base/team.h"
#include "dydit/vae/conv.h"
#include "dydit/vae/map.h"

namespace dydit::vae {

enum class Slot { X, H };

struct Step {
  std::string name;   // the key of its weights
  std::string stage;  // what StageObserver calls what comes out; empty: no stage
  Slot from = Slot::X, to = Slot::X;
  Conv conv;
  bool attention = false;  // in place of a convolution: of q, k and v
  GroupNorm norm = {};
  Activation before = Activation::None, after = Activation::None;
  bool add = false;   // to what is in `to`
  int groups = 0;     // of moments of what comes out
  bool bf16 = false;  // type of what comes out
};

class Network {
 public:
  explicit Network(std::vector<Step> steps) : steps_(std::move(steps)) {}

  /// Called after every step, with what came out of it.
  using Observer = std::function<void(const Step&, const Map&)>;

  Map run(Team& team, Map x, const Observer& observe = {}) const;
  /// Multiply-adds of one image that are done in fact.
  int64_t executed_macs(int height, int width) const;
  /// Bytes of all maps and of the threads' memory at the step that needs most.
  double bytes(int height, int width, int threads) const;

 private:
  // Every step with its output and the bytes of all maps meanwhile; the maps hold nothing.
  using Visit = std::function<void(const Step&, const Map& to, double bytes)>;
  void walk(int height, int width, const Visit& visit) const;

  std::vector<Step> steps_;
};

}  // namespace dydit::vae

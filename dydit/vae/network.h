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

/// What a call needs beside weights; of one call at a time.
struct Workspace {
  explicit Workspace(int threads) : team(threads), scratch(threads) {}

  Team team;
  std::vector<cpu::Buffer> scratch;  // of each thread
  MapPool maps{MapPool::Kind::Memory};
};

class Network {
 public:
  explicit Network(std::vector<Step> steps) : steps_(std::move(steps)) {}

  /// Called after every step, with what came out of it.
  using Observer = std::function<void(const Step&, const Map&)>;

  /// x: of the workspace's maps, as is the result.
  Map run(Workspace& workspace, Map x, const Observer& observe = {}) const;
  /// Multiply-adds of one image that are done in fact.
  int64_t executed_macs(int height, int width) const;
  /// Bytes that a workspace holds at most, whatever the number of images that pass through it.
  double bytes(int height, int width, int threads) const;

 private:
  // Takes maps from `pool` from step to step; compute(step, from, to) before what is not needed any more goes
  // back.
  template <typename Compute>
  Map follow(MapPool& pool, Map x, const Compute& compute) const;
  size_t scratch_bytes() const;
  int channels() const { return steps_.front().conv.shape().in; }

  std::vector<Step> steps_;
};

}  // namespace dydit::vae

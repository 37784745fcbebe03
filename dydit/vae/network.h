// An encoder or a decoder as a list of convolutions over two maps: the stream x and, beside it, a branch h
// that a block computes and adds to x.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "dydit/base/team.h"
#include "dydit/conv/conv.h"
#include "dydit/conv/map.h"

namespace dydit::vae {

using namespace conv;

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

/// Steps in a row.
enum class Part { All, Body, Rest };  // Rest: a decoder's levels, which are convolutions; Body: all before

class Network {
 public:
  /// body: how many steps there are before Rest.
  Network(std::vector<Step> steps, size_t body) : steps_(std::move(steps)), body_(body) {}

  /// Called after every step, with what came out of it and the moments that the next norm will take.
  using Observer = std::function<void(const Step&, Map&)>;

  /// x: of the workspace's maps, as is the result.
  Map run(Workspace& workspace, Map x, const Observer& observe = {}, Part part = Part::All) const;
  /// Multiply-adds of one image that are done in fact.
  int64_t executed_macs(int height, int width) const;
  /// Bytes that a workspace holds at most, whatever the number of images that pass through it.
  double bytes(int height, int width, int threads, Part part = Part::All) const;
  /// How far to each side a pixel of Rest's output looks, in pixels of its input, norms aside.
  int reach() const;

 private:
  std::span<const Step> steps(Part part) const;
  // Takes maps from `pool` from step to step; compute(step, from, to) before what is not needed any more goes
  // back.
  template <typename Compute>
  Map follow(MapPool& pool, Map x, Part part, const Compute& compute) const;
  Map input(MapPool& pool, int height, int width, Part part) const;
  size_t scratch_bytes() const;

  std::vector<Step> steps_;
  size_t body_;
};

}  // namespace dydit::vae

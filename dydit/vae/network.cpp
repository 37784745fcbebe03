#include "dydit/vae/network.h"

#include <algorithm>
#include <cmath>

#include "dydit/vae/attention.h"

namespace dydit::vae {
namespace {

// Whether a step's result takes its input's place: a pixel's outputs are written once its inputs were read.
bool is_in_place(const Step& step, const Map& from) {
  const ConvShape& shape = step.conv.shape();
  return step.from == step.to && shape.is_pixelwise() && shape.out <= from.stride && step.bf16 == from.bf16;
}

}  // namespace

std::span<const Step> Network::steps(Part part) const {
  const std::span<const Step> all(steps_);
  return part == Part::All ? all : part == Part::Body ? all.first(body_) : all.subspan(body_);
}

template <typename Compute>
Map Network::follow(MapPool& pool, Map x, Part part, const Compute& compute) const {
  Map h;
  for (const Step& step : steps(part)) {
    Map &from = step.from == Slot::X ? x : h, &to = step.to == Slot::X ? x : h;
    const ConvShape& shape = step.conv.shape();
    if (step.add || (!step.attention && is_in_place(step, from))) {
      compute(step, from, to);
      to.C = shape.out;
    } else {
      Map next = step.attention
                     ? pool.take(from.H, from.W, from.C / 3, /*bf16=*/false)
                     : pool.take(shape.out_height(from.H), shape.out_width(from.W), shape.out, step.bf16);
      compute(step, from, next);
      pool.give(std::move(to));
      to = std::move(next);
    }
    if (step.add) pool.give(std::move(h));
  }
  pool.give(std::move(h));
  return x;
}

Map Network::run(Workspace& workspace, Map x, const Observer& observe, Part part) const {
  for (cpu::Buffer& memory : workspace.scratch) memory.reserve(scratch_bytes());
  return follow(workspace.maps, std::move(x), part, [&](const Step& step, const Map& from, Map& to) {
    if (step.attention) {
      attend(workspace.team, from, to);
    } else {
      step.conv.run(workspace.team, workspace.scratch, from, to,
                    {&step.norm, step.before, step.after, step.add, step.groups});
    }
    if (observe) observe(step, to);
  });
}

size_t Network::scratch_bytes() const {
  size_t most = 0;
  for (const Step& step : steps_) {
    if (!step.attention) most = std::max(most, step.conv.scratch_bytes());
  }
  return most;
}

Map Network::input(MapPool& pool, int height, int width, Part part) const {
  return pool.take(height, width, steps(part).front().conv.shape().in,
                   part == Part::Rest && steps_[body_ - 1].bf16);
}

int64_t Network::executed_macs(int height, int width) const {
  int64_t macs = 0;
  MapPool pool(MapPool::Kind::CountsOnly);
  follow(pool, input(pool, height, width, Part::All), Part::All,
         [&](const Step& step, const Map&, const Map& to) {
           const int64_t pixels = int64_t{to.H} * to.W;
           macs += step.attention ? 2 * pixels * pixels * to.C : step.conv.executed_macs(to.H, to.W);
         });
  return macs;
}

double Network::bytes(int height, int width, int threads, Part part) const {
  double most = 0;
  MapPool pool(MapPool::Kind::CountsOnly);
  for (int image = 0; image < 2; ++image) {  // the second finds what the first has left
    pool.give(follow(pool, input(pool, height, width, part), part,
                     [&](const Step& step, const Map&, const Map& to) {
                       const double more = step.attention ? attention_bytes(to.H, to.W, to.C, threads) : 0;
                       most = std::max(most, pool.held_bytes() + more);
                     }));
  }
  return most + static_cast<double>(scratch_bytes()) * threads;
}

int Network::reach() const {
  double reach = 0, pixel = 1;  // size of a map's pixel in those of the first
  for (const Step& step : steps(Part::Rest)) {
    const ConvShape& shape = step.conv.shape();
    reach += pixel * (shape.rows.taps / 2);
    if (shape.upsample) pixel /= 2;
  }
  return static_cast<int>(std::ceil(reach));
}

}  // namespace dydit::vae

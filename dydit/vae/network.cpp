#include "dydit/vae/network.h"

#include <algorithm>

#include "dydit/vae/attention.h"

namespace dydit::vae {
namespace {

// Whether a step's result takes its input's place: a pixel's outputs are written once its inputs were read.
bool is_in_place(const Step& step, const Map& from) {
  const ConvShape& shape = step.conv.shape();
  return step.from == step.to && shape.kernel == 1 && shape.stride == 1 && shape.out <= from.stride &&
         step.bf16 == from.bf16;
}

}  // namespace

Map Network::run(Team& team, Map input, const Observer& observe) const {
  size_t most = 0;
  for (const Step& step : steps_) most = std::max(most, step.attention ? 0 : step.conv.scratch_bytes());
  std::vector<cpu::Buffer> scratch(team.threads());
  for (cpu::Buffer& memory : scratch) memory.reserve(most);
  Map x = std::move(input), h;
  for (const Step& step : steps_) {
    Map &from = step.from == Slot::X ? x : h, &to = step.to == Slot::X ? x : h;
    const ConvUse use = {&step.norm, step.before, step.after, step.add, step.groups};
    const ConvShape& shape = step.conv.shape();
    if (step.attention) {
      to = attend(team, from);
    } else if (step.add || is_in_place(step, from)) {
      step.conv.run(team, scratch, from, to, use);
      to.C = shape.out;
    } else {
      Map next(shape.out_side(from.H), shape.out_side(from.W), shape.out, step.bf16);
      step.conv.run(team, scratch, from, next, use);
      to = std::move(next);
    }
    if (observe) observe(step, to);
    if (step.add) h = {};
  }
  return x;
}

void Network::walk(int height, int width, const Visit& visit) const {
  Map x = Map::shape(height, width, steps_.front().conv.shape().in, /*bf16=*/false), h;
  for (const Step& step : steps_) {
    Map &from = step.from == Slot::X ? x : h, &to = step.to == Slot::X ? x : h;
    const ConvShape& shape = step.conv.shape();
    double bytes = x.held_bytes() + h.held_bytes();
    if (step.attention) {
      Map next = Map::shape(from.H, from.W, from.C / 3, /*bf16=*/false);
      bytes += next.held_bytes();
      to = std::move(next);
    } else if (step.add || is_in_place(step, from)) {
      to.C = shape.out;
    } else {
      Map next = Map::shape(shape.out_side(from.H), shape.out_side(from.W), shape.out, step.bf16);
      bytes += next.held_bytes();
      to = std::move(next);
    }
    visit(step, to, bytes);
    if (step.add) h = {};
  }
}

int64_t Network::executed_macs(int height, int width) const {
  int64_t macs = 0;
  walk(height, width, [&](const Step& step, const Map& to, double) {
    const int64_t pixels = int64_t{to.H} * to.W;
    macs += step.attention ? 2 * pixels * pixels * to.C : step.conv.executed_macs(to.H, to.W);
  });
  return macs;
}

double Network::bytes(int height, int width, int threads) const {
  double most = 0;
  size_t scratch = 0;
  walk(height, width, [&](const Step& step, const Map& to, double maps) {
    most = std::max(most, maps + (step.attention ? attention_bytes(to.H, to.W, to.C, threads) : 0));
    if (!step.attention) scratch = std::max(scratch, step.conv.scratch_bytes());
  });
  return most + static_cast<double>(scratch) * threads;
}

}  // namespace dydit::vae

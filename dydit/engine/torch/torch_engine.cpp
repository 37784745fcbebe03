// See the header.
#include "dydit/engine/torch/torch_engine.h"

#include <algorithm>

#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/torch.h>

#include "dydit/base/error.h"
#include "dydit/base/row_pool.h"
#include "dydit/base/timer.h"
#include "dydit/engine/torch/cuda.h"
#include "dydit/model/adapters.h"
#include "dydit/model/edit.h"
#include "dydit/model/macs.h"

namespace dydit::aten {
namespace {

// Rows of qkv as files have them, (3, H, D), by heads.
at::Tensor by_head(const at::Tensor& qkv, int64_t H) {
  const int64_t D = qkv.size(0) / (3 * H);
  std::vector<int64_t> shape = {3, H, D}, flat = {H, 3 * D};
  if (qkv.dim() == 2) {
    shape.push_back(qkv.size(1));
    flat.push_back(qkv.size(1));
  }
  return qkv.view(shape).transpose(0, 1).contiguous().view(flat);
}

// Weight (out, in) with the inputs in front, by parts.
at::Tensor by_input(const at::Tensor& weight, int64_t H) {
  return weight.t().contiguous().view({H, weight.size(1) / H, weight.size(0)});
}

BlockWeights taken_out(DiTBlock& block, int64_t H) {
  const auto part = [H](const at::Tensor& rows) {
    std::vector<int64_t> shape = {H, rows.size(0) / H};
    if (rows.dim() == 2) shape.push_back(rows.size(1));
    return rows.contiguous().view(shape);
  };
  BlockWeights weights{.qkv = by_head(block->qkv->weight, H),
                       .qkv_bias = block->qkv->bias.defined() ? by_head(block->qkv->bias, H) : at::Tensor(),
                       .proj = by_input(block->proj->weight, H),
                       .proj_bias = block->proj->bias,
                       .fc1 = part(block->fc1->weight),
                       .fc1_bias = part(block->fc1->bias),
                       .fc2 = by_input(block->fc2->weight, H),
                       .fc2_bias = block->fc2->bias};
  for (Linear& layer :
       {std::ref(block->qkv), std::ref(block->proj), std::ref(block->fc1), std::ref(block->fc2)})
    layer->weight.set_data(at::empty({0}, layer->weight.options()));
  return weights;
}

// The sum of a forecast for each row: (B, T, C) float32.
at::Tensor forecast(std::span<const Row> rows, int64_t T,
                    const std::function<const std::vector<Term>&(const StepPlan&)>& terms_of) {
  std::vector<at::Tensor> values;
  for (const Row& row : rows) {
    at::Tensor value;
    for (const Term& term : terms_of(*row.step)) {
      const at::Tensor part =
          row.history->features[term.slot].narrow(0, 0, T).to(at::kFloat).mul(term.weight);
      value = value.defined() ? value.add_(part) : part;
    }
    values.push_back(value);
  }
  return at::stack(values);
}

// values (B, T, C): what each row's plan keeps in `store_of` it.
void keep(std::span<const Row> rows, const at::Tensor& values,
          const std::function<int(const StepPlan&)>& store_of) {
  for (size_t b = 0; b < rows.size(); ++b) {
    const int store = store_of(*rows[b].step);
    if (store < 0) continue;
    rows[b].history->features[store].narrow(0, 0, values.size(1)).copy_(values[static_cast<int64_t>(b)]);
  }
}

}  // namespace

// Rows whose plans do the same work. A piece that is replayed later knows the workspace's tensors, `B`,
// `level` and `shapes` alone; a plan that keeps features, a trace and a profile are not replayed.
struct TorchEngine::Pass {
  TorchWorkspace* w;
  StepBuffers* buffers;
  int64_t B;
  int level;
  int64_t T;
  std::vector<BlockShape> shapes;
  // Of this forward alone; empty and null in a piece.
  std::span<const Row> rows = {};
  const StepPlan* step = nullptr;
  TokenTrace* trace = nullptr;          // of the rows of `index`
  std::span<const int64_t> index = {};  // (B) each row's number in the forward

  at::Tensor x() const { return buffers->x.narrow(0, 0, B); }
  bool computes(int block, Branch which) const { return step == nullptr || step->computes(block, which); }
};

TorchWorkspace::TorchWorkspace(const TorchEngine& engine, const WorkspaceOptions& options)
    : Workspace(options.threads),
      engine(engine),
      conditioning(engine.model_, engine.device_),
      buffers(engine.config().levels()),
      graphs(make_step_graphs(engine.device_, engine.graphs_)),
      profile(options.profile) {
  for (size_t l = 0; l < engine.weights_.size(); ++l)
    slots.emplace_back(engine.weights_[l], engine.orders_[l]);
  for (int level = 0; level < engine.config().levels(); ++level)
    largest_counts.emplace_back(engine.config().depth, engine.config().num_tokens(level));
}

template <typename Fn>
auto TorchWorkspace::timed(int row, Operator op, const Fn& work) {
  if (profile == nullptr) return work();
  graphs->wait();
  const Timer timer;
  const auto result = work();
  graphs->wait();
  (*profile)[static_cast<size_t>(row)][static_cast<size_t>(op)] += timer.seconds();
  return result;
}

TorchEngine::TorchEngine(const Checkpoint& checkpoint, const EngineOptions& options)
    : Engine(EngineKind::Torch, checkpoint.config, options),
      dtype_(options.dtype),
      graphs_(options.where.graphs),
      model_(make_model(checkpoint, options.dtype)),
      orders_(part_orders(checkpoint)) {
  const c10::InferenceMode guard;
  if (device_.is_cuda()) set_products(options.where.batch_invariant);
  model_->to(device_);
  for (DiTBlock& block : model_->blocks) weights_.push_back(taken_out(block, config_.num_heads));
  if (!device_.is_cuda()) return;
  if (options.where.batch_invariant) check_invariance();
  at::detail::getCUDAHooks().deviceSynchronize(device_.index());  // runs have streams of their own
}

// Of the first block's layers, with all parts and with half of them, and of what is float32 around them.
void TorchEngine::check_invariance() const {
  const int H = config_.num_heads, C = config_.hidden_size, G = config_.group_size();
  const auto check = [&](const char* name, int64_t in, at::ScalarType dtype, const auto& layer) {
    DYDIT_CHECK(rows_are_independent(layer, in, at::TensorOptions().dtype(dtype).device(device_)),
                "device {}: rows of {} depend on how many there are, so an image would depend on its batch; "
                "take --no-batch-invariant",
                device_.str(), name);
  };
  BlockSlots slots(weights_[0], orders_[0]);
  for (const int parts : {H, (H + 1) / 2}) {
    std::vector<uint8_t> on(static_cast<size_t>(H), 0);
    std::fill_n(on.begin(), parts, 1);
    slots.hold_heads(on);
    slots.hold_groups(on);
    check("qkv", C, dtype_,
          [&](const at::Tensor& x) { return linear(x, slots.qkv(parts), slots.qkv_bias(parts)); });
    check("proj", parts * config_.head_size(), dtype_,
          [&](const at::Tensor& x) { return linear(x, slots.proj(parts), slots.proj_bias()); });
    check("fc1", C, dtype_, [&](const at::Tensor& x) {
      return linear_gelu(x, slots.fc1(parts), slots.fc1_bias(parts), config_.gelu);
    });
    check("fc2", parts * G, dtype_,
          [&](const at::Tensor& x) { return linear(x, slots.fc2(parts), slots.fc2_bias()); });
  }
  DiTBlock& block = model_->blocks[0];
  if (config_.token_routers)
    check("the token router", C, at::kFloat, [&](const at::Tensor& x) {
      return block->token_router_out->forward(at::relu(block->token_router_in->forward(x)));
    });
  if (config_.join_source(config_.depth - 1) >= 0)
    check("the long skips", C, at::kFloat,
          [&](const at::Tensor& x) { return model_->blocks[config_.depth - 1]->join(x, x); });
  check("the patch embedding", config_.patch_values(), at::kFloat, [&](const at::Tensor& x) {
    return at::linear(x, model_->patch_weight.flatten(1), model_->patch_bias);
  });
  check("the final layer", C, at::kFloat,
        [&](const at::Tensor& x) { return model_->final_linear->forward(x); });
}

std::unique_ptr<Workspace> TorchEngine::new_workspace(const WorkspaceOptions& options) const {
  const c10::InferenceMode guard;
  DYDIT_USAGE_CHECK(options.largest_inputs.empty(),
                    "largest inputs: the torch engine does not tell them; take the cpu engine");
  return std::make_unique<TorchWorkspace>(*this, options);
}

bool TorchEngine::owns(const Workspace& workspace) const {
  const auto* own = dynamic_cast<const TorchWorkspace*>(&workspace);
  return own != nullptr && &own->engine == this;
}

std::optional<EngineStatistics> TorchEngine::statistics(const Workspace& workspace) const {
  return static_cast<const TorchWorkspace&>(workspace).statistics;
}

void TorchEngine::reserve(StepBuffers& buffers, int level, int64_t rows, TorchWorkspace& w) const {
  if (buffers.rows >= rows) return;
  const int64_t T = config_.sequence(level), C = config_.hidden_size, side = config_.input_size;
  const auto floats = at::TensorOptions().dtype(at::kFloat).device(device_);
  w.graphs->forget();
  buffers = {.rows = rows,
             .in = at::empty({rows, config_.in_channels, side, side}, floats),
             .out = at::empty({rows, config_.out_channels(), side, side}, floats),
             .conditioned = w.conditioning.make(rows),
             .x = at::empty({rows, T, C}, floats),
             .outputs = {},
             .counts = at::zeros({rows, config_.depth}, floats.dtype(at::kInt)),
             .starts = at::arange(rows, floats.dtype(at::kLong)) * T};
  for (int l = 0; l < config_.depth; ++l) {
    const bool joined = config_.join_source(config_.depth - 1 - l) == l;
    buffers.outputs.push_back(joined ? at::empty({rows, T, C}, floats) : at::Tensor());
  }
}

void TorchEngine::compute(const at::Tensor& x, std::span<const Row> rows, Workspace& workspace,
                          const ForwardOutputs& outputs) const {
  const c10::InferenceMode guard;
  auto& w = static_cast<TorchWorkspace&>(workspace);
  const LibTorchThreads threads(w.team().threads());
  w.graphs->within([&] {
    std::vector<std::vector<int64_t>> groups;
    for (size_t b = 0; b < rows.size(); ++b) {
      const auto same = std::find_if(groups.begin(), groups.end(), [&](const std::vector<int64_t>& group) {
        return rows[static_cast<size_t>(group[0])].step->same_work(*rows[b].step);
      });
      if (same == groups.end()) {
        groups.push_back({static_cast<int64_t>(b)});
      } else {
        same->push_back(static_cast<int64_t>(b));
      }
    }
    for (const std::vector<int64_t>& group : groups) {
      std::vector<Row> of_group;
      for (const int64_t b : group) of_group.push_back(rows[static_cast<size_t>(b)]);
      const StepPlan& step = *of_group[0].step;
      Pass pass{.w = &w,
                .buffers = &w.buffers[static_cast<size_t>(step.level)],
                .B = static_cast<int64_t>(group.size()),
                .level = step.level,
                .T = config_.sequence(step.level),
                .shapes = {},
                .rows = of_group,
                .step = &step,
                .trace = outputs.trace,
                .index = group};
      forward_rows(groups.size() == 1 ? x : x.index_select(0, at::tensor(group)), pass, outputs);
    }
  });
}

// Every block's shape; patches above the threshold are looked for as the last forward's counts suggest, from
// block `first_open` on without a limit.
std::vector<BlockShape> TorchEngine::shapes_of(const StepPlan& step, const TorchWorkspace& w,
                                               int first_open) const {
  const int N = config_.num_tokens(step.level);
  const int unit = std::max(1, N / 16), slack = N / 32;
  std::vector<BlockShape> shapes;
  for (int l = 0; l < config_.depth; ++l) {
    const BlockWidth& width = step.blocks[l];
    BlockShape shape{width.active_heads(), width.active_groups(), width.keep_tokens, N,
                     step.routes_at(config_, l)};
    if (step.mode == Mode::Static || !config_.width_routers) shape.heads = shape.groups = config_.num_heads;
    if (shape.routes && shape.keep < 0 && l < first_open) {
      const int wanted = w.largest_counts[static_cast<size_t>(step.level)][static_cast<size_t>(l)] + slack;
      shape.cap = std::min(N, (wanted + unit - 1) / unit * unit);
    }
    shapes.push_back(shape);
  }
  return shapes;
}

void TorchEngine::forward_rows(const at::Tensor& x, Pass& pass, const ForwardOutputs& outputs) const {
  TorchWorkspace& w = *pass.w;
  const StepPlan& step = *pass.step;
  reserve(*pass.buffers, pass.level, pass.B, w);
  pass.buffers->in.narrow(0, 0, pass.B).copy_(to_device(x, device_), /*non_blocking=*/true);
  w.timed(config_.depth, Operator::AdaLN, [&] {
    w.conditioning.fill(pass.rows, pass.buffers->conditioned);
    return true;
  });
  pass.shapes = shapes_of(step, w, config_.depth);
  for (int l = 0; l < config_.depth; ++l) {
    const BlockWidth& width = step.blocks[l];
    if (pass.shapes[l].heads < config_.num_heads && step.computes(l, Branch::Attention))
      w.statistics.slot_bytes_copied += w.slots[l].hold_heads(width.heads);
    if (pass.shapes[l].groups < config_.num_heads && step.computes(l, Branch::Mlp))
      w.statistics.slot_bytes_copied += w.slots[l].hold_groups(width.groups);
  }
  const bool counts_tokens = std::any_of(pass.shapes.begin(), pass.shapes.end(), [](const BlockShape& shape) {
    return shape.routes && shape.keep < 0;
  });
  int64_t executed = 0;
  at::Tensor counts;  // (B, L) on the CPU
  for (int first_open = config_.depth;;) {
    run(pass);
    ++w.statistics.forwards;
    executed += executed_macs(step, pass.shapes);
    if (!counts_tokens) break;
    counts = pass.buffers->counts.narrow(0, 0, pass.B).cpu();
    const at::Tensor largest = std::get<0>(counts.max(0));
    const int* const most = largest.data_ptr<int>();
    first_open = config_.depth;
    for (int l = config_.depth - 1; l >= 0; --l) {
      const BlockShape& shape = pass.shapes[l];
      if (shape.routes && shape.keep < 0 && most[l] > shape.cap) first_open = l;
    }
    if (first_open == config_.depth) {
      for (int l = 0; l < config_.depth; ++l) {
        if (pass.shapes[l].routes) w.largest_counts[pass.level][l] = most[l];
      }
      break;
    }
    // A row's tokens did not fit. What the forward read is still there: again, and without a limit from
    // there.
    ++w.statistics.redone_forwards;
    pass.shapes = shapes_of(step, w, first_open);
  }
  const at::Tensor out = pass.buffers->out.narrow(0, 0, pass.B);
  if (pass.B == outputs.out.size(0)) {
    outputs.out.copy_(out);
  } else {
    outputs.out.index_copy_(0, at::tensor(pass.index), out.cpu());
  }
  int64_t required = 0;
  for (int64_t b = 0; b < pass.B; ++b) {
    if (b == 0 || counts_tokens) {  // else all rows' are the same
      std::vector<int> tokens;
      for (int l = 0; step.routes_tokens(config_) && l < config_.depth; ++l) {
        const BlockShape& shape = pass.shapes[l];
        tokens.push_back(!shape.routes     ? 0
                         : shape.keep >= 0 ? shape.keep
                                           : counts.const_data_ptr<int>()[b * config_.depth + l]);
      }
      required = required_macs(config_, step, tokens);
    }
    Work& work = outputs.work[static_cast<size_t>(pass.index[b])];
    work.required += required;
    work.executed += executed;
  }
}

int64_t TorchEngine::executed_macs(const StepPlan& step, const std::vector<BlockShape>& shapes) const {
  std::vector<int> tokens;
  if (step.routes_tokens(config_)) {
    for (const BlockShape& shape : shapes)
      tokens.push_back(!shape.routes ? 0 : shape.keep >= 0 ? shape.keep : shape.cap);
  }
  return required_macs(config_, step, tokens);
}

// Replayed where a step is known by counts alone, else done as its plan says.
void TorchEngine::run(Pass& pass) const {
  const StepPlan& step = *pass.step;
  const bool keeps = std::any_of(pass.rows.begin(), pass.rows.end(), [](const Row& row) {
    return !row.step->branches.empty() || !row.step->ranges.empty();  // some rows of the same work keep it
  });
  if (pass.trace != nullptr || pass.w->profile != nullptr || keeps) {
    embed(pass);
    std::vector<at::Tensor> before(step.ranges.size());
    at::Tensor x = pass.x();
    // The blocks' ranges: kept, or replaced by what earlier steps kept.
    const auto enter = [&](int l) {
      for (size_t r = 0; r < step.ranges.size(); ++r) {
        const RangePlan& range = step.ranges[r];
        const auto store_of = [r](const StepPlan& of_row) { return of_row.ranges[r].store; };
        if (range.skipped()) continue;
        if (range.to == l) keep(pass.rows, range.absolute ? x : x - before[r], store_of);
        if (range.from == l) before[r] = x.clone();
      }
      const RangePlan* const range = step.skipped_from(l);
      if (range == nullptr) return l;
      const auto r = static_cast<size_t>(range - step.ranges.data());
      const at::Tensor value = forecast(
          pass.rows, pass.T,
          [r](const StepPlan& of_row) -> const std::vector<Term>& { return of_row.ranges[r].terms; });
      range->absolute ? x.copy_(value) : x.add_(value);
      return range->to;
    };
    for (int next, l = 0; (next = enter(l)) < config_.depth; l = next) {
      if (next == l) block(pass, next++);
    }
    finish(pass);
    return;
  }
  Pass piece = pass;  // without what is of this forward alone
  piece.rows = {};
  piece.step = nullptr;
  piece.index = {};
  std::vector<StepPiece> pieces;
  const PieceKey place = {static_cast<int>(pass.B), pass.level};
  const auto add = [&](PieceKey what, std::function<void()> body) {
    what.insert(what.begin(), place.begin(), place.end());
    pieces.push_back({std::move(what), std::move(body)});
  };
  add({-1}, [this, piece] { embed(piece); });
  for (int l = 0; l < config_.depth; ++l) {
    const BlockShape& shape = pass.shapes[l];
    add({l, shape.heads, shape.groups, shape.keep, shape.cap, shape.routes},
        [this, piece, l] { block(piece, l); });
  }
  add({-2}, [this, piece] { finish(piece); });
  pass.w->graphs->run(pieces, static_cast<int>(pass.B));
}

void TorchEngine::embed(const Pass& pass) const {
  const at::Tensor& front = pass.buffers->conditioned.front;
  pass.w->timed(config_.depth, Operator::Embed, [&] {
    return pass.x().copy_(model_->embed(pass.buffers->in.narrow(0, 0, pass.B),
                                        front.defined() ? front.narrow(0, 0, pass.B) : front, pass.level));
  });
}

void TorchEngine::finish(const Pass& pass) const {
  const at::Tensor& ada = pass.buffers->conditioned.final;
  pass.w->timed(config_.depth, Operator::Final, [&] {
    return pass.buffers->out.narrow(0, 0, pass.B)
        .copy_(model_->final_layer(pass.x(), ada.defined() ? ada.narrow(0, 0, pass.B) : ada, pass.level));
  });
}

// Of a block that routes: who takes part; their numbers go to `counts`, the decisions to a trace.
Chosen TorchEngine::choose_tokens(const Pass& pass, int index, const at::Tensor& x) const {
  const BlockShape& shape = pass.shapes[index];
  const at::Tensor logits = model_->blocks[index]->token_logits(x);
  Chosen chosen =
      choose(logits, shape.keep, shape.cap, config_.extras(), pass.buffers->starts.narrow(0, 0, pass.B));
  if (shape.keep < 0)
    pass.buffers->counts.narrow(0, 0, pass.B)
        .select(1, index)
        .copy_(chosen.mask.sum(1, /*keepdim=*/false, at::kInt));
  if (pass.trace == nullptr) return chosen;
  const at::Tensor masks = chosen.mask.to(at::kFloat).cpu(), values = logits.cpu();
  for (int64_t b = 0; b < pass.B; ++b) {
    pass.trace->masks[pass.index[b]][index].narrow(0, 0, masks.size(1)).copy_(masks[b]);
    pass.trace->logits[pass.index[b]][index].narrow(0, 0, masks.size(1)).copy_(values[b]);
  }
  return chosen;
}

// x += gate y of a branch: `compute` gives y of the rows that it is given, which are the chosen ones; or y is
// a forecast. Its plan may keep y, tokens that are off as zeros.
template <typename Fn>
void TorchEngine::branch(const Pass& pass, int index, Branch which, const at::Tensor& gate,
                         const Chosen& chosen, const Fn& compute) const {
  at::Tensor x = pass.x();
  if (!pass.computes(index, which)) {
    pass.w->timed(index, Operator::Reuse, [&] {
      add_gated(x, gate, forecast(pass.rows, pass.T, [&](const StepPlan& of_row) -> const std::vector<Term>& {
                  return of_row.branch(index, which).terms;
                }));
      return x;
    });
    return;
  }
  at::Tensor rows = pass.w->timed(index, Operator::Norm, [&] { return taken(x, chosen); }), y;
  if (rows.size(1) > 0) {
    y = compute(rows);
    if (chosen.on.defined()) y.mul_(chosen.on.unsqueeze(2));
  }
  const auto store_of = [&](const StepPlan& of_row) { return of_row.branch(index, which).store; };
  const bool kept =
      pass.step != nullptr && std::any_of(pass.rows.begin(), pass.rows.end(),
                                          [&](const Row& row) { return store_of(*row.step) >= 0; });
  if (kept) {
    at::Tensor all = y;
    if (chosen.rows.defined()) {
      all = at::zeros(x.sizes(), x.options().dtype(dtype_));
      if (y.defined()) put(all, chosen, y);
    }
    keep(pass.rows, all, store_of);
  }
  if (!y.defined()) return;
  pass.w->timed(index, which == Branch::Attention ? Operator::Proj : Operator::Fc2, [&] {
    add_gated(rows, gate, y);
    if (chosen.rows.defined()) put(x, chosen, rows);
    return x;
  });
}

void TorchEngine::block(const Pass& pass, int index) const {
  DiTBlock& block = model_->blocks[index];
  const BlockConfig& computed = config_.block(index);
  const BlockShape& shape = pass.shapes[index];
  const BlockSlots& slots = pass.w->slots[index];
  at::Tensor x = pass.x();
  const auto timed = [&](Operator op, const auto& work) { return pass.w->timed(index, op, work); };
  if (const int source = config_.join_source(index); source >= 0)
    timed(Operator::Join,
          [&] { return x.copy_(block->join(x, pass.buffers->outputs[source].narrow(0, 0, pass.B))); });

  // Shift, 1 + scale and gate; of plain norms no gate.
  const auto modulation = [&](int which) -> at::Tensor {
    if (config_.modulation == Modulation::AdaLN)
      return pass.buffers->conditioned.blocks.narrow(0, 0, pass.B).select(1, index).narrow(1, which, 1);
    const Affine& norm = which < 3 ? block->norm1 : block->norm2;
    return which % 3 == 2 ? at::Tensor() : (which % 3 == 0 ? norm->bias : norm->weight).view({1, 1, -1});
  };
  const bool whole_block = config_.token_scope == TokenScope::Block;
  Chosen chosen;
  const auto route = [&] { chosen = timed(Operator::Router, [&] { return choose_tokens(pass, index, x); }); };
  if (shape.routes && whole_block) route();
  branch(pass, index, Branch::Attention, modulation(2), chosen, [&](const at::Tensor& rows) {
    const at::Tensor normed = timed(Operator::Norm, [&] {
      return norm_modulate(rows, modulation(0), modulation(1), dtype_, computed.attn_norm_eps);
    });
    const at::Tensor qkv = timed(
        Operator::Qkv, [&] { return linear(normed, slots.qkv(shape.heads), slots.qkv_bias(shape.heads)); });
    const at::Tensor heads = timed(Operator::Attention, [&] {
      return attention(qkv.view({qkv.size(0), qkv.size(1), shape.heads, 3, config_.head_size()}), chosen.on);
    });
    return timed(Operator::Proj, [&] { return linear(heads, slots.proj(shape.heads), slots.proj_bias()); });
  });
  if (shape.routes && !whole_block) route();
  branch(pass, index, Branch::Mlp, modulation(5), chosen, [&](const at::Tensor& rows) {
    const at::Tensor normed = timed(Operator::Norm, [&] {
      return norm_modulate(rows, modulation(3), modulation(4), dtype_, computed.mlp_norm_eps);
    });
    const at::Tensor hidden = timed(Operator::Fc1, [&] {
      return linear_gelu(normed, slots.fc1(shape.groups), slots.fc1_bias(shape.groups), config_.gelu);
    });
    return timed(Operator::Fc2, [&] { return linear(hidden, slots.fc2(shape.groups), slots.fc2_bias()); });
  });
  if (pass.buffers->outputs[index].defined()) pass.buffers->outputs[index].narrow(0, 0, pass.B).copy_(x);
}

}  // namespace dydit::aten

namespace dydit {

std::unique_ptr<Engine> make_torch_engine(const Checkpoint& checkpoint, const EngineOptions& options) {
  const AdapterConfig& adapter = checkpoint.config.adapter;
  DYDIT_USAGE_CHECK(
      adapter.kind != AdapterKind::TdLora,
      "{}: has {}, whose weights are others at every step; the torch engine packs weights once: "
      "take --engine reference",
      checkpoint.path.string(), adapter_text(adapter));
  if (const DeviceOptions& where = options.where; where.device.is_cuda()) {
    const aten::DeviceFacts facts = aten::cuda_facts(where.device.index());
    aten::check_device(facts, where.device, options.dtype);
    aten::check_device_memory(facts, aten::device_bytes(checkpoint, options, where.rows), where.rows);
  }
  if (adapter.kind == AdapterKind::Lora)
    return std::make_unique<aten::TorchEngine>(merge_adapters(checkpoint), options);
  return std::make_unique<aten::TorchEngine>(checkpoint, options);
}

double measure_device_peak_macs(at::Device device, at::ScalarType dtype, double seconds) {
  const c10::InferenceMode guard;
  const int64_t n = device.is_cuda() ? 8192 : 512;
  const auto options = at::TensorOptions().dtype(dtype).device(device);
  const at::Tensor a = at::randn({n, n}, options), b = at::randn({n, n}, options);
  at::Tensor c = at::mm(a, b);
  const auto finish = [&] { c.select(0, 0).sum().item(); };  // waits for the device
  finish();
  const Timer timer;
  int64_t products = 0;
  while (timer.seconds() < seconds) {
    for (int i = 0; i < 8; ++i, ++products) at::mm_out(c, a, b);
    finish();
  }
  return static_cast<double>(products * n * n * n) / timer.seconds();
}

}  // namespace dydit

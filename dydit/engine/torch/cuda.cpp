// CUDA graphs and what the driver says of a GPU: compiled with preset cuda alone.
#include "dydit/engine/torch/cuda.h"

#include <cstdlib>
#include <cuda_runtime_api.h>
#include <list>
#include <map>

#include <ATen/Context.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <fmt/format.h>

#include "dydit/base/error.h"

namespace dydit::aten {
namespace {

constexpr int kWarmUps = 2;

class CudaGraphs final : public StepGraphs {
 public:
  CudaGraphs(at::Device device, GraphMode mode)
      : mode_(mode),
        stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())),
        pool_(at::cuda::graph_pool_handle()) {}

  void within(const std::function<void()>& work) override {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    work();
  }

  void run(const std::vector<StepPiece>& pieces, int rows) override {
    const bool replayed = mode_ == GraphMode::On || (mode_ == GraphMode::Auto && rows <= kGraphRows);
    if (!replayed) {
      for (const StepPiece& piece : pieces) piece.body();
      return;
    }
    StepPiece whole;
    for (const StepPiece& piece : pieces) {
      whole.key.push_back(static_cast<int>(piece.key.size()));
      whole.key.insert(whole.key.end(), piece.key.begin(), piece.key.end());
    }
    const bool known = graphs_.contains(whole.key);
    if (known || whole_ < kStepGraphs) {
      whole_ += !known;
      whole.body = [&pieces] {
        for (const StepPiece& piece : pieces) piece.body();
      };
      return replay(whole);
    }
    for (const StepPiece& piece : pieces) replay(piece);
  }

  void wait() override { stream_.synchronize(); }

  void forget() override {
    stream_.synchronize();
    graphs_.clear();
    used_.clear();
    whole_ = 0;
  }

 private:
  struct Kept {
    std::unique_ptr<at::cuda::CUDAGraph> graph;  // null: not yet
    int uses = 0;
    std::list<PieceKey>::iterator used;
  };

  // A key's first uses run it plainly: libraries make their handles and plans then, which cannot be captured,
  // and a step that nobody repeats is never captured.
  void replay(const StepPiece& piece) {
    auto found = graphs_.find(piece.key);
    if (found == graphs_.end()) {
      if (graphs_.size() >= kPieceGraphs + kStepGraphs) drop_oldest();
      used_.push_front(piece.key);
      found = graphs_.emplace(piece.key, Kept{nullptr, 0, used_.begin()}).first;
    }
    Kept& kept = found->second;
    used_.splice(used_.begin(), used_, kept.used);
    if (kept.uses++ < kWarmUps) return piece.body();
    if (!kept.graph) kept.graph = captured(piece);
    kept.graph->replay();
  }

  std::unique_ptr<at::cuda::CUDAGraph> captured(const StepPiece& piece) {
    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    graph->capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
    try {
      piece.body();
    } catch (...) {
      graph->capture_end();
      throw;
    }
    graph->capture_end();
    return graph;
  }

  void drop_oldest() {
    stream_.synchronize();
    graphs_.erase(used_.back());
    used_.pop_back();
  }

  const GraphMode mode_;
  c10::cuda::CUDAStream stream_;
  at::cuda::MempoolId_t pool_;
  std::map<PieceKey, Kept> graphs_;
  std::list<PieceKey> used_;  // the latest first
  size_t whole_ = 0;          // keys of whole steps
};

}  // namespace

DeviceFacts cuda_facts(int index) {
  DeviceFacts facts{.built = true};
  if (cudaDriverGetVersion(&facts.driver) != cudaSuccess) facts.driver = 0;
  cudaRuntimeGetVersion(&facts.runtime);
  if (facts.driver < facts.runtime || cudaGetDeviceCount(&facts.count) != cudaSuccess) {
    cudaGetLastError();  // which would be told of the next call
    return facts;
  }
  cudaDeviceProp properties{};
  if (index >= facts.count || cudaGetDeviceProperties(&properties, index) != cudaSuccess) return facts;
  facts.name = properties.name;
  facts.capability = properties.major * 10 + properties.minor;
  size_t free = 0, total = 0;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(index));
  if (cudaMemGetInfo(&free, &total) == cudaSuccess) {
    facts.free_bytes = static_cast<int64_t>(free);
    facts.total_bytes = static_cast<int64_t>(total);
  }
  return facts;
}

std::unique_ptr<StepGraphs> make_cuda_graphs(at::Device device, GraphMode mode) {
  return std::make_unique<CudaGraphs>(device, mode);
}

void forbid_divided_products(bool on) {
  if (!on) return;
  // Read once, by the first product; a person's own settings stay.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8", /*overwrite=*/0);
  setenv("CUBLASLT_WORKSPACE_SIZE", "1", /*overwrite=*/0);
  at::Context& context = at::globalContext();
  context.setBlasPreferredBackend(at::BlasBackend::Cublaslt);
  context.setAllowBF16ReductionCuBLAS(/*allow_reduced_precision=*/false, /*allow_splitk=*/false);
  context.setAllowTF32CuBLAS(false);
  context.setAllowTF32CuDNN(false);
}

}  // namespace dydit::aten

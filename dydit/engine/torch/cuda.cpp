// CUDA graphs and what the driver says of a GPU: compiled with preset cuda alone.
#include "dydit/engine/torch/cuda.h"

#include <cstdlib>
#include <cuda_runtime_api.h>
#include <list>
#include <map>
#include <mutex>
#include <vector>

#include <ATen/Context.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <fmt/format.h>

#include "dydit/base/error.h"

namespace dydit::aten {
namespace {

// Streams that no workspace has: the allocator gives memory back to the stream that it was taken on alone, so
// the next workspace takes over its predecessor's.
class Streams {
 public:
  c10::cuda::CUDAStream take(c10::DeviceIndex device) {
    const std::lock_guard lock(mutex_);
    auto& free = free_[device];
    if (free.empty()) return c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device);
    const c10::cuda::CUDAStream stream = free.back();
    free.pop_back();
    return stream;
  }
  void give(const c10::cuda::CUDAStream& stream) {
    const std::lock_guard lock(mutex_);
    free_[stream.device_index()].push_back(stream);
  }

 private:
  std::mutex mutex_;
  std::map<c10::DeviceIndex, std::vector<c10::cuda::CUDAStream>> free_;
};
Streams& streams() {
  static Streams all;
  return all;
}

class CudaGraphs final : public StepGraphs {
 public:
  CudaGraphs(at::Device device, GraphMode mode) : mode_(mode), stream_(streams().take(device.index())) {}
  ~CudaGraphs() override {
    graphs_.clear();
    streams().give(stream_);
  }

  void within(const std::function<void()>& work) override {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    work();
  }

  void run(const std::vector<StepPiece>& pieces, int rows) override {
    const bool replayed =
        !plain_ && (mode_ == GraphMode::On || (mode_ == GraphMode::Auto && rows <= kGraphRows));
    if (!replayed) {
      for (const StepPiece& piece : pieces) piece.body();
      return;
    }
    StepPiece whole;
    for (const StepPiece& piece : pieces) {
      whole.key.push_back(static_cast<int>(piece.key.size()));
      whole.key.insert(whole.key.end(), piece.key.begin(), piece.key.end());
    }
    whole.body = [&pieces] {
      for (const StepPiece& piece : pieces) piece.body();
    };
    if (graphs_.contains(whole.key) || whole_ < kStepGraphs) return replay(whole, /*is_whole=*/true);
    for (const StepPiece& piece : pieces) replay(piece, /*is_whole=*/false);
  }

  void wait() override { stream_.synchronize(); }

  void forget() override {
    stream_.synchronize();
    graphs_.clear();
    used_.clear();
    whole_ = captured_ = 0;
  }

 private:
  struct Kept {
    std::unique_ptr<at::cuda::CUDAGraph> graph;  // null: not yet
    bool is_whole = false;
    int uses = 0;
    std::list<PieceKey>::iterator used;
  };

  // A key's first uses run it plainly: libraries make their handles and plans then, which cannot be captured,
  // and a step that nobody repeats is never captured.
  void replay(const StepPiece& piece, bool is_whole) {
    auto found = graphs_.find(piece.key);
    if (found == graphs_.end()) {
      if (graphs_.size() >= kPieceGraphs + kStepGraphs) drop_oldest();
      used_.push_front(piece.key);
      found = graphs_.emplace(piece.key, Kept{nullptr, is_whole, 0, used_.begin()}).first;
      whole_ += is_whole;
    }
    Kept& kept = found->second;
    used_.splice(used_.begin(), used_, kept.used);
    if (kept.uses++ < kGraphWarmUps || plain_) return piece.body();
    if (!kept.graph) kept.graph = captured(piece);
    if (!kept.graph) return piece.body();
    kept.graph->replay();
  }

  // Null where that failed, for want of memory mostly; nothing is replayed from then on.
  std::unique_ptr<at::cuda::CUDAGraph> captured(const StepPiece& piece) {
    // A pool that no graph holds any more cannot be captured into again.
    if (captured_ == 0) pool_ = at::cuda::graph_pool_handle();
    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    try {
      graph->capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
      piece.body();
      graph->capture_end();
      ++captured_;
      return graph;
    } catch (const c10::Error&) {
      end_capture(*graph);
      plain_ = true;
      return nullptr;
    } catch (...) {
      end_capture(*graph);
      plain_ = true;
      throw;
    }
  }

  // After a failure: the allocator must not take further memory for a graph that there is not.
  void end_capture(at::cuda::CUDAGraph& graph) {
    try {
      graph.capture_end();
    } catch (const c10::Error&) {
      cudaGetLastError();  // which would be told of the next call
      try {
        c10::cuda::CUDACachingAllocator::endAllocateToPool(stream_.device_index(), pool_);
      } catch (const c10::Error&) {  // it had ended
      }
    }
  }

  void drop_oldest() {
    const auto oldest = graphs_.find(used_.back());
    if (oldest->second.graph) {
      stream_.synchronize();
      --captured_;
    }
    whole_ -= oldest->second.is_whole;
    graphs_.erase(oldest);
    used_.pop_back();
  }

  const GraphMode mode_;
  c10::cuda::CUDAStream stream_;
  at::cuda::MempoolId_t pool_{};
  std::map<PieceKey, Kept> graphs_;
  std::list<PieceKey> used_;  // the latest first
  size_t whole_ = 0;          // keys of whole steps
  size_t captured_ = 0;       // graphs that there are
  bool plain_ = false;
};

struct Unheard final : c10::WarningHandler {
  void process(const c10::Warning& /*warning*/) override {}
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
  // What LibTorch keeps for later is free.
  if (c10::cuda::CUDACachingAllocator::get()->initialized()) c10::cuda::CUDACachingAllocator::emptyCache();
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

void set_products(bool one_order) {
  at::Context& context = at::globalContext();
  context.setAllowTF32CuBLAS(false);
  context.setAllowTF32CuDNN(false);
  if (!one_order) return;
  // Read once, by the first product; a person's own settings stay.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8", /*overwrite=*/0);
  setenv("CUBLASLT_WORKSPACE_SIZE", "1", /*overwrite=*/0);
  Unheard handler;  // of the warning that the next call is experimental
  const c10::WarningUtils::WarningHandlerGuard guard(&handler);
  context.setBlasPreferredBackend(at::BlasBackend::Cublaslt);
  context.setAllowBF16ReductionCuBLAS(/*allow_reduced_precision=*/false, /*allow_splitk=*/false);
}

}  // namespace dydit::aten

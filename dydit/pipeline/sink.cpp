// See the header.
#include "dydit/pipeline/sink.h"

#include <map>

#include <ATen/ops/empty.h>
#include <ATen/ops/nan_to_num.h>
#include <fmt/format.h>

#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/npz.h"
#include "dydit/io/safetensors.h"
#include "dydit/pipeline/cost_map.h"
#include "dydit/pipeline/pixels.h"
#include "dydit/pipeline/record.h"

namespace dydit {
namespace {

using nlohmann::json;

// The record of a run with its images', as one line.
std::string whole_record(const SinkRun& run, const json& records) {
  json record = run.record;
  record["images"] = records;
  return json_text(record);
}

class PngSink : public Sink {
 public:
  PngSink(const SinkRun& run, const PngName& name) : run_(run), name_(name) {}

  void add(const GeneratedSample& sample, const json& record) override {
    Image image = to_image(sample.pixels);
    if (one_by_one()) {
      write(file_of(sample.index), {std::move(image)}, run_.record, json::array({record}));
    } else {
      images_.push_back(std::move(image));
    }
  }
  void add_preview(const Preview& preview, const json& records) override {
    json run = run_.record;
    run["preview_step"] = preview.step;
    PreviewGrid& grid = previews_[preview.step];
    const bool is_new = grid.images.empty();
    const at::Tensor x0 = at::nan_to_num(preview.x0);  // a broken run ends with an error of its own
    for (size_t i = 0; i < records.size(); ++i) {
      grid.images.push_back(to_image(x0[static_cast<int64_t>(i)]));
      grid.records.push_back(records[i]);
      if (!one_by_one()) continue;
      write(name_.of_preview(preview.index(static_cast<int>(i)), preview.step), grid.images, run,
            grid.records);
      grid = {};
    }
    if (!one_by_one()) write(name_.of_preview(0, preview.step), grid.images, run, grid.records, is_new);
  }
  void finish(const json& records) override {
    if (!one_by_one()) write(file_of(0), images_, run_.record, records);
  }
  std::string file_of(int index) const override { return name_.of(index); }

 private:
  struct PreviewGrid {
    std::vector<Image> images;
    json records = json::array();
  };

  bool one_by_one() const { return name_.digits > 0; }
  void write(const std::string& path, const std::vector<Image>& images, const json& run, const json& records,
             bool is_new = true) {
    write_png(path, make_grid(images, kGridColumns), png_text(run, records));
    if (is_new) files_.push_back(path);
  }

  const SinkRun& run_;
  PngName name_;
  std::vector<Image> images_;            // of the one PNG
  std::map<int, PreviewGrid> previews_;  // by step
};

class CostMapSink : public Sink {
 public:
  CostMapSink(const SinkRun& run, const std::string& path) : run_(run), path_(path) {}

  void add(const GeneratedSample& sample, const json& record) override {
    shares_.push_back(sample.token_share);
    if (run_.pixels.channels > 0) images_.push_back(to_image(sample.pixels));
  }
  void finish(const json& records) override {
    const ShareRange range = share_range(shares_);
    json run = run_.record;
    run["cost_map"] = {
        {"shows", "share of steps, blocks and guidance halves in which a token entered the MLP"},
        {"min", range.min},
        {"max", range.max}};
    write_png(path_, draw_cost_map(images_, shares_, range, map_side(run_), kGridColumns),
              png_text(run, records));
    files_.push_back(path_);
  }

 private:
  const SinkRun& run_;
  std::string path_;
  std::vector<Image> images_;  // beside their maps; none when the model makes latents
  std::vector<at::Tensor> shares_;
};

class NpzSink : public Sink {
 public:
  NpzSink(const SinkRun& run, const std::string& path)
      : run_(run), path_(path), npz_(path, run.pixels.height, run.pixels.width, run.pixels.channels) {}

  void add(const GeneratedSample& sample, const json& record) override {
    npz_.append(to_image(sample.pixels));
  }
  void finish(const json& records) override {
    npz_.commit();
    files_.push_back(path_);
    write_output_file(path_ + ".json", whole_record(run_, records) + "\n");
    files_.push_back(path_ + ".json");
  }

 private:
  const SinkRun& run_;
  std::string path_;
  NpzImageWriter npz_;
};

class LatentsSink : public Sink {
 public:
  LatentsSink(const SinkRun& run, const std::string& path) : run_(run), path_(path) {}

  void add(const GeneratedSample& sample, const json& record) override {
    const at::Tensor& x = sample.sample;
    if (!latents_.defined())
      latents_ = at::empty({run_.num_images, x.size(0), x.size(1), x.size(2)}, at::kFloat);
    latents_[static_cast<int64_t>(labels_.size())].copy_(x);
    labels_.push_back(sample.label);
  }
  void finish(const json& records) override {
    const auto count = static_cast<int64_t>(labels_.size());
    const TensorView labels{Dtype::I64, {count}, {}, reinterpret_cast<const std::byte*>(labels_.data())};
    write_safetensors(path_, {{"latents", to_view(latents_.narrow(0, 0, count))}, {"labels", labels}},
                      {{kRecordKey, whole_record(run_, records)}});
    files_.push_back(path_);
  }

 private:
  const SinkRun& run_;
  std::string path_;
  at::Tensor latents_;  // (num_images, in_channels, side, side), the first labels_.size() of them made
  std::vector<int64_t> labels_;
};

}  // namespace

std::string PngName::of(int index) const {
  return digits > 0 ? fmt::format("{}{:0{}}{}", before, index, digits, after) : before + after;
}

std::string PngName::of_preview(int index, int step) const {
  const std::string path = of(index), extension = path.ends_with(".png") ? ".png" : "";
  return fmt::format("{}_step{:04}{}", path.substr(0, path.size() - extension.size()), step, extension);
}

std::unique_ptr<Sink> make_png_sink(const SinkRun& run, const PngName& name) {
  return std::make_unique<PngSink>(run, name);
}
std::unique_ptr<Sink> make_cost_map_sink(const SinkRun& run, const std::string& path) {
  return std::make_unique<CostMapSink>(run, path);
}
std::unique_ptr<Sink> make_npz_sink(const SinkRun& run, const std::string& path) {
  return std::make_unique<NpzSink>(run, path);
}
std::unique_ptr<Sink> make_latents_sink(const SinkRun& run, const std::string& path) {
  return std::make_unique<LatentsSink>(run, path);
}

}  // namespace dydit

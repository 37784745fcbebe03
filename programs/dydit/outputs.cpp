// Targets are probed first, written beside and renamed.
#include "outputs.h"

#include <fstream>

#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/stack.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/io/json.h"
#include "dydit/io/safetensors.h"
#include "dydit/pipeline/cost_map.h"
#include "dydit/pipeline/pixels.h"
#include "dydit/pipeline/record.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr int kGridColumns = 4;  // as torchvision's make_grid in DiT's scripts

void make_folder(const fs::path& folder) {
  if (folder.empty()) return;
  std::error_code error;
  fs::create_directories(folder, error);
  DYDIT_CHECK(!error || fs::is_directory(folder), "{}: cannot make this folder: {}", folder.string(),
              error.message());
}

// Fails now rather than after sampling.
void check_writable(const std::string& path) {
  make_folder(fs::path(path).parent_path());
  OutputFile probe(path);  // removed again: never committed
}

// Where a pattern's number goes: %d, or %0Nd padded to N digits.
struct NumberPlace {
  size_t begin = std::string::npos, end = 0;
  int width = 1;
};

// The first place at or after `from`; begin is npos when there is none.
NumberPlace find_number_place(const std::string& pattern, size_t from = 0) {
  for (size_t i = pattern.find('%', from); i != std::string::npos; i = pattern.find('%', i + 1)) {
    if (pattern.compare(i, 2, "%d") == 0) return {i, i + 2, 1};
    if (i + 3 < pattern.size() && pattern[i + 1] == '0' && pattern[i + 2] >= '1' && pattern[i + 2] <= '9' &&
        pattern[i + 3] == 'd') {
      return {i, i + 4, pattern[i + 2] - '0'};
    }
  }
  return {};
}

// RGB or gray; else latents.
bool makes_pixels(const DiTConfig& config) { return config.in_channels == 3 || config.in_channels == 1; }

bool names_folder(const std::string& out) { return out.ends_with('/') || fs::is_directory(out); }

}  // namespace

Outputs::Outputs(const OutputOptions& options, const Checkpoint& checkpoint, const GenerateOptions& run)
    : checkpoint_(checkpoint),
      run_(run_record(checkpoint, run)),
      options_(run),
      out_(options.out),
      npz_path_(options.npz),
      latents_path_(options.latents),
      cost_map_path_(options.cost_map) {
  const DiTConfig& config = checkpoint.config;
  const bool pixels = makes_pixels(config);
  DYDIT_USAGE_CHECK(pixels || (out_.empty() && npz_path_.empty()),
                    "{} makes latents of {} channels, not pixels: write them with --latents FILE.safetensors "
                    "instead of {}",
                    checkpoint.path.string(), config.in_channels, out_.empty() ? "--npz" : "--out");
  DYDIT_USAGE_CHECK(pixels || !latents_path_.empty() || !cost_map_path_.empty(),
                    "{} makes latents of {} channels, not pixels: say where with --latents FILE.safetensors",
                    checkpoint.path.string(), config.in_channels);
  if (pixels && out_.empty() && npz_path_.empty() && latents_path_.empty()) out_ = "samples.png";
  DYDIT_USAGE_CHECK(run.preview_every == 0 || pixels,
                    "--preview-every {}: {} makes latents of {} channels, not pixels", run.preview_every,
                    checkpoint.path.string(), config.in_channels);
  DYDIT_USAGE_CHECK(run.preview_every == 0 || !out_.empty(),
                    "--preview-every {}: previews are written beside the PNG of --out; say where",
                    run.preview_every);
  if (!out_.empty()) {
    if (names_folder(out_)) out_ = (fs::path(out_) / "%06d.png").string();
    const NumberPlace place = find_number_place(out_);
    numbered_ = place.begin != std::string::npos;
    const bool single = !numbered_
                            ? out_.find('%') == std::string::npos
                            : out_.find('%') == place.begin && out_.find('%', place.end) == std::string::npos;
    DYDIT_USAGE_CHECK(single, "--out {}: expected one %d (or %03d) in a pattern", options.out);
    DYDIT_USAGE_CHECK(out_.ends_with(".png") || fs::path(out_).extension().empty(),
                      "--out {}: expected a name that ends in .png (--npz and --latents write other formats)",
                      options.out);
    check_writable(png_path(0));
  }
  if (!cost_map_path_.empty()) {
    DYDIT_USAGE_CHECK(cost_map_path_.ends_with(".png"), "--cost-map {}: expected a name that ends in .png",
                      cost_map_path_);
    DYDIT_USAGE_CHECK(numbered_ || cost_map_path_ != out_, "--cost-map {}: --out writes that file",
                      cost_map_path_);
    check_writable(cost_map_path_);
  }
  if (!latents_path_.empty()) check_writable(latents_path_);
  if (!npz_path_.empty()) {
    make_folder(fs::path(npz_path_).parent_path());
    npz_.emplace(npz_path_, config.input_size, config.input_size, config.in_channels);
  }
}

std::string Outputs::png_path(int index) const {
  if (!numbered_) return out_;
  const NumberPlace place = find_number_place(out_);
  return out_.substr(0, place.begin) + fmt::format("{:0{}}", index, place.width) + out_.substr(place.end);
}

nlohmann::json Outputs::add(const GeneratedSample& sample) {
  nlohmann::json record = image_record(checkpoint_, options_, sample);
  records_.push_back(record);
  if (!out_.empty() || npz_) {
    Image image = to_image(sample.sample);
    if (npz_) npz_->append(image);
    if (numbered_) {
      const std::string path = png_path(sample.index);
      write_png(path, image, png_text(run_, nlohmann::json::array({record})));
      record["file"] = path;
      files_.push_back(path);
    } else if (!out_.empty()) {
      record["file"] = out_;
      grid_.push_back(std::move(image));
    }
  }
  if (!latents_path_.empty()) latents_.push_back(sample.sample);
  if (!cost_map_path_.empty()) {
    shares_.push_back(sample.token_share);
    if (makes_pixels(checkpoint_.config)) map_images_.push_back(to_image(sample.sample));
  }
  return record;
}

std::string Outputs::preview_path(const std::string& path, int step) const {
  const std::string extension = path.ends_with(".png") ? ".png" : "";
  return fmt::format("{}_step{:04}{}", path.substr(0, path.size() - extension.size()), step, extension);
}

void Outputs::add_preview(const Preview& preview) {
  nlohmann::json run = run_;
  run["preview_step"] = preview.step;
  PreviewGrid& grid = preview_grids_[preview.step];
  const at::Tensor x0 = at::nan_to_num(preview.x0);  // a broken run ends with an error of its own
  for (int i = 0; i < static_cast<int>(x0.size(0)); ++i) {
    const int index = preview.first + i, label = options_.label(index);
    const nlohmann::json record = {
        {"index", index},
        {"class", label},
        {"class_name", checkpoint_.class_names.empty() ? "" : checkpoint_.class_names[label]}};
    if (numbered_) {
      files_.push_back(preview_path(png_path(index), preview.step));
      write_png(files_.back(), to_image(x0[i]), png_text(run, nlohmann::json::array({record})));
    } else {
      grid.images.push_back(to_image(x0[i]));
      grid.records.push_back(record);
    }
  }
  if (numbered_) return;
  const std::string path = preview_path(out_, preview.step);
  write_png(path, grid.images.size() == 1 ? grid.images[0] : make_grid(grid.images, kGridColumns),
            png_text(run, grid.records));
  if (preview.first == 0) files_.push_back(path);
}

void Outputs::write_cost_map() {
  const ShareRange range = share_range(shares_);
  nlohmann::json run = run_;
  run["cost_map"] = {{"shows", "share of steps, blocks and guidance halves in which a token entered the MLP"},
                     {"min", range.min},
                     {"max", range.max}};
  write_png(cost_map_path_,
            draw_cost_map(map_images_, shares_, range, checkpoint_.config.input_size, kGridColumns),
            png_text(run, records_));
  files_.push_back(cost_map_path_);
}

std::vector<std::string> Outputs::finish() {
  if (records_.empty()) return files_;
  if (!grid_.empty()) {
    write_png(out_, grid_.size() == 1 ? grid_[0] : make_grid(grid_, kGridColumns), png_text(run_, records_));
    files_.push_back(out_);
  }
  if (!shares_.empty()) write_cost_map();
  if (npz_) {
    npz_->commit();
    files_.push_back(npz_path_);
    // An npz has no room for parameters: the ADM evaluator expects arr_0 alone.
    nlohmann::json record = run_;
    record["images"] = records_;
    OutputFile sidecar(npz_path_ + ".json");
    sidecar.write(json_text(record) + "\n");
    sidecar.commit();
    files_.push_back(npz_path_ + ".json");
  }
  if (!latents_path_.empty()) {
    const at::Tensor latents = at::stack(latents_).contiguous();
    std::vector<int64_t> labels;
    for (const auto& record : records_) labels.push_back(record["class"].get<int64_t>());
    const TensorView label_view{Dtype::I64,
                                {static_cast<int64_t>(labels.size())},
                                {},
                                reinterpret_cast<const std::byte*>(labels.data())};
    nlohmann::json record = run_;
    record["images"] = records_;
    write_safetensors(latents_path_, {{"latents", to_view(latents)}, {"labels", label_view}},
                      {{kRecordKey, json_text(record)}});
    files_.push_back(latents_path_);
  }
  return files_;
}

}  // namespace dydit

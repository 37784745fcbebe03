// Targets are probed first, written beside and renamed.
#include "outputs.h"

#include <algorithm>
#include <charconv>
#include <exception>

#include <ATen/ops/empty.h>
#include <ATen/ops/nan_to_num.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/io/json.h"
#include "dydit/io/safetensors.h"
#include "dydit/pipeline/cost_map.h"
#include "dydit/pipeline/pixels.h"
#include "dydit/pipeline/record.h"
#include "targets.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr int kGridColumns = 4;  // as torchvision's make_grid in DiT's scripts

// Of an image's name: what stands before and after its number, if it has one; %% is a percent sign.
struct NamePattern {
  std::string before, after;
  int width = 0;  // digits at least; 0: no number
};

NamePattern parse_pattern(const std::string& name, const std::string& out) {
  NamePattern pattern;
  for (size_t i = 0; i < name.size(); ++i) {
    std::string& part = pattern.width == 0 ? pattern.before : pattern.after;
    const std::string_view rest = std::string_view(name).substr(i);
    const bool padded =
        rest.size() >= 4 && rest[1] == '0' && rest[2] >= '1' && rest[2] <= '9' && rest[3] == 'd';
    if (rest[0] != '%') {
      part += rest[0];
    } else if (rest.starts_with("%%")) {
      part += '%';
      ++i;
    } else {
      DYDIT_USAGE_CHECK(pattern.width == 0 && (rest.starts_with("%d") || padded),
                        "--out {}: expected one %d (or %03d) in a pattern, and %% for a percent sign", out);
      pattern.width = padded ? rest[2] - '0' : 1;
      i += padded ? 3 : 1;
    }
  }
  return pattern;
}

// RGB or gray; else latents.
bool makes_pixels(const DiTConfig& config) { return config.in_channels == 3 || config.in_channels == 1; }

// What is kept until the end fits, or is refused now: a record of each image always, its pixels for a grid,
// for previews' grids and for a cost map, its floats for --latents.
void check_kept(const DiTConfig& config, const GenerateOptions& run, const OutputOptions& options,
                bool grid) {
  constexpr double kRecords = 1000;  // of an image, at least, in both places
  const double pixels = static_cast<double>(config.in_channels) * config.input_size * config.input_size;
  double bytes = kRecords;
  if (grid) bytes += 2 * pixels;
  if (grid && run.preview_every > 0) bytes += pixels * ((run.total_steps() - 1) / run.preview_every);
  if (!options.latents.empty()) bytes += pixels * sizeof(float);
  if (!options.cost_map.empty())
    bytes += config.num_tokens() * sizeof(float) + 3.0 * kMinMapSide * kMinMapSide;
  check_memory(run.num_images * bytes, fmt::format("{} images kept until the last is made", run.num_images),
               grid ? "make fewer in a run, or write each to a file of its own: --out folder/"
                    : "make fewer in a run");
}

bool names_folder(const std::string& out) { return out.ends_with('/') || fs::is_directory(out); }

// Where a target lies, however it is spelt and through links.
fs::path place_of(const std::string& path) {
  std::error_code error;
  const fs::path place = fs::weakly_canonical(fs::absolute(path), error);
  return error ? fs::absolute(path).lexically_normal() : place;
}

}  // namespace

Outputs::Outputs(const Cli& cli, const OutputOptions& options, const Checkpoint& checkpoint,
                 const GenerateOptions& run, const nlohmann::json& record,
                 const std::vector<fs::path>& inputs)
    : checkpoint_(checkpoint),
      run_(record),
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
  if (!out_.empty()) choose_out(options);
  check_kept(config, run, options, !out_.empty() && !numbered_);
  if (!cost_map_path_.empty()) {
    DYDIT_USAGE_CHECK(cost_map_path_.ends_with(".png"), "--cost-map {}: expected a name that ends in .png",
                      cost_map_path_);
    const int side = config.input_size * ((kMinMapSide + config.input_size - 1) / config.input_size);
    check_grid(pixels ? 2 * side + kGridPadding : side, side, "--cost-map " + cost_map_path_, "leave it out");
  }
  DYDIT_USAGE_CHECK(
      !own_descriptor(npz_path_) && !fs::is_fifo(npz_path_),
      "--npz {}: its header is filled in at the end, which a stream does not allow; name a file", npz_path_);
  check_targets(cli, targets(), inputs);
  if (!npz_path_.empty()) npz_.emplace(npz_path_, config.input_size, config.input_size, config.in_channels);
}

// All that will be written; of numbered images the first.
std::vector<Target> Outputs::targets() const {
  std::vector<Target> result;
  if (!out_.empty()) result.push_back({"--out", png_path(0)});
  for (int step = options_.preview_every; step > 0 && step < options_.total_steps();
       step += options_.preview_every)
    result.push_back({"--preview-every", preview_path(png_path(0), step)});
  for (const Target& target :
       {Target{"--cost-map", cost_map_path_}, Target{"--latents", latents_path_}, Target{"--npz", npz_path_},
        Target{"--npz", npz_path_.empty() ? "" : npz_path_ + ".json"}}) {
    DYDIT_USAGE_CHECK(target.path.empty() || !numbered_ || !is_numbered_target(place_of(target.path)),
                      "{} {}: --out writes that file; name another", target.flag, target.path);
    result.push_back(target);
  }
  return result;
}

void Outputs::choose_out(const OutputOptions& options) {
  const int side = checkpoint_.config.input_size;
  const fs::path given = names_folder(out_) ? fs::path(out_) / "%06d.png" : fs::path(out_);
  const NamePattern pattern = parse_pattern(given.filename().string(), options.out);
  numbered_ = pattern.width > 0;
  number_width_ = pattern.width;
  before_number_ = (given.parent_path() / pattern.before).string();
  after_number_ = pattern.after;
  out_ = before_number_ + after_number_;  // the one file, where there is no number
  const fs::path shown = png_path(0);
  DYDIT_USAGE_CHECK(shown.extension() == ".png" || shown.extension().empty(),
                    "--out {}: expected a name that ends in .png (--npz and --latents write other formats)",
                    options.out);
  if (!numbered_)
    check_grid(side, side, "--out " + out_, "write them into a folder (a name that ends in /) or --npz");
  DYDIT_USAGE_CHECK(options_.preview_every == 0 || !own_descriptor(out_),
                    "--preview-every {}: previews are written beside the PNG of --out, and {} is a stream",
                    options_.preview_every, out_);
}

// A grid is held in memory as a whole, and what is written must be read again.
void Outputs::check_grid(int cell_width, int cell_height, const std::string& flag,
                         const std::string& way_out) const {
  constexpr size_t kRecordBytes = 400;  // of an image, beside its class's name
  size_t longest_name = 0;
  for (const std::string& name : checkpoint_.class_names) longest_name = std::max(longest_name, name.size());
  const int64_t images = options_.num_images, rows = (images + kGridColumns - 1) / kGridColumns;
  const int64_t columns = std::min<int64_t>(images, kGridColumns);
  const int64_t width = columns * (cell_width + kGridPadding) + kGridPadding;
  const int64_t height = rows * (cell_height + kGridPadding) + kGridPadding;
  const auto text_bytes = static_cast<size_t>(images) * (kRecordBytes + 4 * longest_name);
  DYDIT_USAGE_CHECK(
      images == 1 || (width <= kMaxPngSide && height <= kMaxPngSide && text_bytes <= kMaxPngTextBytes),
      "{}: a grid of {} images has {}x{} pixels and a record of up to {:.0f} MB; at most {} pixels a "
      "side and {} MB can be read again. Take fewer images or {}",
      flag, images, width, height, static_cast<double>(text_bytes) / 1e6, kMaxPngSide,
      kMaxPngTextBytes / 1'000'000, way_out);
}

// One of the files of a pattern, or a preview of one.
bool Outputs::is_numbered_target(const fs::path& place) const {
  const fs::path folder = place_of(png_path(0)).parent_path();
  std::string name = place.filename().string();
  if (place.parent_path() != folder) return false;
  if (const size_t mark = name.rfind("_step"); options_.preview_every > 0 && mark != name.npos)
    name = name.substr(0, mark) + fs::path(png_path(0)).extension().string();
  const std::string before =
      fs::path(before_number_ + "0").filename().string();  // the 0: before may be empty
  const size_t begin = before.size() - 1;
  if (name.compare(0, begin, before, 0, begin) != 0 || name.size() < begin + after_number_.size())
    return false;
  const std::string digits = name.substr(begin, name.size() - begin - after_number_.size());
  int index = -1;
  std::from_chars(digits.data(), digits.data() + digits.size(), index);
  return index >= 0 && index < options_.num_images && place_of(png_path(index)).filename() == name;
}

std::string Outputs::png_path(int index) const {
  return numbered_ ? fmt::format("{}{:0{}}{}", before_number_, index, number_width_, after_number_) : out_;
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
  if (!latents_path_.empty()) {
    if (!latents_.defined()) {
      const at::Tensor& x = sample.sample;
      latents_ = at::empty({options_.num_images, x.size(0), x.size(1), x.size(2)}, at::kFloat);
    }
    latents_[static_cast<int64_t>(records_.size()) - 1].copy_(sample.sample);
  }
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
        {"index", index}, {"class", label}, {"class_name", class_name_of(checkpoint_, label)}};
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

void Outputs::write_grid() {
  write_png(out_, grid_.size() == 1 ? grid_[0] : make_grid(grid_, kGridColumns), png_text(run_, records_));
  files_.push_back(out_);
}

void Outputs::write_npz() {
  npz_->commit();
  files_.push_back(npz_path_);
  // An npz has no room for parameters: the ADM evaluator expects arr_0 alone.
  nlohmann::json record = run_;
  record["images"] = records_;
  write_output_file(npz_path_ + ".json", json_text(record) + "\n");
  files_.push_back(npz_path_ + ".json");
}

void Outputs::write_latents() {
  const at::Tensor latents = latents_.narrow(0, 0, static_cast<int64_t>(records_.size()));
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

void Outputs::finish() {
  if (records_.empty()) return;
  std::exception_ptr failure;
  const auto attempt = [&](bool wanted, void (Outputs::*write)()) {
    try {
      if (wanted) (this->*write)();
    } catch (const Error&) {
      if (!failure) failure = std::current_exception();
    }
  };
  attempt(!grid_.empty(), &Outputs::write_grid);
  attempt(!shares_.empty(), &Outputs::write_cost_map);
  attempt(npz_.has_value(), &Outputs::write_npz);
  attempt(!latents_path_.empty(), &Outputs::write_latents);
  if (failure) std::rethrow_exception(failure);
}

}  // namespace dydit

// See the header.
#include "outputs.h"

#include <algorithm>
#include <charconv>
#include <exception>

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/io/file.h"
#include "dydit/io/png.h"
#include "dydit/pipeline/cost_map.h"
#include "dydit/pipeline/record.h"
#include "targets.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

// Of a file's name; %% is a percent sign.
PngName parse_pattern(const std::string& name, const std::string& out) {
  PngName pattern;
  for (size_t i = 0; i < name.size(); ++i) {
    std::string& part = pattern.digits == 0 ? pattern.before : pattern.after;
    const std::string_view rest = std::string_view(name).substr(i);
    const bool padded =
        rest.size() >= 4 && rest[1] == '0' && rest[2] >= '1' && rest[2] <= '9' && rest[3] == 'd';
    if (rest[0] != '%') {
      part += rest[0];
    } else if (rest.starts_with("%%")) {
      part += '%';
      ++i;
    } else {
      DYDIT_USAGE_CHECK(pattern.digits == 0 && (rest.starts_with("%d") || padded),
                        "--out {}: expected one %d (or %03d) in a pattern, and %% for a percent sign", out);
      pattern.digits = padded ? rest[2] - '0' : 1;
      i += padded ? 3 : 1;
    }
  }
  return pattern;
}

// What is kept until the end fits, or is refused now: a record of each image always, its pixels for a grid,
// for previews' grids and for a cost map, its floats for --latents.
void check_kept(const OutputRun& run, const OutputOptions& options, bool grid) {
  constexpr double kRecords = 1000;  // of an image, at least, in both places
  const double pixels = static_cast<double>(run.pixels.channels) * run.pixels.height * run.pixels.width,
               values = static_cast<double>(run.channels) * run.sample_side * run.sample_side;
  double bytes = kRecords;
  if (grid) bytes += 2 * pixels;
  if (grid && run.preview_every > 0) bytes += pixels * ((run.total_steps - 1) / run.preview_every);
  if (!options.latents.empty()) bytes += values * sizeof(float);
  if (!options.cost_map.empty()) bytes += run.num_tokens * sizeof(float) + 3.0 * kMinMapSide * kMinMapSide;
  check_memory(run.num_images * bytes, fmt::format("{} images kept until the last is made", run.num_images),
               grid ? "make fewer in a run, or write each to a file of its own: --out folder/"
                    : "make fewer in a run");
}

bool names_folder(const std::string& out) { return out.ends_with('/') || fs::is_directory(out); }

}  // namespace

Outputs::Outputs(const Cli& cli, const OutputOptions& options, const OutputRun& run,
                 const std::vector<fs::path>& inputs)
    : run_(run), options_(options) {
  std::string& out = options_.out;
  const bool pixels = run.pixels.channels > 0;
  const auto latents = [&] {
    return fmt::format("{} makes latents of {} channels, not pixels: give its autoencoder with --vae",
                       run.source, run.channels);
  };
  DYDIT_USAGE_CHECK(pixels || (out.empty() && options_.npz.empty()),
                    "{}, or write them with --latents FILE.safetensors instead of {}", latents(),
                    out.empty() ? "--npz" : "--out");
  DYDIT_USAGE_CHECK(pixels || !options_.latents.empty() || !options_.cost_map.empty(),
                    "{}, or say where they go with --latents FILE.safetensors", latents());
  if (pixels && out.empty() && options_.npz.empty() && options_.latents.empty()) out = "samples.png";
  DYDIT_USAGE_CHECK(run.preview_every == 0 || pixels, "--preview-every {}: {}", run.preview_every, latents());
  DYDIT_USAGE_CHECK(run.preview_every == 0 || !out.empty(),
                    "--preview-every {}: previews are written beside the PNG of --out; say where",
                    run.preview_every);
  if (!out.empty()) choose_out(out);
  check_kept(run, options, !out.empty() && out_.digits == 0);
  if (!options_.cost_map.empty()) {
    DYDIT_USAGE_CHECK(options_.cost_map.ends_with(".png"), "--cost-map {}: expected a name that ends in .png",
                      options_.cost_map);
    const int shown = map_side(run), side = shown * ((kMinMapSide + shown - 1) / shown);
    check_grid(pixels ? 2 * side + kGridPadding : side, side, "--cost-map " + options_.cost_map,
               "leave it out");
  }
  DYDIT_USAGE_CHECK(
      !own_descriptor(options_.npz) && !fs::is_fifo(options_.npz),
      "--npz {}: its header is filled in at the end, which a stream does not allow; name a file",
      options_.npz);
  check_targets(cli, targets(), inputs);
  if (!out.empty()) sinks_.push_back(make_png_sink(run_, out_));
  if (!options_.cost_map.empty()) sinks_.push_back(make_cost_map_sink(run_, options_.cost_map));
  if (!options_.npz.empty()) sinks_.push_back(make_npz_sink(run_, options_.npz));
  if (!options_.latents.empty()) sinks_.push_back(make_latents_sink(run_, options_.latents));
}

// All that will be written; of numbered images the first.
std::vector<Target> Outputs::targets() const {
  std::vector<Target> result;
  if (!options_.out.empty()) result.push_back({"--out", out_.of(0)});
  for (int step = run_.preview_every; step > 0 && step < run_.total_steps; step += run_.preview_every)
    result.push_back({"--preview-every", out_.of_preview(0, step)});
  for (const Target& target :
       {Target{"--cost-map", options_.cost_map}, Target{"--latents", options_.latents},
        Target{"--npz", options_.npz}, Target{"--npz", options_.npz.empty() ? "" : options_.npz + ".json"}}) {
    DYDIT_USAGE_CHECK(target.path.empty() || out_.digits == 0 || !is_numbered_target(place_of(target.path)),
                      "{} {}: --out writes that file; name another", target.flag, target.path);
    result.push_back(target);
  }
  return result;
}

void Outputs::choose_out(const std::string& out) {
  const fs::path given = names_folder(out) ? fs::path(out) / "%06d.png" : fs::path(out);
  out_ = parse_pattern(given.filename().string(), out);
  out_.before = (given.parent_path() / out_.before).string();
  const fs::path shown = out_.of(0);
  DYDIT_USAGE_CHECK(shown.extension() == ".png" || shown.extension().empty(),
                    "--out {}: expected a name that ends in .png (--npz and --latents write other formats)",
                    out);
  if (out_.digits == 0)
    check_grid(run_.pixels.width, run_.pixels.height, "--out " + shown.string(),
               "write them into a folder (a name that ends in /) or --npz");
  DYDIT_USAGE_CHECK(run_.preview_every == 0 || !own_descriptor(shown),
                    "--preview-every {}: previews are written beside the PNG of --out, and {} is a stream",
                    run_.preview_every, shown.string());
}

// A grid is held in memory as a whole, and what is written must be read again.
void Outputs::check_grid(int cell_width, int cell_height, const std::string& flag,
                         const std::string& way_out) const {
  constexpr size_t kRecordBytes = 400;  // of an image, beside its class's name
  const int64_t images = run_.num_images, rows = (images + kGridColumns - 1) / kGridColumns;
  const int64_t columns = std::min<int64_t>(images, kGridColumns);
  const int64_t width = columns * (cell_width + kGridPadding) + kGridPadding;
  const int64_t height = rows * (cell_height + kGridPadding) + kGridPadding;
  const auto text_bytes = static_cast<size_t>(images) * (kRecordBytes + 4 * run_.longest_name);
  DYDIT_USAGE_CHECK(
      images == 1 || (width <= kMaxPngSide && height <= kMaxPngSide && text_bytes <= kMaxPngTextBytes),
      "{}: a grid of {} images has {}x{} pixels and a record of up to {:.0f} MB; at most {} pixels a "
      "side and {} MB can be read again. Take fewer images or {}",
      flag, images, width, height, static_cast<double>(text_bytes) / 1e6, kMaxPngSide,
      kMaxPngTextBytes / 1'000'000, way_out);
}

// One of the files of a pattern, or a preview of one.
bool Outputs::is_numbered_target(const fs::path& place) const {
  const fs::path folder = place_of(out_.of(0)).parent_path();
  std::string name = place.filename().string();
  if (place.parent_path() != folder) return false;
  if (const size_t mark = name.rfind("_step"); run_.preview_every > 0 && mark != name.npos)
    name = name.substr(0, mark) + fs::path(out_.of(0)).extension().string();
  const std::string before = fs::path(out_.before + "0").filename().string();  // the 0: before may be empty
  const size_t begin = before.size() - 1;
  if (name.compare(0, begin, before, 0, begin) != 0 || name.size() < begin + out_.after.size()) return false;
  const std::string digits = name.substr(begin, name.size() - begin - out_.after.size());
  int index = -1;
  std::from_chars(digits.data(), digits.data() + digits.size(), index);
  return index >= 0 && index < run_.num_images && place_of(out_.of(index)).filename() == name;
}

nlohmann::json Outputs::add(const GeneratedSample& sample, nlohmann::json record) {
  for (const auto& sink : sinks_) sink->add(sample, record);
  records_.push_back(record);  // of samples that all sinks have
  for (const auto& sink : sinks_) {
    if (const std::string file = sink->file_of(sample.index); !file.empty()) record["file"] = file;
  }
  return record;
}

void Outputs::add_preview(const Preview& preview, const nlohmann::json& records) {
  for (const auto& sink : sinks_) sink->add_preview(preview, records);
}

void Outputs::finish() {
  if (records_.empty()) return;
  std::exception_ptr failure;
  for (const auto& sink : sinks_) {
    try {
      sink->finish(records_);
    } catch (const Error&) {
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

std::vector<std::string> Outputs::files() const {
  std::vector<std::string> all;
  for (const auto& sink : sinks_) all.insert(all.end(), sink->files().begin(), sink->files().end());
  return all;
}

}  // namespace dydit

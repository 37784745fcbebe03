// Each kind of file becomes one JSON object; what is printed for people is taken from it.
#include "inspect_files.h"

#include <ctime>
#include <filesystem>
#include <map>
#include <optional>
#include <string_view>
#include <vector>

#include <fmt/chrono.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/data/source.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/npz_reader.h"
#include "dydit/io/png.h"
#include "dydit/io/tensor_view.h"
#include "dydit/io/text.h"
#include "dydit/io/tfevents_reader.h"
#include "dydit/pipeline/record.h"
#include "inspect_plans.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr int kRecordDepth = 8;              // what nests deeper would take the stack
constexpr size_t kImagesShown = 16;          // of a record
constexpr double kYear10000 = 253402300800;  // in seconds since 1970

// The record of a run out of a file's text; `where` names it in an Error.
json parse_record(std::string_view text, const std::string& where) {
  json record = parse_json(text, kRecordDepth).value_or(json());
  DYDIT_CHECK(record.is_object(), "{} is no JSON object, or one more than {} deep; make the images again",
              where, kRecordDepth);
  return record;
}

void print_record(const json& record, const std::string& where) {
  for (const auto& [key, value] : record.items()) {
    if (key != "images")
      print_out("{:<13} {}\n", key, value.is_string() ? value.get<std::string>() : json_text(value));
  }
  const json images = record.value("images", json::array());
  size_t shown = 0;
  for (const json& image : images) {
    if (shown++ == kImagesShown) {
      print_out("image         and {} more; --json shows all\n", images.size() - kImagesShown);
      break;
    }
    std::vector<std::string> fields;
    for (const auto& [key, value] : image.items())
      fields.push_back(fmt::format("{} {}", key, json_text(value)));
    print_out("image         {}\n", fmt::join(fields, ", "));
  }
  try {
    print_out("make again    {}\n", reproducing_command(record));
  } catch (const Error& error) {
    throw Error(fmt::format("{}: {}", where, error.what()));
  }
}

void inspect_png(const Cli& cli, const std::string& path, std::span<const std::byte> bytes) {
  const PngInfo info = parse_png_info(bytes, path);
  const std::string where = fmt::format("{}: its text '{}'", path, kRecordKey);
  json result = {{"file", path},          {"format", "png"},           {"width", info.width},
                 {"height", info.height}, {"channels", info.channels}, {"text", info.text}};
  if (const auto found = info.text.find(kRecordKey); found != info.text.end())
    result["record"] = parse_record(found->second, where);
  cli.print(result, [&] {
    print_out("{}: PNG {}x{}, {} channels\n", path, info.width, info.height, info.channels);
    if (result.contains("record")) return print_record(result["record"], where);
    print_out("no record of dydit; text: {}\n", info.text.empty() ? "none" : "");
    for (const auto& [key, value] : info.text) print_out("  {}: {}\n", key, value);
  });
}

json array_json(const NpyHeader& header) {
  return {{"dtype", npy_type_name(header.type)},
          {"shape", header.shape},
          {"fortran_order", header.fortran_order}};
}

// "float32 (2, 3)"
std::string array_text(const json& array) {
  return fmt::format("{} {}{}", printable(array["dtype"].get<std::string>()),
                     shape_text(array["shape"].get<std::vector<int64_t>>()),
                     array["fortran_order"].get<bool>() ? ", Fortran order" : "");
}

// uint8 (N, H, W) or (N, H, W, C): images, as generate --npz writes them and training reads them.
json images_json(const NpyHeader& header) {
  const std::vector<int64_t>& shape = header.shape;
  const bool ranked = shape.size() == 3 || (shape.size() == 4 && (shape[3] == 1 || shape[3] == 3));
  if (header.type != "|u1" || !ranked) return nullptr;
  return {{"count", shape[0]},
          {"height", shape[1]},
          {"width", shape[2]},
          {"channels", shape.size() == 3 ? 1 : shape[3]}};
}

// Class labels, one an image: nothing for another array.
json labels_json(const ZipArchive& archive, const NpzEntry& entry, size_t file_bytes,
                 const std::string& path) {
  const std::string type = npy_type_name(entry.header.type);
  if (entry.header.shape.size() != 1 || !(type.starts_with("int") || type.starts_with("uint")))
    return nullptr;
  const auto array = read_npz_array(archive, entry.name, unpack_limit(file_bytes), path);
  const std::optional<LabelSummary> labels = summarize_labels(*array);
  if (!labels) return nullptr;
  return {{"count", labels->count},
          {"classes", labels->num_classes},
          {"lowest", labels->lowest},
          {"highest", labels->highest}};
}

// Names as generate --npz and training have them; the latter's win.
json npz_json(const std::string& path, std::span<const std::byte> bytes) {
  json result = {{"file", path}, {"format", "npz"}, {"arrays", json::array()}};
  const ZipArchive archive(bytes, path);
  for (const NpzEntry& entry : list_npz(archive, path)) {
    json array = array_json(entry.header);
    array["name"] = entry.name;
    result["arrays"].push_back(std::move(array));
    json images, labels;
    if (entry.name == "arr_0" || entry.name == "images") images = images_json(entry.header);
    if (entry.name == "arr_1" || entry.name == "labels")
      labels = labels_json(archive, entry, bytes.size(), path);
    if (!images.is_null()) result["images"] = std::move(images);
    if (!labels.is_null()) result["labels"] = std::move(labels);
  }
  // generate --npz writes the record beside the images.
  const std::string sidecar = path + ".json";
  if (std::filesystem::exists(sidecar)) {
    const auto file = MappedFile::open(sidecar);
    result["record"] = parse_record(text_of(file->bytes()), sidecar);
  }
  return result;
}

void print_npz(const json& result, const std::string& path) {
  print_out("{}: npz\n", path);
  for (const json& array : result["arrays"])
    print_out("array         {}: {}\n", printable(array["name"].get<std::string>()), array_text(array));
  if (result.contains("images")) {
    const json& images = result["images"];
    print_out("images        {} of {}x{} pixels, {}\n", images["count"].get<int64_t>(),
              images["height"].get<int64_t>(), images["width"].get<int64_t>(),
              images["channels"] == 1 ? "gray" : "RGB");
  }
  if (result.contains("labels")) {
    const json& labels = result["labels"];
    print_out("labels        {} of {} classes, {} to {}\n", labels["count"].get<int64_t>(),
              labels["classes"].get<int>(), labels["lowest"].get<int>(), labels["highest"].get<int>());
  }
  if (result.contains("record")) print_record(result["record"], path + ".json");
}

void inspect_npz(const Cli& cli, const std::string& path, std::span<const std::byte> bytes) {
  const json result = npz_json(path, bytes);
  cli.print(result, [&] { print_npz(result, path); });
}

void inspect_npy(const Cli& cli, const std::string& path, std::span<const std::byte> bytes) {
  json result = array_json(parse_npy_header(bytes, path));
  result.update({{"file", path}, {"format", "npy"}});
  cli.print(result, [&] { print_out("{}: npy {}\n", path, array_text(result)); });
}

std::string time_text(double seconds) {
  if (!(seconds >= 0 && seconds < kYear10000)) return fmt::format("{} s since 1970", seconds);
  return fmt::format("{:%Y-%m-%d %H:%M:%S}", fmt::gmtime(static_cast<std::time_t>(seconds)));
}

json events_json(const std::string& path, const EventSummary& events) {
  json result = {{"file", path},
                 {"format", "tfevents"},
                 {"events", events.num_events},
                 {"cut_bytes", events.cut_bytes},
                 {"scalars", json::object()},
                 {"images", json(events.images)},
                 {"others", json(events.others)}};
  if (events.first) {
    result.update({{"first_step", events.first->step},
                   {"last_step", events.last->step},
                   {"first_time", events.first->wall_time},
                   {"last_time", events.last->wall_time}});
  }
  for (const auto& [tag, scalar] : events.scalars) {
    result["scalars"][tag] = {{"count", scalar.count},
                              {"first", scalar.first},
                              {"last", scalar.last},
                              {"min", scalar.min},
                              {"max", scalar.max}};
  }
  return result;
}

void print_counts(std::string_view kind, const std::map<std::string, int64_t, std::less<>>& counts) {
  if (!counts.empty()) print_out("{:<24} {:>8}\n", kind, "count");
  for (const auto& [tag, count] : counts) print_out("  {:<22} {:>8}\n", printable(tag), count);
}

void print_events(const EventSummary& events, const std::string& path) {
  print_out("{}: TensorBoard events, {} of them\n", path, events.num_events);
  if (events.cut_bytes > 0)
    print_out("cut           its last {} bytes are no whole event and are left out\n", events.cut_bytes);
  if (events.first) {
    print_out("steps         {} to {}\n", events.first->step, events.last->step);
    print_out("time (UTC)    {} to {}\n", time_text(events.first->wall_time),
              time_text(events.last->wall_time));
  }
  if (!events.scalars.empty()) {
    print_out("{:<24} {:>8} {:>12} {:>12} {:>12} {:>12}\n", "scalars", "count", "first", "last", "min",
              "max");
  }
  for (const auto& [tag, scalar] : events.scalars) {
    print_out("  {:<22} {:>8} {:>12.6g} {:>12.6g} {:>12.6g} {:>12.6g}\n", printable(tag), scalar.count,
              scalar.first, scalar.last, scalar.min, scalar.max);
  }
  print_counts("images", events.images);
  print_counts("other values", events.others);
}

void inspect_events(const Cli& cli, const std::string& path, std::span<const std::byte> bytes) {
  const EventSummary events = summarize_events(bytes, path);
  cli.print(events_json(path, events), [&] { print_events(events, path); });
}

void inspect_plans(const Cli& cli, const std::string& path, std::span<const std::byte> bytes) {
  inspect_plan_text(cli, path, text_of(bytes));
}

}  // namespace

InspectFile inspector_of(std::span<const std::byte> bytes) {
  const FileKind kind = sniff_file_kind(bytes);
  if (kind == FileKind::Png) return inspect_png;
  if (kind == FileKind::Npz) return inspect_npz;
  if (is_npy(bytes)) return inspect_npy;
  if (kind != FileKind::Unknown) return nullptr;
  if (is_plan_text(text_of(bytes))) return inspect_plans;
  return is_event_file(bytes) ? inspect_events : nullptr;
}

}  // namespace dydit

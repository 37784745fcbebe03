#include "saved_latents.h"

#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/io/json.h"
#include "dydit/io/safetensors.h"
#include "dydit/pipeline/record.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr int kRecordDepth = 6;  // ours nests four deep

}  // namespace

SavedLatents read_latents(const std::string& path) {
  SafetensorsFile read = read_safetensors(path);
  SavedLatents saved;
  const auto found = read.tensors.find("latents");
  DYDIT_CHECK(found != read.tensors.end(),
              "{}: holds no tensor \"latents\"; what generate --latents writes is wanted", path);
  const at::Tensor latents = to_tensor(found->second, read.file);
  DYDIT_CHECK(latents.dim() == 4 && latents.numel() > 0 && latents.is_floating_point(),
              "{}: latents are {} {}; wanted floating point of shape (images, channels, height, width)", path,
              dtype_name(found->second.dtype), shape_text(found->second.shape));
  const int64_t count = latents.size(0);
  saved.latents = latents;
  saved.labels.assign(count, -1);
  if (const auto labels = read.tensors.find("labels"); labels != read.tensors.end()) {
    const at::Tensor values = to_tensor(labels->second, read.file);
    DYDIT_CHECK(
        values.dim() == 1 && values.size(0) == count && at::isIntegralType(values.scalar_type(), false),
        "{}: labels are {} {}; wanted whole numbers, one for each of {} latents", path,
        dtype_name(labels->second.dtype), shape_text(labels->second.shape), count);
    const at::Tensor whole = values.to(at::kLong).contiguous();
    saved.labels.assign(whole.data_ptr<int64_t>(), whole.data_ptr<int64_t>() + count);
  }
  if (const auto record = read.metadata.find(kRecordKey); record != read.metadata.end()) {
    const std::optional<json> value = parse_json(record->second, kRecordDepth);
    DYDIT_CHECK(value && value->is_object(), "{}: metadata '{}' is no record of a run", path, kRecordKey);
    saved.run = *value;
    reproducing_command(saved.run);  // looks at all that a record of ours has
    const json images = saved.run.contains("images") ? saved.run["images"] : json();
    saved.run.erase("images");
    if (images.is_array() && images.size() == static_cast<size_t>(count)) saved.images = images;
  }
  saved.sha256 = sha256_hex(read.file->bytes());
  saved.file = read.file;
  return saved;
}

LatentOrigin SavedLatents::origin(const std::string& path) const {
  std::map<std::string, std::string> notes;
  const auto trained_on = run.find("trained_on");
  if (trained_on != run.end() && trained_on->is_object()) {
    for (const auto& [key, value] : trained_on->items())
      if (value.is_string()) notes[key] = value.get<std::string>();
  }
  return latent_origin(notes, static_cast<int>(latents.size(1)), path);
}

json SavedLatents::record(size_t i) const {
  json record = images.empty() ? json::object() : images[i];
  if (!record.is_object()) record = json::object();
  record.erase("file");
  record["index"] = i;
  record["class"] = labels[i];
  if (!record.contains("class_name") || !record["class_name"].is_string()) record["class_name"] = "";
  return record;
}

}  // namespace dydit

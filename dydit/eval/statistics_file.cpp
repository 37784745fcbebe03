#include "dydit/eval/statistics_file.h"

#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <string_view>

#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/base/version.h"
#include "dydit/io/bytes.h"
#include "dydit/io/npz.h"
#include "dydit/io/npz_reader.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/text.h"
#include "dydit/io/zip.h"
#include "dydit/io/zip_writer.h"
#include "dydit/model/checkpoint.h"

namespace dydit {
namespace {

constexpr const char* kFormatKey = "dydit_statistics";
constexpr std::string_view kFormat = "1";
constexpr const char* kImagesKey = "images";
constexpr uint64_t kLargestArray = uint64_t{1} << 30;  // unpacked: a covariance of 11,585 numbers
constexpr double kAsymmetry = 1e-5;                    // of the largest entry: float32 files
constexpr double kClamped = 1e-6;                      // variances that rounding leaves below 0, likewise

using Metadata = std::map<std::string, std::string>;

// Where each field of the origin stands in the metadata.
constexpr std::array<std::pair<const char*, std::string StatisticsOrigin::*>, 6> kOriginKeys = {
    {{"extractor", &StatisticsOrigin::extractor},
     {"weights_sha256", &StatisticsOrigin::weights_sha256},
     {"resize", &StatisticsOrigin::resize},
     {"source_sha256", &StatisticsOrigin::source_sha256},
     {"labels", &StatisticsOrigin::labels},
     {"tool", &StatisticsOrigin::tool}}};

// `name`: as in messages, "mu and sigma".
Gaussian checked(const at::Tensor& mean, const at::Tensor& cov, const std::string& name) {
  const int64_t d = mean.numel();
  DYDIT_CHECK(mean.dim() == 1 && d >= 1 && cov.dim() == 2 && cov.size(0) == d && cov.size(1) == d,
              "{}: shapes {} and {}; expected (d) and (d, d)", name, shape_text(mean.sizes().vec()),
              shape_text(cov.sizes().vec()));
  const Gaussian gaussian{mean.to(at::kDouble).contiguous(), cov.to(at::kDouble).contiguous()};
  DYDIT_CHECK(at::isfinite(gaussian.mean).all().item<bool>() && at::isfinite(gaussian.cov).all().item<bool>(),
              "{}: hold a number that is not finite", name);
  const double largest = gaussian.cov.abs().max().item<double>();
  const double asymmetry = (gaussian.cov - gaussian.cov.t()).abs().max().item<double>();
  const double least = gaussian.cov.diagonal().min().item<double>();
  DYDIT_CHECK(
      asymmetry <= kAsymmetry * largest && least >= -kClamped * largest,
      "{}: is no covariance: entries differ by {:.2g} from their mirror images, the least variance is {:.2g}",
      name, asymmetry, least);
  return gaussian;
}

int64_t images_of(const Metadata& metadata, const std::string& file) {
  const auto found = metadata.find(kImagesKey);
  if (found == metadata.end()) return 0;
  const std::string& text = found->second;
  DYDIT_CHECK(!text.empty() && text.size() <= 18 && text.find_first_not_of("0123456789") == text.npos,
              "{}: metadata images is {}; expected a whole number", file, quote(text));
  return std::stoll(text);
}

FeatureStatistics read_own(const std::filesystem::path& path) {
  const SafetensorsFile file = read_safetensors(path);
  const std::string name = path.string();
  const auto format = file.metadata.find(kFormatKey);
  DYDIT_CHECK(format != file.metadata.end(),
              "{}: is no file of statistics; dydit evaluate --write-stats makes one, an npz with mu and "
              "sigma is read, "
              "too",
              name);
  DYDIT_CHECK(format->second == kFormat, "{}: is of format {}; this dydit reads {}. Take a newer one.", name,
              quote(format->second), kFormat);
  const auto tensor = [&](const char* key, Dtype dtype) {
    const auto found = file.tensors.find(key);
    DYDIT_CHECK(found != file.tensors.end() && found->second.dtype == dtype,
                "{}: tensor {} is missing or not of type {}; write the statistics again", name, key,
                dtype_name(dtype));
    return to_tensor(found->second, file.file);
  };
  FeatureStatistics statistics;
  statistics.features =
      checked(tensor("mean", Dtype::F64), tensor("cov", Dtype::F64), name + ": mean and cov");
  if (file.tensors.contains("mean_s"))
    statistics.spatial =
        checked(tensor("mean_s", Dtype::F64), tensor("cov_s", Dtype::F64), name + ": mean_s and cov_s");
  statistics.images = images_of(file.metadata, name);
  if (file.tensors.contains("features")) {
    statistics.rows = tensor("features", Dtype::F32);
    check_features(statistics.rows, statistics.features.mean.size(0), name + ": features");
    DYDIT_CHECK(statistics.rows.size(0) == statistics.images,
                "{}: features of {} images, but metadata say {}", name, statistics.rows.size(0),
                statistics.images);
  }
  for (const auto& [key, field] : kOriginKeys) {
    const auto found = file.metadata.find(key);
    if (found != file.metadata.end()) statistics.origin.*field = printable(found->second);
  }
  return statistics;
}

at::Tensor float_tensor(const NpyArray& array, const std::string& what) {
  DYDIT_CHECK(array.kind == 'f' && (array.item_size == 4 || array.item_size == 8),
              "{}: expected float32 or float64 numbers", what);
  const at::Tensor values = at::empty(array.shape, array.item_size == 4 ? at::kFloat : at::kDouble);
  std::memcpy(values.data_ptr(), array.data.data(), array.data.size());
  return values;
}

FeatureStatistics read_npz(const std::filesystem::path& path) {
  const auto file = MappedFile::open(path);
  const std::string name = path.string();
  const ZipArchive archive(file->bytes(), name);
  const auto array = [&](const char* key) {
    const std::optional<NpyArray> found = read_npz_array(archive, key, kLargestArray, name);
    DYDIT_CHECK(found, "{}: holds no array {}; statistics are mu and sigma, of sFID mu_s and sigma_s", name,
                key);
    return float_tensor(*found, fmt::format("{}: array {}", name, key));
  };
  FeatureStatistics statistics;
  statistics.features = checked(array("mu"), array("sigma"), name + ": mu and sigma");
  if (archive.find_packed("mu_s.npy"))
    statistics.spatial = checked(array("mu_s"), array("sigma_s"), name + ": mu_s and sigma_s");
  return statistics;
}

void write_npz(const std::filesystem::path& path, const FeatureStatistics& statistics) {
  ZipWriter zip(path);
  const auto add = [&](const std::string& name, const at::Tensor& tensor) {
    const at::Tensor values = tensor.contiguous();
    const TensorView view = to_view(values);
    std::string member = npy_header("<f8", view.shape);
    member += text_of({view.data, extent_bytes(view)});
    zip.add(name + ".npy", member);
  };
  add("mu", statistics.features.mean);
  add("sigma", statistics.features.cov);
  if (statistics.spatial) {
    add("mu_s", statistics.spatial->mean);
    add("sigma_s", statistics.spatial->cov);
  }
  zip.commit();
}

void write_own(const std::filesystem::path& path, const FeatureStatistics& statistics) {
  Metadata metadata = {{kFormatKey, std::string(kFormat)}};
  if (statistics.images > 0) metadata[kImagesKey] = std::to_string(statistics.images);
  for (const auto& [key, field] : kOriginKeys) {
    if (!(statistics.origin.*field).empty()) metadata[key] = statistics.origin.*field;
  }
  metadata["tool"] = fmt::format("dydit {}", kVersion);
  std::map<std::string, at::Tensor> tensors = {{"mean", statistics.features.mean},
                                               {"cov", statistics.features.cov}};
  if (statistics.spatial) {
    tensors["mean_s"] = statistics.spatial->mean;
    tensors["cov_s"] = statistics.spatial->cov;
  }
  if (statistics.rows.defined()) tensors["features"] = statistics.rows;
  TensorViews views;
  for (auto& [name, tensor] : tensors) {
    tensor = tensor.contiguous();
    views[name] = to_view(tensor);
  }
  write_safetensors(path, views, metadata);
}

}  // namespace

void write_statistics(const std::filesystem::path& path, const FeatureStatistics& statistics) {
  if (path.extension() == ".npz") {
    write_npz(path, statistics);
  } else {
    write_own(path, statistics);
  }
}

FeatureStatistics read_statistics(const std::filesystem::path& path) {
  const bool is_zip = text_of(MappedFile::open(path)->bytes()).starts_with("PK");
  return is_zip ? read_npz(path) : read_own(path);
}

void check_comparable(const FeatureStatistics& statistics, const StatisticsOrigin& wanted, int64_t dim,
                      const std::string& what) {
  const auto agree = [&](const char* name, const std::string& theirs, const std::string& ours) {
    DYDIT_CHECK(
        theirs.empty() || ours.empty() || theirs == ours,
        "{}: was made with {} {}, the images' features with {}; no number compares them, make the statistics "
        "again",
        what, name, theirs, ours);
  };
  agree("extractor", statistics.origin.extractor, wanted.extractor);
  agree("weights", statistics.origin.weights_sha256, wanted.weights_sha256);
  agree("resize", statistics.origin.resize, wanted.resize);
  DYDIT_CHECK(statistics.features.mean.size(0) == dim,
              "{}: statistics of {} features, but the extractor makes {}; they are another extractor's", what,
              statistics.features.mean.size(0), dim);
}

}  // namespace dydit

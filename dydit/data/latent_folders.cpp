// Latents in a file an image, as fast-DiT (features and labels), REPA (mean and std) and MAR (moments) write
// them. The first file says the shape; the rest must have it.
#include <algorithm>
#include <map>
#include <utility>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/data/latents.h"
#include "dydit/data/parallel.h"
#include "dydit/data/source.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/npz_reader.h"
#include "dydit/io/recognize.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr double kStableDiffusionScale = 0.18215;  // of fast-DiT and REPA
constexpr double kMarScale = 0.2325;               // of MAR's own autoencoder
constexpr std::string_view kFeatures = "_features", kLabels = "_labels", kNpy = ".npy", kNpz = ".npz";
constexpr const char* kRepaList = "dataset.json";

// Files of a folder and of those below it that end so, in the order of their paths.
struct Files {
  std::shared_ptr<const Tree> tree;
  std::vector<const TreeFile*> files;  // they stay where the tree has them
  std::vector<std::string> names;      // from the folder on

  Files(const fs::path& path, std::string_view ending)
      : tree(std::make_shared<const Tree>(Tree::of_folder(path))) {
    add(tree->root(), "", ending);
    DYDIT_CHECK(!files.empty(), "{}: has no file that ends in {}", path.string(), ending);
  }

  int64_t size() const { return static_cast<int64_t>(files.size()); }
  FileBytes read(int64_t i) const { return tree->read(*files[static_cast<size_t>(i)]); }
  const std::string& path(int64_t i) const { return files[static_cast<size_t>(i)]->path; }

 private:
  void add(const Folder& folder, const std::string& prefix, std::string_view ending) {
    for (const TreeFile& file : folder.files) {
      if (!file.name().ends_with(ending)) continue;
      files.push_back(&file);
      names.push_back(prefix + std::string(file.name()));
    }
    for (const auto& [name, child] : folder.folders) add(*child, prefix + name + "/", ending);
  }
};

Dtype dtype_of(const NpyArray& array, const std::string& file) {
  DYDIT_CHECK(array.kind == 'f', "{}: holds numbers of numpy type {}{}; latents are floating point", file,
              array.kind, array.item_size);
  return array.item_size == 2 ? Dtype::F16 : array.item_size == 4 ? Dtype::F32 : Dtype::F64;
}

// Numbers of an array from number `first` on.
void copy(const NpyArray& array, size_t first, std::span<float> out, const std::string& file) {
  read_floats(array.data.data() + first * static_cast<size_t>(array.item_size), dtype_of(array, file), out);
}

// What stands behind the means in a file's array.
enum class Second { Nothing, Std, Logvar };

// The array of a file for one flip.
using ArrayOf = NpyArray (*)(std::span<const std::byte> bytes, bool mirrored, const std::string& file);

NpyArray whole_file(std::span<const std::byte> bytes, bool, const std::string& file) {
  return parse_npy(bytes, file);
}

NpyArray moments_of(std::span<const std::byte> bytes, bool mirrored, const std::string& file) {
  const char* const name = mirrored ? "moments_flip" : "moments";
  const ZipArchive archive(bytes, file);
  auto array = read_npz_array(archive, name, unpack_limit(bytes.size()), file);
  DYDIT_CHECK(array, "{}: has no array {}; it is no file of MAR's latents", file, quote(name));
  return *std::move(array);
}

struct Reader {
  std::shared_ptr<const Files> files;
  ArrayOf array_of;
  Second second;
  std::vector<int64_t> shape = {};  // of all arrays

  template <typename Fn>
  void with_array(int64_t index, bool mirrored, const Fn& fn) const {
    const std::string& path = files->path(index);
    const FileBytes file = files->read(index);
    const NpyArray array = array_of(file.bytes, mirrored, path);
    DYDIT_CHECK(shape.empty() || array.shape == shape, "{}: has the shape {}, {} has {}; one size is wanted",
                path, shape_text(array.shape), files->path(0), shape_text(shape));
    fn(array, path);
  }

  void operator()(int64_t index, bool mirrored, std::span<float> mean, std::span<float> std) const {
    with_array(index, mirrored, [&](const NpyArray& array, const std::string& path) {
      copy(array, 0, mean, path);
      if (second == Second::Nothing) return;
      copy(array, mean.size(), std, path);
      if (second == Second::Logvar) to_std(std);
    });
  }

  // (C, h, h) with twice the channels where there is a second part; a 1 may stand before it.
  void set_shape(LatentInfo& info) {
    constexpr int64_t kMost = 1 << 14;
    const int parts = second == Second::Nothing ? 1 : 2;
    with_array(0, /*mirrored=*/false, [&](const NpyArray& array, const std::string& path) {
      std::vector<int64_t> sizes = array.shape;
      if (sizes.size() == 4 && sizes[0] == 1) sizes.erase(sizes.begin());
      const bool fits = sizes.size() == 3 && sizes[0] > 0 && sizes[0] <= kMost && sizes[0] % parts == 0 &&
                        sizes[1] > 0 && sizes[1] <= kMost && sizes[1] == sizes[2];
      DYDIT_CHECK(fits, "{}: has the shape {}; ({}C, h, h) is wanted of a latent", path,
                  shape_text(array.shape), parts == 1 ? "" : "2");
      info.channels = static_cast<int>(sizes[0] / parts);
      info.side = static_cast<int>(sizes[1]);
      info.dtype = dtype_of(array, path);
      shape = array.shape;
    });
  }

  // Files of the first one's size have its shape or are damaged, which reading them says.
  void check_others(int threads) const {
    constexpr int64_t kMostLookedAt = int64_t{1} << 16;
    const int64_t count = std::min(files->size(), kMostLookedAt);
    parallel_for(count, threads, [&](int64_t i) {
      const int64_t index = i * files->size() / count;
      if (files->files[static_cast<size_t>(index)]->size == files->files[0]->size) return;
      with_array(index, /*mirrored=*/false, [](const NpyArray&, const std::string&) {});
    });
  }
};

LatentSource source_of(LatentLayout layout, Reader reader, int threads) {
  LatentSource source;
  source.info.layout = layout;
  source.info.spread = reader.second != Second::Nothing;
  reader.set_shape(source.info);
  reader.check_others(threads);
  const auto files = reader.files;
  for (const TreeFile* file : files->files) source.info.bytes += file->size;
  source.name = [files](int64_t index) { return files->names[static_cast<size_t>(index)]; };
  source.sha256 = [files](int64_t index) { return sha256_hex(files->read(index).bytes); };
  source.read = std::move(reader);
  return source;
}

int label_in(const FileBytes& file, const std::string& path) {
  const NpyArray array = parse_npy(file.bytes, path);
  const std::optional<int64_t> count = checked_numel(array.shape);
  DYDIT_CHECK(array.kind != 'f' && count == 1, "{}: holds {} of numpy type {}{}; one whole number is wanted",
              path, shape_text(array.shape), array.kind, array.item_size);
  return checked_label(integer_at(array, 0), path);
}

// Both are sorted.
void check_pairs(const Files& features, const Files& labels, const FeatureFolders& folders) {
  const auto missing = [](const std::string& name, const fs::path& folder) {
    throw Error(fmt::format("{}: is missing; features and labels are files of the same names",
                            (folder / name).string()));
  };
  for (size_t i = 0; i < std::max(features.names.size(), labels.names.size()); ++i) {
    const bool a = i < features.names.size(), b = i < labels.names.size();
    if (a && b && features.names[i] == labels.names[i]) continue;
    if (a && (!b || features.names[i] < labels.names[i])) missing(features.names[i], folders.labels);
    missing(labels.names[i], folders.features);
  }
}

// The class of each file by its path from the folder on.
std::map<std::string, int64_t> repa_labels(const fs::path& path) {
  constexpr int kDepth = 3;
  const auto file = MappedFile::open(path);
  const json root = read_json(text_of(file->bytes()), kDepth, path.string());
  const auto list = root.is_object() ? root.find("labels") : root.end();
  DYDIT_CHECK(root.is_object() && list != root.end() && list->is_array(),
              "{}: has no list labels of [path, class]; training wants a class of every image",
              path.string());
  std::map<std::string, int64_t> labels;
  for (const json& entry : *list) {
    DYDIT_CHECK(entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_number_integer(),
                "{}: labels holds {}; [path, class] is wanted", path.string(), shown(entry));
    labels[entry[0].get<std::string>()] = entry[1].get<int64_t>();
  }
  return labels;
}

bool is_folder(const fs::path& path) {
  std::error_code unreadable;  // is none for us
  return fs::is_directory(path, unreadable);
}

// By one of its files.
bool has_arrays(const fs::path& folder) {
  const std::vector<std::string> names = is_folder(folder) ? names_in(folder, 1) : std::vector<std::string>();
  return !names.empty() && names[0].ends_with(kNpy);
}

}  // namespace

std::optional<FeatureFolders> feature_folders(const fs::path& path) {
  const auto pair_of = [](const std::string& features) {
    return FeatureFolders{features,
                          features.substr(0, features.size() - kFeatures.size()) + std::string(kLabels)};
  };
  std::string own = path.lexically_normal().string();
  while (own.size() > 1 && own.ends_with('/')) own.pop_back();
  if (own.ends_with(kFeatures) && has_arrays(own)) return pair_of(own);
  std::vector<std::string> found;
  for (const std::string& name : names_in(path)) {
    if (name.ends_with(kFeatures) && has_arrays(path / name)) found.push_back(name);
  }
  DYDIT_CHECK(found.size() < 2, "{}: has more than one pair of folders, {} and {}; name one of them",
              path.string(), found[0], found[1]);
  if (found.empty()) return std::nullopt;
  return pair_of(path / found[0]);
}

std::optional<fs::path> repa_folder(const fs::path& path) {
  for (const fs::path& folder : {path / "vae-sd", path}) {
    std::error_code unreadable;
    if (!fs::is_regular_file(folder / kRepaList, unreadable)) continue;
    for (const std::string& name : names_in(folder)) {
      if (has_arrays(folder / name)) return folder;
    }
  }
  return std::nullopt;
}

LatentSource open_fastdit(const fs::path& path, const LatentReadOptions& options) {
  const FeatureFolders folders = feature_folders(path).value();
  DYDIT_CHECK(is_folder(folders.labels), "{}: is missing beside {}; the labels of the latents lie there",
              folders.labels.string(), folders.features.filename().string());
  const auto features = std::make_shared<const Files>(folders.features, kNpy);
  const Files labels(folders.labels, kNpy);
  check_pairs(*features, labels, folders);
  LatentSource source =
      source_of(LatentLayout::FastDit, {features, whole_file, Second::Nothing}, options.threads);
  source.info.scaled = true;
  source.info.scale.scaling = kStableDiffusionScale;
  std::vector<int> classes(labels.files.size());
  parallel_for(labels.size(), options.threads, [&](int64_t i) {
    classes[static_cast<size_t>(i)] = label_in(labels.read(i), labels.path(i));
  });
  set_numbered(source, std::move(classes));
  return source;
}

LatentSource open_repa(const fs::path& path, const LatentReadOptions& options) {
  const fs::path folder = repa_folder(path).value();
  const fs::path list = folder / kRepaList;
  std::map<std::string, int64_t> labels = repa_labels(list);
  const auto files = std::make_shared<const Files>(folder, kNpy);
  std::vector<int> classes;
  for (const std::string& name : files->names) {
    const auto found = labels.find(name);
    DYDIT_CHECK(found != labels.end(), "{}: has no label of {}", list.string(), quote(name));
    classes.push_back(checked_label(found->second, fmt::format("{}: {}", list.string(), printable(name))));
    labels.erase(found);
  }
  DYDIT_CHECK(labels.empty(), "{}: is missing, but {} has its label",
              (folder / labels.begin()->first).string(), kRepaList);
  LatentSource source = source_of(LatentLayout::Repa, {files, whole_file, Second::Std}, options.threads);
  source.info.scale.scaling = kStableDiffusionScale;
  set_numbered(source, std::move(classes));
  return source;
}

LatentSource open_mar(const fs::path& path, const LatentReadOptions& options) {
  const auto files = std::make_shared<const Files>(path, kNpz);
  LatentSource source = source_of(LatentLayout::Mar, {files, moments_of, Second::Logvar}, options.threads);
  source.info.flips = 2;
  source.info.scale.scaling = kMarScale;
  for (size_t i = 0; i < files->names.size(); ++i) {
    const std::string& name = files->names[i];
    const size_t slash = name.find('/');
    DYDIT_CHECK(slash != name.npos, "{}: lies beside the class folders; CLASS/NAME.npz is wanted",
                files->path(static_cast<int64_t>(i)));
    const std::string class_name = name.substr(0, slash);
    if (source.classes.names.empty() || source.classes.names.back() != class_name) {
      check_class_name(class_name, fmt::format("{}: the name of class folder", path.string()));
      source.classes.names.push_back(class_name);
    }
    source.labels.push_back(static_cast<int>(source.classes.names.size()) - 1);
  }
  return source;
}

}  // namespace dydit

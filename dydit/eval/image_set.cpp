#include "dydit/eval/image_set.h"

#include <memory>

#include <fmt/ranges.h>

#include "dydit/data/source.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"

namespace dydit {
namespace {

// As large as the largest network wants; a larger JPEG is read at a fraction of its size.
constexpr int kLargeSide = 1024;

std::string sha256_of(const std::filesystem::path& path, const ImageSource& source) {
  std::error_code unreadable;
  if (!std::filesystem::is_directory(path, unreadable)) return sha256_hex(MappedFile::open(path)->bytes());
  std::string lines;
  for (int64_t i = 0; i < static_cast<int64_t>(source.labels.size()); ++i)
    lines += fmt::format("{}  {}\n", sha256_hex(source.bytes(i).bytes), source.name(i));
  return sha256_hex(bytes_of(lines));
}

}  // namespace

ImageSet open_images(const std::filesystem::path& path, const std::string& split) {
  const auto source = std::make_shared<const ImageSource>(open_source(path, split, Labels::Optional));
  ImageSet set;
  set.size = static_cast<int64_t>(source->labels.size());
  set.labels.assign(source->labels.begin(), source->labels.end());
  set.class_names = source->classes.names;
  set.image = [source](int64_t index) { return source->image(index, kLargeSide); };
  set.sha256 = sha256_of(path, *source);
  set.notes = source->notes;
  for (const auto& [kind, files] : source->left_out.kinds)
    set.notes.push_back(fmt::format("left out {} {}", files, kind));
  return set;
}

}  // namespace dydit

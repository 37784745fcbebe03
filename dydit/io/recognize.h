// "What is this?" for files and folders that are not what a reader wanted: one table for all readers, so that
// a web page, a pointer or somebody else's format is called what it is, with the way out.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dydit {

struct Likeness {
  std::string what;       // "a Git LFS pointer (a text in place of the file)"
  std::string way_out;    // "fetch the file itself: git lfs pull"
  bool is_torch = false;  // a torch file, whole or damaged: its reader says more
};

/// By the content and, where that says nothing, by the name; nothing for what is not known. Knows the formats
/// that are read here, too. Never throws for damaged content.
std::optional<Likeness> recognize_file(std::span<const std::byte> bytes, const std::filesystem::path& path);

/// A folder that is no folder of diffusers and holds no index: by the names in it and below.
std::optional<Likeness> recognize_folder(const std::filesystem::path& folder);

/// Throws Error: "PATH: is a web page (HTML), WANTED; open its address in ..."; for what is not known
/// "PATH: is WANTED". `wanted` begins with "not ".
[[noreturn]] void refuse_file(std::span<const std::byte> bytes, const std::filesystem::path& path,
                              const std::string& wanted);
[[noreturn]] void refuse_folder(const std::filesystem::path& folder, const std::string& wanted);

/// What to add to an error about a damaged file whose name says that its download has not ended (.part,
/// .crdownload, .incomplete, ...); else empty.
std::string unfinished_download(const std::filesystem::path& path);

/// The name is one of a weight file: .safetensors, .pt, .pth, .ckpt, .bin, .th.
bool is_weight_name(std::string_view name);

/// The names in a folder in alphabetical order, those that begin with a point left out; at most `most`.
std::vector<std::string> names_in(const std::filesystem::path& folder, size_t most = 1000);

}  // namespace dydit

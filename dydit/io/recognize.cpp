// Signatures first, then texts, then archives whose members tell, then names. What a zip file holds is read
// by the same bounded reader as everywhere; nothing is unpacked.
#include "dydit/io/recognize.h"

#include <algorithm>
#include <array>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/tar.h"
#include "dydit/io/text.h"
#include "dydit/io/zip.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using namespace std::string_view_literals;

constexpr const char* kUnpack = "unpack it and name what lies in it";
constexpr const char* kConvert = "convert it to safetensors with the library that wrote it";
constexpr const char* kSaveStateDict = "load it in PyTorch and torch.save its state_dict()";
constexpr const char* kFetch = "fetch the file again";
constexpr const char* kWritePictures = "write its pictures to folders, each folder a class";
constexpr const char* kLfsPointer = "a Git LFS pointer (a small text in place of the file)";
constexpr const char* kLfsPull = "fetch the file itself: git lfs pull, or download it from its page";
constexpr const char* kPicture = "--data-path takes folders of pictures, each folder a class";

struct Signature {
  size_t offset;
  std::string_view bytes;
  const char* what;
  const char* way_out;
};

constexpr std::array kSignatures = {
    Signature{0, "version https://git-lfs.github.com/spec/"sv, kLfsPointer, kLfsPull},
    Signature{0, "version https://hawser.github.com/spec/"sv, kLfsPointer, kLfsPull},
    Signature{0, "GGUF"sv, "a GGUF file", kConvert},
    Signature{0, "lmgg"sv, "a GGML file", kConvert},
    Signature{0, "tjgg"sv, "a GGML file", kConvert},
    Signature{0, "fmgg"sv, "a GGML file", kConvert},
    Signature{0, "\x1f\x8b"sv, "a gzip file", kUnpack},
    Signature{0, "\xfd\x37zXZ\0"sv, "an xz file", kUnpack},
    Signature{0, "\x28\xb5\x2f\xfd"sv, "a zstd file", kUnpack},
    Signature{0, "BZh"sv, "a bzip2 file", kUnpack},
    Signature{0, "\x04\x22\x4d\x18"sv, "an lz4 file", kUnpack},
    Signature{0, "7z\xbc\xaf\x27\x1c"sv, "a 7z archive", kUnpack},
    Signature{0, "Rar!\x1a\x07"sv, "a rar archive", kUnpack},
    Signature{0, "\x89HDF\r\n\x1a\n"sv, "an HDF5 file (.h5, as Keras writes it)", kConvert},
    Signature{0, "\x93NUMPY"sv, "a numpy array (.npy)",
              "weights come as safetensors or .pt, images as .npz with arr_0 and arr_1"},
    Signature{0, "\x89PNG\r\n\x1a\n"sv, "a PNG image", kPicture},
    Signature{0, "\xff\xd8\xff"sv, "a JPEG image", kPicture},
    Signature{0, "GIF8"sv, "a GIF image", "convert it to PNG"},
    Signature{8, "WEBP"sv, "a WebP image", "convert it to PNG"},
    Signature{0, "II*\0"sv, "a TIFF image", "convert it to PNG"},
    Signature{0, "MM\0*"sv, "a TIFF image", "convert it to PNG"},
    Signature{4, "ftyp"sv, "a video, AVIF or HEIC file", "convert its pictures to PNG or JPEG"},
    Signature{0, "%PDF-"sv, "a PDF document", kFetch},
    Signature{0, "PAR1"sv, "a Parquet table", kWritePictures},
    Signature{0, "ARROW1"sv, "an Arrow table", kWritePictures},
    Signature{16, "\xde\xc0\xef\xbe"sv, "an LMDB database", kWritePictures},
    Signature{0, "SQLite format 3\0"sv, "an SQLite database", kFetch},
    Signature{0, "\177ELF"sv, "a program (ELF)", kFetch},
    Signature{0, "\xff\xfe"sv, "a text in UTF-16", "save it as UTF-8"},
    Signature{0, "\xfe\xff"sv, "a text in UTF-16", "save it as UTF-8"}};

constexpr std::array kUnfinished = {".part"sv,     ".partial"sv,    ".crdownload"sv, ".incomplete"sv,
                                    ".download"sv, ".opdownload"sv, ".aria2"sv,      ".!ut"sv};
constexpr std::array kWeightEndings = {".safetensors"sv, ".pt"sv, ".pth"sv, ".ckpt"sv, ".bin"sv, ".th"sv};
constexpr std::array kImageEndings = {".png"sv, ".jpg"sv, ".jpeg"sv, ".webp"sv, ".bmp"sv};

template <typename Endings>
bool ends_with_any(std::string_view name, const Endings& endings) {
  const std::string lower = lower_case(name);
  return std::any_of(endings.begin(), endings.end(), [&](auto ending) { return lower.ends_with(ending); });
}

bool contains_any(std::string_view text, std::initializer_list<std::string_view> parts) {
  return std::any_of(parts.begin(), parts.end(),
                     [&](std::string_view part) { return text.find(part) != text.npos; });
}

// HTML, XML, JSON, or any other text: what a server or an editor gives in place of a file.
std::optional<Likeness> recognize_text(std::string_view head, size_t size) {
  if (head.starts_with("\xEF\xBB\xBF")) head.remove_prefix(3);
  const size_t first = std::min(head.find_first_not_of(" \t\r\n"), head.size());
  const std::string start = lower_case(head.substr(first, 1024));
  if (start.starts_with("<!doctype html") || start.starts_with("<html") ||
      (start.starts_with("<") && start.find("<html") != start.npos)) {
    return Likeness{"a web page (HTML) in place of the file",
                    "open the address in a browser: it may want a log-in or a confirmation; then fetch the "
                    "file itself"};
  }
  if (start.starts_with("<?xml") || start.starts_with("<error"))
    return Likeness{"an XML document, perhaps a server's error message", kFetch};
  if (head.empty() || !std::all_of(head.begin(), head.end(), is_text_byte)) return std::nullopt;
  if (start.starts_with("{") || start.starts_with("[")) {
    if (start.find("\"weight_map\"") != start.npos)
      return Likeness{"the index of several safetensors files under another name",
                      "give it a name that ends in .index.json, beside its files"};
    if (start.find("\"_class_name\"") != start.npos)
      return Likeness{"a configuration of diffusers (JSON)", "name the folder that it lies in"};
    return Likeness{"JSON text", "a configuration or a server's message; name the weights themselves"};
  }
  // The cut may lie within a character.
  for (size_t cut = 0; cut < 4 && cut < head.size(); ++cut) {
    if (is_utf8(head.substr(0, head.size() - cut)))
      return Likeness{fmt::format("a text of {} bytes", size), "is it the right file?"};
  }
  return std::nullopt;
}

// TensorFlow's checkpoint index ends with LevelDB's magic number.
bool ends_as_leveldb(std::string_view text) {
  return text.size() >= 48 && text.ends_with("\x57\xfb\x80\x8b\x24\x75\x47\xdb"sv);
}

// Protobuf: field 1 (ir_version) a small number, field 2 (producer_name) a text.
bool is_onnx(std::string_view text) {
  return text.size() > 8 && text[0] == '\x08' && text[1] > 0 && text[1] < 20 && text[2] == '\x12' &&
         contains_any(text.substr(0, 64), {"pytorch", "onnx", "tf2onnx", "keras"});
}

// A map of texts, as flax's to_bytes writes it.
bool is_msgpack(std::string_view text) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  size_t key = 0;
  if (text.size() > 8 && at(0) > 0x80 && at(0) < 0x90) key = 1;
  if (text.size() > 8 && at(0) == 0xde) key = 3;
  if (key == 0 || at(key) < 0xa1 || at(key) > 0xbf) return false;
  const size_t length = at(key) - 0xa0u;
  return is_utf8(text.substr(key + 1, length)) && printable(text.substr(key + 1, length)).size() == length;
}

std::optional<Likeness> recognize_pickle(std::string_view text) {
  const std::string_view head = text.substr(0, 1024);
  if (contains_any(head, {"batch_label", "fine_labels", "label_names", "num_cases_per_batch"}))
    return Likeness{"a batch of CIFAR as a Python pickle",
                    "fetch the binary version (cifar-10-binary.tar.gz): --data-path reads it"};
  if (contains_any(head.substr(0, 32), {"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"sv}))
    return Likeness{"a torch file of the legacy format", "--model takes it", /*is_torch=*/true};
  return Likeness{"a Python pickle, but not one of torch.save",
                  "load it in Python and save the weights with torch.save"};
}

std::optional<Likeness> recognize_zip(std::span<const std::byte> bytes) {
  const std::string name = "zip";
  std::vector<std::string> names;
  try {
    const ZipArchive archive(bytes, name);
    for (const std::string_view member : archive.names()) names.emplace_back(member);
  } catch (const Error&) {
    return Likeness{"a zip file that is damaged or cut short", kFetch, /*is_torch=*/true};
  }
  const auto any = [&](auto&& test) { return std::any_of(names.begin(), names.end(), test); };
  const auto ends = [&](std::string_view ending) {
    return any([&](const std::string& member) { return member.ends_with(ending); });
  };
  if (ends("/constants.pkl")) return Likeness{"a TorchScript archive (torch.jit.save)", kSaveStateDict};
  if (ends("/data.pkl") || ends("data.pkl"))
    return Likeness{"a torch file", "--model takes it", /*is_torch=*/true};
  if (any([](const std::string& member) { return member.starts_with("word/") || member.starts_with("xl/"); }))
    return Likeness{"an office document", kFetch};
  if (ends(".npy"))
    return Likeness{"numpy arrays (.npz)",
                    "--data-path reads images and labels in it; weights come as "
                    "safetensors or .pt"};
  if (any([](const std::string& member) { return is_weight_name(member); }))
    return Likeness{"a zip archive of weights", "unzip it and name the weights in it"};
  if (any([](const std::string& member) { return ends_with_any(member, kImageEndings); }))
    return Likeness{"a zip archive of pictures", "--data-path takes it, when each folder in it is a class"};
  return Likeness{"a zip archive", "unzip it and name what lies in it"};
}

std::optional<Likeness> recognize_name(const std::string& name) {
  if (name.find("tfevents") != name.npos)
    return Likeness{"a TensorBoard event file", "dydit inspect reads it"};
  if (name.ends_with(".onnx")) return Likeness{"an ONNX model", kConvert};
  if (name.ends_with(".msgpack")) return Likeness{"weights of flax (msgpack)", kConvert};
  if (name.ends_with(".pb")) return Likeness{"a graph of TensorFlow", kConvert};
  if (name.ends_with(".tflite")) return Likeness{"a model of TensorFlow Lite", kConvert};
  if (name.find(".data-00000-of-") != name.npos || name.ends_with(".ckpt.index"))
    return Likeness{"a part of a TensorFlow checkpoint", kConvert};
  if (name.ends_with(".distcp"))
    return Likeness{"a part of a checkpoint of torch.distributed",
                    "make one file of its folder: python3 -m torch.distributed.checkpoint.format_utils "
                    "dcp_to_torch FOLDER model.pt"};
  return std::nullopt;
}

}  // namespace

bool is_weight_name(std::string_view name) { return ends_with_any(name, kWeightEndings); }

std::vector<std::string> names_in(const fs::path& folder, size_t most) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end && names.size() < most;
       it.increment(error)) {
    std::string name = it->path().filename().string();
    if (!name.starts_with(".")) names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string unfinished_download(const fs::path& path) {
  const std::string extension = path.extension().string();
  if (!ends_with_any(extension, kUnfinished)) return "";
  return fmt::format(" Its name ends in {}: the download has not ended.", printable(extension, 40));
}

std::optional<Likeness> recognize_file(std::span<const std::byte> bytes, const fs::path& path) {
  const std::string_view text = text_of(bytes);
  for (const Signature& signature : kSignatures) {
    if (text.size() > signature.offset && text.substr(signature.offset).starts_with(signature.bytes))
      return Likeness{signature.what, signature.way_out};
  }
  if (text.starts_with("PK\x03\x04") || text.starts_with("PK\x05\x06")) return recognize_zip(bytes);
  const FileKind kind = sniff_file_kind(bytes);
  if (kind == FileKind::Safetensors) return Likeness{"a safetensors file", "--model takes it"};
  if (kind == FileKind::TorchLegacy) return recognize_pickle(text);
  if (is_tar(bytes)) return Likeness{"a tar archive", kUnpack};
  if (ends_as_leveldb(text)) return Likeness{"the index of a TensorFlow checkpoint", kConvert};
  if (is_onnx(text)) return Likeness{"an ONNX model", kConvert};
  if (is_msgpack(text)) return Likeness{"weights of flax (msgpack)", kConvert};
  if (auto named = recognize_name(path.filename().string())) return named;
  const std::string_view head = text.substr(0, 4096);
  if (auto seen = recognize_text(head, text.size())) return seen;
  if (!head.empty() && head.find_first_not_of('\0') == head.npos)
    return Likeness{"full of zeros from its first byte on, as a download leaves it that only began", kFetch};
  if (!unfinished_download(path).empty())
    return Likeness{"a download that has not ended", "let it end, or begin it again"};
  return std::nullopt;
}

std::optional<Likeness> recognize_folder(const fs::path& folder) {
  const std::vector<std::string> names = names_in(folder);
  const auto any = [&](auto&& test) { return std::any_of(names.begin(), names.end(), test); };
  const auto has = [&](const fs::path& name) {
    std::error_code error;
    return fs::exists(folder / name, error);
  };
  const auto below = [&](const std::string& name) { return quote((folder / name).string()); };
  if (names.empty() && !has(".metadata")) return Likeness{"an empty folder", "was the download cut short?"};
  const auto unpacked = std::find_if(names.begin(), names.end(),
                                     [&](const std::string& name) { return has(name + "/data.pkl"); });
  if (has("data.pkl") || unpacked != names.end()) {
    fs::path clean = (has("data.pkl") ? folder : folder / *unpacked).lexically_normal();
    if (!clean.has_filename()) clean = clean.parent_path();
    return Likeness{
        "an unpacked torch file (data.pkl lies in it)",
        fmt::format("take the .pt as it was fetched, or pack it again: cd {} && zip -0 -r ../model.pt {}",
                    shell_quote(clean.has_parent_path() ? clean.parent_path().string() : "."),
                    shell_quote(clean.filename().string()))};
  }
  if (has(".metadata") || any([](const std::string& name) { return name.ends_with(".distcp"); }))
    return Likeness{"a checkpoint of torch.distributed (.distcp)",
                    fmt::format("make one file of it: python3 -m torch.distributed.checkpoint.format_utils "
                                "dcp_to_torch {} model.pt",
                                shell_quote(folder.string()))};
  if (any([](const std::string& name) { return name.starts_with("zero_pp_rank_"); }) ||
      has("zero_to_fp32.py"))
    return Likeness{"a checkpoint of DeepSpeed's ZeRO", "make one file of it with zero_to_fp32.py"};
  if (has("mp_rank_00_model_states.pt"))
    return Likeness{"a checkpoint of DeepSpeed", "name " + below("mp_rank_00_model_states.pt")};
  if (has("saved_model.pb") || any([](const std::string& name) { return name.ends_with(".ckpt.index"); }))
    return Likeness{"a model of TensorFlow", kConvert};
  if (has("flax_model.msgpack") || has("_METADATA") || has("_CHECKPOINT_METADATA"))
    return Likeness{"a checkpoint of flax", kConvert};
  if (has("checkpoints")) {
    std::string example;
    for (const std::string& name : names_in(folder / "checkpoints"))
      if (is_weight_name(name)) example = "checkpoints/" + name;
    return Likeness{"the folder of a training run", example.empty()
                                                        ? "it has no checkpoint yet"
                                                        : "name a checkpoint, such as " + below(example)};
  }
  std::vector<std::string> weights;
  for (const std::string& name : names)
    if (is_weight_name(name)) weights.push_back(printable(name, 60));
  if (weights.size() > 1) {
    const size_t all = weights.size();
    weights.resize(std::min<size_t>(all, 5));
    return Likeness{
        fmt::format("a folder of {} weight files", all),
        fmt::format("name one: {}{}", fmt::join(weights, ", "), all > weights.size() ? ", ..." : "")};
  }
  for (const std::string& name : names) {
    if (ends_with_any(name, kImageEndings)) return Likeness{"a folder of pictures", kPicture};
    for (const std::string& inner : names_in(folder / name, 20))
      if (ends_with_any(inner, kImageEndings))
        return Likeness{"a folder of folders of pictures", "--data-path takes it"};
  }
  return std::nullopt;
}

namespace {

[[noreturn]] void refuse(const std::optional<Likeness>& seen, const fs::path& path,
                         const std::string& wanted) {
  const std::string name = path.string();
  if (seen) throw Error(fmt::format("{}: is {}, {}; {}", name, seen->what, wanted, seen->way_out));
  throw Error(fmt::format("{}: is {}", name, wanted));
}

}  // namespace

void refuse_file(std::span<const std::byte> bytes, const fs::path& path, const std::string& wanted) {
  refuse(recognize_file(bytes, path), path, wanted);
}

void refuse_folder(const fs::path& folder, const std::string& wanted) {
  refuse(recognize_folder(folder), folder, wanted);
}

}  // namespace dydit

#include "targets.h"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/diffusers.h"
#include "dydit/io/file.h"
#include "dydit/io/image.h"
#include "dydit/io/inflate.h"
#include "dydit/io/jpeg.h"
#include "dydit/io/npz_reader.h"
#include "dydit/io/png.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/safetensors_index.h"
#include "dydit/io/tar.h"
#include "dydit/io/tfevents.h"
#include "dydit/io/tfevents_reader.h"
#include "dydit/io/torch_file.h"
#include "dydit/io/zip.h"
#include "hostile.h"
#include "latents.h"
#include "plan.h"
#include "repair.h"
#include "seeds.h"
#include "toml.h"

namespace dydit::fuzz {
namespace {

const std::string kFile = "FILE";  // how the readers are to call the input
// What the readers of packed data may unpack to: growing by doubling holds one and a half times as much.
constexpr uint64_t kMaxUnpacked = uint64_t{32} << 20;

volatile unsigned sink;

// Reads every byte, so that the sanitizer sees a span that reaches too far.
void touch(Bytes bytes) {
  unsigned sum = 0;
  for (const std::byte b : bytes) sum += std::to_integer<unsigned>(b);
  sink = sum;
}

// The first and the last element; a view has no element beyond them.
void touch(const TensorView& view) {
  if (view.numel() == 0) return;
  const size_t size = dtype_size(view.dtype);
  touch({view.data, size});
  int64_t last = 0;
  if (view.strides.empty()) last = view.numel() - 1;
  for (size_t i = 0; i < view.strides.size(); ++i) last += (view.shape[i] - 1) * view.strides[i];
  touch({view.data + static_cast<size_t>(last) * size, size});
}

void touch(const Image& image) { touch(std::as_bytes(std::span(image.pixels))); }

void read_safetensors(Bytes bytes) {
  for (const auto& [name, view] : parse_safetensors(bytes, kFile).tensors) touch(view);
}

void read_index(Bytes bytes) { parse_safetensors_index(bytes, kFile); }

void read_diffusers(Bytes bytes) {
  constexpr int64_t kClasses = 2;
  for (const std::string& label : parse_id2label(bytes, kClasses, kFile)) touch(bytes_of(label));
  touch(bytes_of(parse_diffusers_config(bytes, kFile).dump()));
}

void read_torch(Bytes bytes) {
  const TorchCheckpoint file = parse_torch_checkpoint(bytes, kFile);
  for (const TorchWeights& set : file.sets) {
    for (const auto& [name, view] : set.tensors) touch(view);
  }
  preferred_weights(file);
}

void read_npz(Bytes bytes) {
  const ZipArchive archive(bytes, kFile);
  // The arrays are read even where the list is refused.
  std::string refusal;
  try {
    for (const NpzEntry& entry : list_npz(archive, kFile)) npy_type_name(entry.header.type);
  } catch (const Error& error) {
    refusal = error.what();
  }
  for (const char* name : {"arr_0", "labels"}) {
    if (const auto array = read_npz_array(archive, name, kMaxUnpacked, kFile)) {
      touch(array->data);
      summarize_labels(*array);
    }
  }
  if (!refusal.empty()) throw Error(refusal);
}

void read_tar(Bytes bytes) {
  is_tar(bytes);
  for (const TarMember& member : parse_tar(bytes, kFile)) touch(member.bytes);
}

void read_events(Bytes bytes) {
  touch(bytes_of(kept_events(bytes, 500, kFile)));
  summarize_events(bytes, kFile);
}

void read_png(Bytes bytes) {
  // Both ways of reading, whatever the other one says.
  std::string refusal;
  try {
    parse_png_info(bytes, kFile);
  } catch (const Error& error) {
    refusal = error.what();
  }
  touch(with_channels(decode_image(bytes, kFile), 1));
  if (!refusal.empty()) throw Error(refusal);
}

void read_jpeg(Bytes bytes) { touch(with_channels(decode_image(bytes, kFile), 3)); }

void read_gzip(Bytes bytes) {
  if (!is_gzip(bytes)) throw Error(kFile + ": no gzip");
  touch(gunzip(bytes, kFile, kMaxUnpacked).bytes());
}

// Half of the arrays lie in the archive as they are.
void wrap_npy(std::string& npy) {
  npy = npz_archive(npy, npy.size() % 2 == 0 ? Packing::Stored : Packing::Deflated);
}

// What both kinds of torch files are made of: opcodes and the globals that matter.
std::vector<std::string> pickle_tokens(std::vector<std::string> more) {
  std::vector<std::string> tokens = {"(",
                                     "t",
                                     ")",
                                     "}",
                                     "u",
                                     "]",
                                     "e",
                                     "a",
                                     "s",
                                     "R",
                                     "b",
                                     "\x81",
                                     "\x85",
                                     "\x86",
                                     "\x87",
                                     "Q",
                                     "0",
                                     "1",
                                     "2",
                                     "N",
                                     "\x88",
                                     "\x89",
                                     "q\1",
                                     "h\1",
                                     "\x94",
                                     "\x93",
                                     "\x8f",
                                     "\x90",
                                     "\x91",
                                     "\x92",
                                     "d",
                                     "l",
                                     "ctorch\nFloatStorage\n",
                                     "ctorch._utils\n_rebuild_tensor_v2\n",
                                     "ctorch._utils\n_rebuild_parameter\n",
                                     "ccollections\nOrderedDict\n",
                                     "ctorch\nSize\n",
                                     "cos\nsystem\n",
                                     "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
                                     "K\1",
                                     "G",
                                     "."};
  tokens.insert(tokens.end(), more.begin(), more.end());
  return tokens;
}

}  // namespace

std::vector<Target> all_targets() {
  return {
      {.name = "safetensors",
       .seeds = safetensors_seeds(),
       .tokens = {R"("dtype":)",
                  R"("shape":[)",
                  R"("data_offsets":[)",
                  R"("__metadata__":{)",
                  R"("F32")",
                  R"("BOOL")",
                  R"("":{)",
                  "]",
                  "}",
                  ",",
                  "{",
                  "[",
                  "null",
                  "true",
                  "-1",
                  "1e9",
                  "18446744073709551615",
                  "\\u0000",
                  "\\ud800",
                  "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"},
       .hostile = hostile_safetensors(),
       .read = read_safetensors,
       .finish = repair_safetensors},
      {.name = "index",
       .seeds =
           {R"({"metadata":{"total_size":30},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})",
            R"({"weight_map": {"x.0": "m.safetensors"}})"},
       .tokens = {"\"weight_map\":{", "\"a\":\"b\",", "\"../b\"", "{", "}", "[", "]", "\"", ":", ",", "null",
                  "1e9", "\\u0000", "\\ud800"},
       .hostile = hostile_index(),
       .read = read_index},
      {.name = "diffusers",
       .seeds =
           {R"({"_class_name":"DiTTransformer2DModel","activation_fn":"gelu-approximate","attention_head_dim":8,)"
            R"("in_channels":4,"norm_eps":1e-05,"norm_type":"ada_norm_zero","num_attention_heads":3,)"
            R"("num_embeds_ada_norm":5,"num_layers":2,"out_channels":8,"patch_size":2,"sample_size":8})",
            R"({"_class_name":"DiTPipeline","id2label":{"0":"a","1":"b, c"},"transformer":["diffusers","x"]})"},
       .tokens = {"\"id2label\":{", "\"0\":\"a\",", "\"num_layers\":", "{", "}", "[", "]", "\"", ":", ",",
                  "null", "1e9", "-1", "4194304", "\\u0000", "\\ud800"},
       .hostile = hostile_index(),
       .read = read_diffusers,
       .refused_seeds = 1},
      {.name = "torch",
       .seeds = torch_seeds(),
       .tokens = {"PK\1\2", "PK\3\4", "PK\5\6", "PK\6\6", "PK\6\7", "m/data/0", "m/data.pkl",
                  "\xff\xff\xff\xff", std::string("\1\0\x18\0", 4)},
       .hostile = {},
       .read = read_torch},
      {.name = "pickle",
       .seeds = pickle_seeds(),
       .tokens = pickle_tokens({}),
       .hostile = hostile_pickles(),
       .read = read_torch,
       .finish = [](std::string& pickle) { pickle = torch_archive(pickle); },
       .when = Finish::Always},
      {.name = "legacy",
       .seeds = legacy_seeds(),
       .tokens = pickle_tokens({"\x80\2", "K\4", "X\1", "storage", "ctorch\nHalfStorage\n",
                                "ctorch\nLongStorage\n", "ctorch._utils\n_rebuild_tensor\n", "little_endian",
                                std::string("\4\0\0\0\0\0\0\0", 8)}),
       .hostile = hostile_legacy(),
       .read = read_torch},
      {.name = "npz",
       .seeds = npz_seeds(),
       .tokens = {"PK\1\2", "PK\3\4", "PK\5\6", "PK\6\6", "PK\6\7", "arr_0.npy", "labels.npy",
                  "\xff\xff\xff\xff", std::string("\1\0\x18\0", 4)},
       .hostile = hostile_npz(),
       .read = read_npz},
      {.name = "npy",
       .seeds = npy_seeds(),
       .tokens = {"'descr':", "'fortran_order': True", "False", "'shape': (", "(", ")", ",", "'", "{", "}",
                  "'<f8'", "'>i4'", "'|O'", "0", "999999999999999999"},
       .hostile = {},
       .read = read_npz,
       .finish = wrap_npy,
       .when = Finish::Always},
      {.name = "png",
       .seeds = png_seeds(),
       .tokens = {"IHDR", "IDAT", "IEND", "PLTE", "tRNS", "tEXt", "zTXt", "iTXt", "gAMA", "cHRM", "iCCP",
                  "sRGB", "eXIf", png_chunk("IEND", ""), png_chunk("tEXt", std::string("a\0b", 3))},
       .hostile = hostile_png(),
       .read = read_png,
       .finish = repair_png},
      {.name = "jpeg",
       .seeds = jpeg_seeds(),
       .tokens = {"\xff\xd8", "\xff\xd9", "\xff\xda", "\xff\xc0", "\xff\xc1", "\xff\xc2", "\xff\xc4",
                  "\xff\xc9", "\xff\xca", "\xff\xdb", "\xff\xdd", "\xff\xd0", "\xff\xe0", "\xff\xee",
                  "\xff\xfe", std::string("\xff\x00", 2), std::string("\xff\xdd\0\4\0\1", 6)},
       .hostile = hostile_jpeg(),
       .read = read_jpeg},
      {.name = "tfevents",
       .seeds = event_seeds(),
       .tokens = {"\x08", "\x10", "\x1a", "\x2a", "\x0d", "\x09", "\x0b",
                  "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "brain.Event:2", event_record("")},
       .hostile = hostile_events(),
       .read = read_events,
       .finish = repair_events},
      {.name = "tar",
       .seeds = tar_seeds(),
       .tokens = {"ustar", "path=", "size=", "GNU.sparse.major=1", "x", "g", "L", "K", "S", "5", "\x80",
                  "77777777777", "99999999999"},
       .hostile = hostile_tar(),
       .read = read_tar,
       .finish = repair_tar},
      {.name = "gzip",
       .seeds = gzip_seeds(),
       .tokens = {"\x1f\x8b\x08", std::string("\x1f\x8b\x08\0\0\0\0\0\0\3", 10), "\xff\xff\xff\xff"},
       .hostile = hostile_gzip(),
       .read = read_gzip},
      latents_index_target(),
      latent_shard_target(),
      plan_target(),
      toml_target()};
}

}  // namespace dydit::fuzz

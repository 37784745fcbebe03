#include "hostile.h"

#include <fmt/format.h>

#include "dydit/io/bytes.h"
#include "seeds.h"
#include "tests/support/pickle_builder.h"

namespace dydit::fuzz {
namespace {

namespace pickle = test::pickle;

constexpr size_t kMiB = size_t{1} << 20;

std::string safetensors_header(const std::string& header) {
  std::string out;
  append_little<uint64_t>(out, header.size());
  return out + header;
}

std::string repeated(const std::string& part, size_t count) {
  std::string out;
  out.reserve(part.size() * count);
  for (size_t i = 0; i < count; ++i) out += part;
  return out;
}

std::string many(size_t count, const std::function<std::string(size_t)>& part) {
  std::string out;
  for (size_t i = 0; i < count; ++i) out += part(i);
  return out;
}

std::string long_text(size_t size, char fill) {
  std::string out = "X";
  append_little<uint32_t>(out, static_cast<uint32_t>(size));
  return out + std::string(size, fill);
}

std::string pickled(const std::string& value) { return torch_archive(pickle::pickle_of(value)); }

// {ema: {x: tensor, NAME: tensor ...}} with one long text, stored under memo number 0, in `count` places.
std::string shared_text(char fill, const std::string& place, size_t count) {
  return pickled("}(" + pickle::text("a") + long_text(4 * kMiB, fill) + "q" + std::string(1, '\0') +
                 pickle::text("ema") + "}(" + pickle::text("x") + pickle::tensor({}) + "q\1" +
                 repeated(place, count) + "u" + pickle::text("args") + "}(" +
                 repeated("h" + std::string(1, '\0') + "N", 60'000) + "uu");
}

}  // namespace

std::vector<Hostile> hostile_safetensors() {
  return {
      {"a name of 40 MB without an end",
       [] { return safetensors_header("{\"" + std::string(40'000'000, '\1')); }},
      {"a name of 40 MB", [] { return safetensors_header("{\"" + std::string(40'000'000, 'n') + "\":{}}"); }},
      {"a number of 40 MB",
       [] { return safetensors_header("{\"a\":{\"shape\":[" + std::string(40'000'000, '1') + "]}}"); }},
      {"nested arrays", [] { return safetensors_header("{\"a\":" + std::string(4'000'000, '[')); }},
      {"65,000 tensors",
       [] {
         return safetensors_header(
             "{" +
             many(65'000,
                  [](size_t i) {
                    return fmt::format("\"{}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}},",
                                       i);
                  }) +
             "\"__metadata__\":{}}");
       }},
      {"70,000 words of metadata", [] {
         return safetensors_header("{\"__metadata__\":{" +
                                   many(70'000, [](size_t i) { return fmt::format("\"{}\":\"\",", i); }) +
                                   "\"x\":\"\"}}");
       }}};
}

std::vector<Hostile> hostile_index() {
  return {{"nested arrays", [] { return "{\"weight_map\":" + std::string(2 * kMiB - 100, '['); }},
          {"as many names as fit", [] {
             return "{\"weight_map\":{" +
                    many(150'000, [](size_t i) { return fmt::format("\"{}\":\"\",", i); }) + "\"x\":\"\"}}";
           }}};
}

std::vector<Hostile> hostile_pickles() {
  const std::string zero(1, '\0');
  return {{"20 M items from one value", [] { return pickled("](" + std::string(20 * kMiB, 'N') + "e"); }},
          {"20 M marks", [] { return pickled(std::string(20 * kMiB, '(')); }},
          {"as many values as may be", [] { return pickled("](" + std::string(2 * kMiB, '}') + "e"); }},
          {"a memo number of 4 M",
           [] {
             std::string put = "r";
             append_little<uint32_t>(put, static_cast<uint32_t>(4 * kMiB));
             return pickled(repeated("N0", 2 * kMiB) + "N" + put);
           }},
          {"nested tuples", [] { return pickled("N" + std::string(500'000, '\x85')); }},
          {"one name of 4 MiB for 60,000 tensors",
           [zero] { return shared_text('n', "h" + zero + "h\1", 60'000); }},
          {"one name of 4 MiB that is no UTF-8", [zero] { return shared_text('\xff', "", 0); }},
          {"one storage key of 4 MiB for 60,000 tensors", [zero] {
             const std::string storage = "(" + pickle::text("storage") +
                                         pickle::global("torch", "FloatStorage") + "h" + zero +
                                         pickle::text("cpu") + "K\1tQq\2";
             return pickled(
                 "}(" + pickle::text("a") + long_text(4 * kMiB, 'k') + "q" + zero + "u0" + storage + "0}(" +
                 many(20'000,
                      [](size_t i) {
                        return pickle::text(std::to_string(i)) + "ctorch._utils\n_rebuild_tensor_v2\n(h\2K" +
                               std::string(1, '\0') + "))\x89NtR";
                      }) +
                 "u");
           }}};
}

std::vector<Hostile> hostile_legacy() {
  const auto object = [](const std::string& value) { return legacy_stream(pickle::pickle_of(value), 1, 1); };
  return {{"500,000 values four times",
           [] { return repeated(pickle::pickle_of("](" + std::string(500'000, '}') + "e"), 4); }},
          {"60,000 storages",
           [object] {
             return object("](" +
                           many(60'000,
                                [](size_t i) {
                                  return "(" + pickle::text("storage") +
                                         pickle::global("torch", "ByteStorage") +
                                         pickle::text(std::to_string(i)) + pickle::text("cpu") + "K\1NtQ";
                                }) +
                           "e");
           }},
          {"a storage of 2^62 elements", [object] {
             const std::string storage = "(" + pickle::text("storage") +
                                         pickle::global("torch", "FloatStorage") + pickle::text("0") +
                                         pickle::text("cpu") + pickle::number(int64_t{1} << 62) + "NtQ";
             std::string file = object(storage);
             const size_t numel = file.size() - 18;
             return file.replace(numel, 8, std::string(7, '\0') + "\x40");
           }}};
}

std::vector<Hostile> hostile_npz() {
  const auto claim = [](uint64_t size) {
    return test::build_zip({{"arr_0.npy", deflated(std::string(100'000, 'a'), -15), 8, size}},
                           test::ZipForm::Zip64);
  };
  return {
      {"64 GiB claimed", [claim] { return claim(uint64_t{1} << 36); }},
      {"2^64 - 1 bytes claimed", [claim] { return claim(~uint64_t{0}); }},
      {"31 MiB of zeros",
       [] {
         return test::build_zip({{"arr_0.npy", deflated(std::string(31 * kMiB, '\0'), -15), 8, 31 * kMiB}});
       }},
      {"4,000 arrays, each with a deflated header of 4,000 bytes",
       [] {
         std::string npy("\x93NUMPY\1\0", 8);
         append_little<uint16_t>(npy, 4'000);
         npy += std::string(3'950, ' ') + "{'descr':'|u1','fortran_order':False,'shape':(0,)}";
         const std::string packed = deflated(npy, -15);
         std::vector<test::ZipMember> members;
         for (int i = 0; i < 4'000; ++i)
           members.push_back({std::to_string(i) + ".npy", packed, 8, npy.size()});
         return test::build_zip(members);
       }},
      {"60,000 members",
       [] {
         std::vector<test::ZipMember> members;
         for (int i = 0; i < 60'000; ++i) members.push_back({std::to_string(i), ""});
         return test::build_zip(members, test::ZipForm::Zip64);
       }},
      {"a header of 8 MiB", [] {
         std::string npy("\x93NUMPY\2\0", 8);
         append_little<uint32_t>(npy, static_cast<uint32_t>(8 * kMiB));
         return npz_archive(npy + "{'descr': '" + std::string(8 * kMiB - 11, 'u'), Packing::Stored);
       }}};
}

std::vector<Hostile> hostile_tar() {
  return {{"8 GiB claimed", [] { return tar_header("a", '0', 077777777777) + std::string(1024, '\0'); }},
          {"100,000 members",
           [] { return repeated(tar_header("a", '0', 0), 100'000) + std::string(1024, '\0'); }},
          {"a long name of 16 MiB, three times",
           [] {
             const std::string name = tar_header("n", 'L', 16 * kMiB) + std::string(16 * kMiB, 'n');
             return repeated(name, 3) + tar_header("a", '0', 0) + std::string(1024, '\0');
           }},
          {"a pax header of 200,000 paths", [] {
             const std::string records = repeated("10 path=a\n", 200'000);
             return tar_header("x", 'x', records.size()) + records + std::string(1024, '\0');
           }}};
}

std::vector<Hostile> hostile_gzip() {
  return {{"64 MiB of zeros", [] { return deflated(std::string(64 * kMiB, '\0'), 31); }},
          {"4 GiB claimed at its end",
           [] {
             return deflated(std::string(kMiB, '\0'), 31)
                 .replace(1000, 4, "\xff\xff\xff\xff")
                 .append("\xff\xff\xff\xff");
           }},
          {"100,000 empty members", [] { return repeated(deflated("", 31), 100'000); }}};
}

std::vector<Hostile> hostile_events() {
  // A field of bytes in protobuf.
  const auto field = [](char key, const std::string& bytes) {
    std::string out(1, key);
    size_t size = bytes.size();
    for (; size >= 0x80; size >>= 7) out += static_cast<char>(size | 0x80);
    return out + static_cast<char>(size) + bytes;
  };
  const auto value = [field](const std::string& tag) {
    return field('\x0a', field('\x0a', tag) + std::string("\x15\0\0\0\0", 5));
  };
  return {{"a length of 2^63",
           [] {
             std::string record = event_record(std::string(100, '\0'));
             record[7] = '\x80';
             return record;
           }},
          {"200,000 tags",
           [=] {
             return event_record(
                 field('\x2a', many(200'000, [&](size_t i) { return value(std::to_string(i)); })));
           }},
          {"1,000,000 values of one tag",
           [=] { return event_record(field('\x2a', repeated(value("loss"), 1'000'000))); }},
          {"1,000,000 empty records", [] { return repeated(event_record(""), 1'000'000); }},
          {"a record of 30 MiB", [] { return event_record("\x1a" + std::string(30 * kMiB, '\x7f')); }}};
}

std::vector<Hostile> hostile_png() {
  const auto text_bomb = [](size_t count) {
    const std::string bomb = std::string(2, '\0') + deflated(std::string(kMiB - 100, '\xe9'), 15);
    return png_file(
        {.chunks = many(count, [&](size_t i) { return png_chunk("zTXt", std::to_string(i) + bomb); })});
  };
  return {{"65,535 x 65,535 pixels", [] { return png_file({.width = 65'535, .height = 65'535}, "\1"); }},
          {"4,096 x 4,096 pixels of zeros",
           [] { return png_file({.width = 4096, .height = 4096}, std::string(4096 * 12'289, '\0')); }},
          {"3,000 x 3,000 pixels of 16 bits, interlaced",
           [] {
             return png_file({.width = 3000, .height = 3000, .depth = 16, .color = 6, .interlace = 1},
                             std::string(3000 * 24'100, '\0'));
           }},
          {"4,096 x 4,096 pixels, but none there",
           [] { return png_file({.width = 4096, .height = 4096}, "\1"); }},
          {"16 texts that unfold to 1 MiB each", [text_bomb] { return text_bomb(16); }},
          {"60 texts that unfold to 1 MiB each", [text_bomb] { return text_bomb(60); }}};
}

std::vector<Hostile> hostile_jpeg() {
  // Sides are 16-bit numbers behind the frame marker FF C0 (baseline) or FF C2 (progressive).
  const auto resized = [](std::string file, uint32_t height, uint32_t width) {
    for (const char* marker : {"\xff\xc0", "\xff\xc2"}) {
      const size_t at = file.find(marker);
      if (at != file.npos) file.replace(at + 5, 4, big_endian(height, 2) + big_endian(width, 2));
    }
    return file;
  };
  // The last scan of an image of one colour has nothing but runs of ends of blocks, and may be read again.
  const auto with_scans = [](int side, int channels, int count) {
    const std::string file =
        jpeg_file({.side = side, .channels = channels, .progressive = true, .flat = true});
    const size_t last = file.rfind("\xff\xda");
    const std::string scan = file.substr(last, file.size() - 2 - last);
    return file.substr(0, file.size() - 2) + repeated(scan, static_cast<size_t>(count)) + "\xff\xd9";
  };
  const std::vector<std::string> seeds = jpeg_seeds();
  const std::string baseline = seeds[0], progressive = seeds[2];
  return {{"65,500 x 65,500 pixels", [=] { return resized(baseline, 65'500, 65'500); }},
          {"4,096 x 4,096 pixels, most of them missing", [=] { return resized(baseline, 4096, 4096); }},
          {"4,096 x 4,096 pixels of one colour", [] { return jpeg_file({.side = 4096, .flat = true}); }},
          {"4,096 x 4,096 pixels, progressive", [=] { return resized(progressive, 4096, 4096); }},
          {"3,000 x 3,000 pixels of one colour, progressive",
           [] { return jpeg_file({.side = 3000, .progressive = true, .flat = true}); }},
          {"4,096 x 4,096 gray pixels, progressive, 90 more scans", [=] { return with_scans(4096, 1, 90); }},
          {"1,000 scans", [=] { return with_scans(9, 3, 1000); }}};
}

}  // namespace dydit::fuzz

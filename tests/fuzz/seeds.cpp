#include "seeds.h"

#include <bit>

#include <fmt/format.h>
#include <zlib.h>

#include "dydit/io/tfevents.h"
#include "repair.h"
#include "targets.h"
#include "tests/support/archives.h"
#include "tests/support/pickle_builder.h"

namespace dydit::fuzz {
namespace {

using test::ZipForm;
using test::ZipMember;
namespace pickle = test::pickle;

std::string safetensors_file(const std::string& header, size_t data_bytes) {
  std::string out;
  append_little<uint64_t>(out, header.size());
  return out + header + std::string(data_bytes, '\1');
}

uint32_t masked_crc(const std::string& text) {
  const uint32_t crc = crc32c(bytes_of(text));
  return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

std::string npy_file(char version, const std::string& header, const std::string& data) {
  std::string out = std::string("\x93NUMPY") + version + '\0';
  if (version == 1)
    append_little<uint16_t>(out, static_cast<uint16_t>(header.size()));
  else
    append_little<uint32_t>(out, static_cast<uint32_t>(header.size()));
  return out + header + data;
}

ZipMember member_of(const std::string& name, const std::string& bytes, Packing packing) {
  if (packing == Packing::Stored) return {name, bytes};
  const auto crc = crc32(0, reinterpret_cast<const Bytef*>(bytes.data()), static_cast<uInt>(bytes.size()));
  return {name, deflated(bytes, -15), 8, bytes.size(), static_cast<uint32_t>(crc)};
}

std::string tar_member(const std::string& name, char type, const std::string& bytes) {
  std::string out = tar_header(name, type, bytes.size()) + bytes;
  out.resize((out.size() + 511) / 512 * 512);
  return out;
}

std::string pax_record(const std::string& text) {
  const std::string record = " " + text + "\n";
  return std::to_string(record.size() + 2) + record;  // of 10 to 97 characters
}

}  // namespace

std::string deflated(const std::string& bytes, int window) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, window, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, bytes.size()) + 32, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::vector<std::string> safetensors_seeds() {
  return {safetensors_file(R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
                           R"("b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]},)"
                           R"("c":{"dtype":"I64","shape":[],"data_offsets":[22,30]}})",
                           30),
          safetensors_file(R"({"__metadata__":{"config":"{\"depth\": 2}","note":"gr\u00fc\u00df"},)"
                           R"("x.0":{"shape":[0,7],"data_offsets":[0,0],"dtype":"F64"},)"
                           R"("x.1":{"dtype":"BOOL","shape":[1,1,1,4],"data_offsets":[0,4]}}   )",
                           4),
          safetensors_file(
              R"({"q":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"r":{"dtype":"U8","shape":[1],)"
              R"("data_offsets":[2,3]},"s":{"dtype":"I8","shape":[1],"data_offsets":[3,4]},)"
              R"("t":{"dtype":"I16","shape":[1],"data_offsets":[4,6]},)"
              R"("u":{"dtype":"I32","shape":[1],"data_offsets":[6,10]}})",
              10),
          safetensors_file("{}", 0)};
}

std::vector<std::string> pickle_seeds() {
  using namespace pickle;
  const std::string weights = ordered_dict(
      {text("x"), tensor({}), text("y"),
       tensor({.sizes = {4}, .strides = {2}, .offset = 1, .numel = 8, .key = "1"}), text("z"),
       tensor(
           {.sizes = {}, .strides = {}, .numel = 8, .type = "LongStorage", .device = "cuda:0", .key = "1"})});
  const std::string options =
      global("argparse", "Namespace") + ")\x81" +
      dict({text("depth"), number(2), text("l"), list({real(0.5), "N", "\x88", "K\x07"}), text("d"),
            dict({text("s"), text("t")})}) +
      "b";
  const std::string parameter =
      call(global("torch._utils", "_rebuild_parameter"), tuple({tensor({}), "\x88", ordered_dict({})}));
  const std::string frame("\x95\0\0\0\0\0\0\0\0", 9);
  const std::string zero(1, '\0');
  return {pickle_of(dict({text("ema"), weights, text("args"), options})),
          pickle_of(dict({text("ema"), ordered_dict({text("x"), tensor({})}), text("metadata"),
                          dict({text("class_names"), text("[\"gr\xc3\xbcn\"]"), text("n"), number(1)})})),
          pickle_of(dict({text("model"), dict({text("p"), parameter}), text("ema"), "N", text("cfg"),
                          dict({text("n"), "M\x01\x02", text("b"), "J\xff\xff\xff\xff"})})),
          // memo, frames, sets, bytes and the other forms of protocols 4 and 5
          "\x80\x05" + frame + "}\x94(\x8c\x04" + "args\x94\x8f(K\x01K\x02\x90\x8c\x01o" + "(\x8c\x05" +
              "torch\x94\x8c\x04Size\x94\x93]K\x07" + "a\x85R\x91\x8c\x01" + "c" +
              "C\x02"
              "ab" +
              "h" + zero + "0" + "\x8c\x05model" + dict({"\x8c\x01x", tensor({})}) + "u.",
          pickle_of(ordered_dict({text("x"), tensor({.type = "HalfStorage"}), text("b"),
                                  tensor({.type = "BFloat16Storage"}), text("u"),
                                  tensor({.type = "ByteStorage"})})),
          pickle_of("}q" + zero + "(X\x01" + std::string(3, '\0') + "xq\x01" + tensor({}) + "r\x02" +
                    std::string(3, '\0') + "h\x01j\x02" + std::string(3, '\0') + "u"),
          pickle_of(dict({text("opt"),
                          list({"(K\x01K\x02l", "(X\x01" + std::string(3, '\0') + "kNd",
                                "(K\x01"
                                "1N",
                                "\x8b\x09" + std::string(3, '\0') + std::string(9, '\x7f'),
                                global("os", "system") + "(U\x02hitR", "K\x01K\x02\x86", "K\x01N\x88\x87"}),
                          text("model"), dict({text("x"), tensor({})})}))};
}

std::string torch_archive(const std::string& pickle) {
  return test::build_zip({{"m/data.pkl", pickle},
                          {"m/byteorder", "little"},
                          {"m/data/0", std::string(64, '\1')},
                          {"m/data/1", std::string(64, '\2')},
                          {"m/version", "3\n"}});
}

std::vector<std::string> torch_seeds() {
  std::vector<std::string> seeds;
  for (const std::string& pickle : pickle_seeds()) seeds.push_back(torch_archive(pickle));
  seeds.push_back(test::build_zip({{"m/data.pkl", pickle_seeds()[4]}, {"m/data/0", std::string(64, '\1')}},
                                  ZipForm::Zip64));
  return seeds;
}

std::string legacy_stream(const std::string& pickle, uint64_t numel, size_t size) {
  using namespace pickle;
  std::string out = pickle_of("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19") + pickle_of("M\xe9\x03") +
                    pickle_of(dict({text("protocol_version"), "M\xe9\x03", text("little_endian"), "\x88"})) +
                    pickle + pickle_of(list({text("0"), text("1")}));
  for (const char fill : {'\1', '\2'}) {
    append_little<uint64_t>(out, numel);
    out.append(numel * size, fill);
  }
  return out;
}

std::vector<std::string> legacy_seeds() {
  using namespace pickle;
  const auto stored = [](const std::string& type, const std::string& key, const std::string& view) {
    return tuple({text("storage"), global("torch", type), text(key), text("cpu"), "K\4", view}) + "Q";
  };
  const auto tensor = [&](const std::string& storage, const std::string& offset) {
    return call(global("torch._utils", "_rebuild_tensor_v2"),
                tuple({storage, offset, tuple({"K\2"}), tuple({"K\1"}), "\x89", ordered_dict({})}));
  };
  const auto old_tensor = [&](const std::string& storage) {
    return call(global("torch._utils", "_rebuild_tensor"),
                tuple({storage, "K\1", tuple({"K\1", "K\3"}), tuple({"K\3", "K\1"})}));
  };
  const std::string view = tuple({text("9"), "K\1", "K\3"});
  const std::string module =
      tuple({text("module"), global("models", "Net"), text("net.py"), text("class Net")}) + "Q";
  return {
      legacy_stream(pickle_of(dict({text("state_dict"),
                                    ordered_dict({text("a"), tensor(stored("FloatStorage", "0", "N"), "K\2"),
                                                  text("b"), old_tensor(stored("FloatStorage", "1", "N"))}),
                                    text("best"), real(91.5)})),
                    4, 4),
      legacy_stream(pickle_of(ordered_dict({text("a"), tensor(stored("HalfStorage", "0", view), "K\1"),
                                            text("b"), tensor(stored("HalfStorage", "1", "N"), number(0))})),
                    4, 2),
      legacy_stream(pickle_of(dict({text("net"), module, text("model"),
                                    dict({text("x"), tensor(stored("LongStorage", "1", "N"), "K\2"),
                                          text("y"), tensor(stored("LongStorage", "0", "N"), "K\2")})})),
                    4, 8)};
}

std::vector<std::string> npy_seeds() {
  return {
      npy_file(1, "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2, 2, 3), }\n",
               std::string(24, '\5')),
      npy_file(2, "{'descr': '<i8', 'fortran_order': False, 'shape': (3,)}", std::string(24, '\0')),
      npy_file(3, "{\"shape\": (), \"descr\": \"<f4\", \"fortran_order\": False}   \n", std::string(4, '\0')),
      npy_file(1, "{'descr': '|b1', 'fortran_order': False, 'shape': (0, 5)}", "")};
}

std::string npz_archive(const std::string& npy, Packing packing) {
  return test::build_zip({member_of("arr_0.npy", npy, packing)});
}

std::vector<std::string> npz_seeds() {
  const std::vector<std::string> arrays = npy_seeds();
  const std::string stored = npz_archive(arrays[0], Packing::Stored);
  std::string commented = stored;
  commented[commented.size() - 2] = 3;
  commented += "end";
  return {stored, npz_archive(arrays[0], Packing::Deflated), commented,
          test::build_zip({member_of("labels.npy", arrays[1], Packing::Deflated),
                           member_of("arr_0.npy", arrays[2], Packing::Stored)},
                          ZipForm::Zip64)};
}

std::string tar_header(const std::string& name, char type, uint64_t size) {
  return test::tar_header({name, "", type}, size);
}

std::vector<std::string> tar_seeds() {
  const std::string end(1024, '\0');
  std::string large = tar_header("b", '0', 3);
  large.replace(124, 12, "\x80" + std::string(10, '\0') + "\3");  // GNU's base 256
  std::string prefixed = tar_member("name", '0', "12");
  prefixed.replace(345, 6, "folder");
  std::string fixed = prefixed + large + std::string(512, 'c');
  repair_tar(fixed);
  return {tar_member("d/", '5', "") + tar_member("d/a", '0', "one") + tar_member("d/l", '2', "") + end,
          tar_member("././@LongLink", 'L', "long/name/x.png" + std::string(1, '\0')) +
              tar_member("s", '0', "1") + end,
          tar_member("pax", 'x', pax_record("path=n/x.png") + pax_record("size=000002")) +
              tar_member("s", '0', "12") + tar_member("g", 'g', pax_record("comment=free")) +
              tar_member("old/", '\0', "") + end,
          fixed + end};
}

std::vector<std::string> gzip_seeds() {
  const std::string text = "some text, some text, and some more text";
  const std::string member = deflated(text, 31);
  std::string named = member;
  named[3] = 8;  // a file name follows the header
  named.insert(10, std::string("a.tar\0", 6));
  return {member, member + member, member + std::string(20, '\0'), named,
          deflated(std::string(3000, 'a'), 31)};
}

std::string event_record(const std::string& event) {
  std::string out;
  append_little<uint64_t>(out, event.size());
  append_little(out, masked_crc(out));
  const uint32_t crc = masked_crc(event);
  out += event;
  append_little(out, crc);
  return out;
}

std::vector<std::string> event_seeds() {
  const std::string when = "\x09" + std::string(8, '\1');
  const std::string version = event_record(when + "\x1a\x0d" + "brain.Event:2");
  const std::string scalar = event_record(when +
                                          "\x10\x07\x2a\x0a\x0a\x08\x0a\x01"
                                          "a\x15\1\2\3\4");
  const std::string later = event_record(when + std::string("\x10\xe8\x07\x2a\x02\x0a\x00", 7));
  const std::string wide = event_record("\x10" + std::string(9, '\xff') + "\x01\x2d" + std::string(4, '\0'));
  return {version + scalar + later, version + scalar.substr(0, 20), wide + scalar,
          version + std::string(30, '\0')};
}

std::string big_endian(uint64_t value, int bytes) {
  std::string out;
  for (int i = bytes - 1; i >= 0; --i) out += static_cast<char>(value >> (8 * i));
  return out;
}

std::string png_chunk(const std::string& type, const std::string& data) {
  const std::string body = type + data;
  const auto crc = crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()));
  return big_endian(data.size(), 4) + body + big_endian(crc, 4);
}

}  // namespace dydit::fuzz

// What each reader says of each kind of damage: one input a message.
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "dydit/io/bytes.h"
#include "dydit/io/diffusers.h"
#include "dydit/io/file.h"
#include "dydit/io/image.h"
#include "dydit/io/inflate.h"
#include "dydit/io/jpeg.h"
#include "dydit/io/npz_reader.h"
#include "dydit/io/pickle.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/tar.h"
#include "dydit/io/tfevents_format.h"
#include "dydit/io/tfevents_reader.h"
#include "dydit/io/torch_file.h"
#include "dydit/io/zip.h"
#include "tests/support/archives.h"
#include "tests/support/pickle_builder.h"

namespace dydit {
namespace {

namespace pickle = test::pickle;
using test::bytes_of;
using test::expect_error;

// Cases of one reader: its input, and a part of what it says.
using Cases = std::vector<std::pair<std::string, std::string>>;

template <typename Read>
void expect_each(const Cases& cases, const Read& read) {
  for (const auto& [input, message] : cases) {
    SCOPED_TRACE(message);
    expect_error([&] { read(input); }, message);
  }
}

std::string replaced(std::string text, size_t at, const std::string& bytes) {
  return text.replace(at, bytes.size(), bytes);
}

TEST(Damage, OfPickles) {
  const auto body = [](const std::string& opcodes) { return "\x80\x02" + opcodes; };
  expect_each(
      Cases{
          {"}.", "it does not begin with a protocol number"},
          {"\x80\x01}.", "pickle protocol 1; 2 to 5 are known"},
          {body("X\x10"), "a.pt: damaged pickle at byte 3: 4 bytes wanted, 1 left"},
          {body("ccollections"), "a name without an end"},
          {body("."), "a value wanted, the stack is empty"},
          {body("t."), "a mark wanted, there is none"},
          {body("N\x86."), "a tuple's values wanted, the stack is empty"},
          {body("}(Nu."), "a key without a value"},
          {body("(Nu."), "a container wanted, the stack is empty"},
          {body("N(NNu."), "items for a None"},
          {body("a."), "an item wanted, the stack is empty"},
          {body(std::string("h\x05.")), "nothing under memo number 5"},
          {body(std::string("\x82\x01.")),
           "pickle opcode 0x82 (EXT1) at byte 2 is not one that torch writes"},
      },
      [](const std::string& bytes) { parse_pickle(bytes_of(bytes), "a.pt"); });
}

TEST(Damage, OfZipDirectories) {
  const std::string whole = test::build_zip({{"a", "one"}, {"b", "two"}});
  const std::string wide = test::build_zip({{"a", "one"}}, test::ZipForm::Zip64);
  const size_t end = whole.size() - zip::kDirectoryEndBytes;
  const size_t directory = whole.find(std::string("PK\x01\x02"));
  const size_t locator = wide.size() - zip::kDirectoryEndBytes - zip::kDirectoryLocator64Bytes;
  std::string size;
  append_little<uint32_t>(size, 1 << 20);
  expect_each(
      Cases{
          {"PK\x03\x04", "it has no directory"},
          {whole.substr(0, end), "it has no directory"},
          {replaced(whole, end + 16, size), "its directory lies outside the file"},
          {replaced(whole, end + 10, std::string("\x07\0", 2)), "its directory ends after 2 of 7 members"},
          {replaced(whole, directory + 28, std::string("\xff\x00", 2)),
           "entry 0 of its directory is cut off"},
          {replaced(wide, locator + 8, std::string(8, '\0')), "its ZIP64 directory is not where it says"},
          {test::build_zip({{"a", "1"}, {"a", "2"}}), "member \"a\" is listed twice"},
      },
      [](const std::string& bytes) { ZipArchive(bytes_of(bytes), "a.zip"); });
}

TEST(Damage, OfZipMembers) {
  const std::string whole = test::build_zip({{"a", "one"}});
  const size_t directory = whole.find(std::string("PK\x01\x02"));
  std::string size;
  append_little<uint32_t>(size, 1 << 20);
  expect_each(
      Cases{
          {replaced(whole, directory + 8, std::string("\x01\0", 2)),
           "is encrypted; save it without a password"},
          {replaced(whole, directory + 42, size), "member \"a\" is not where the directory says"},
          {replaced(whole, directory + 20, size), "member \"a\" of 1048576 bytes does not fit into the file"},
      },
      [](const std::string& bytes) { ZipArchive(bytes_of(bytes), "a.zip").find("a"); });
}

TEST(Damage, OfDeflatedMembers) {
  const std::string packed = test::deflated("some text of a member", -15);
  const uint64_t size = 21;
  expect_error([&] { inflate_raw(bytes_of(packed), size, /*crc=*/1, "a"); }, "damaged: wrong checksum");
  expect_error([&] { inflate_raw(bytes_of(packed), size - 1, 0, "a"); },
               "damaged: unpacks to 21 bytes, 20 were wanted (wrong size)");
  expect_error([&] { inflate_raw(bytes_of(packed.substr(0, 5)), size, 0, "a"); }, "it ends too early");
}

TEST(Damage, OfTars) {
  const std::string whole = test::build_tar({{"a", "one"}});
  const auto pax = [](const std::string& record) {
    return test::build_tar({{"pax", record, 'x'}, {"a", "1"}});
  };
  expect_each(
      Cases{
          {whole.substr(0, 1024), "it ends without its closing blocks"},
          {replaced(whole, 3, "x"), "the header after 0 members is wrong"},
          {pax("99 path=a\n"), "a pax header is wrong"},
          {pax("8 patha\n"), "a pax header has a record without '='"},
          {pax("11 size=xy\n"), "a pax header has a size that is no number"},
          {test::build_tar({{"a", "", 'S'}}), "is stored as a sparse file; make the tar without --sparse"},
          {pax("21 GNU.sparse.size=1\n"), "holds sparse files; make the tar without --sparse"},
      },
      [](const std::string& bytes) { parse_tar(bytes_of(bytes), "a.tar"); });
}

TEST(Damage, OfNpyHeaders) {
  const auto header = [](const std::string& text) {
    std::string out("\x93NUMPY\x01\x00", 8);
    append_little<uint16_t>(out, static_cast<uint16_t>(text.size()));
    return out + text;
  };
  std::string dimensions;
  for (int i = 0; i < 64; ++i) dimensions += "1, ";
  expect_each(
      Cases{
          {header("{'colour': 1}"), "damaged npy header: unknown key \"colour\""},
          {header("{'descr': '<f4'}"), "damaged npy header: no type or no shape"},
          {header("{'descr' '<f4'}"), "damaged npy header: \":\" is missing at"},
          {header("{'descr': 4}"), "a text in quotes is missing at"},
          {header("{'descr': '<f4', 'shape': (" + dimensions + ")}"),
           "damaged npy header: too many dimensions"},
          {header("{'descr': '<f4', 'shape': (x, )}"), "damaged npy header: a size is missing at"},
          {header("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }"),
           "is in Fortran order; save numpy.ascontiguousarray of it"},
      },
      [](const std::string& bytes) { parse_npy(bytes_of(bytes), "a.npy"); });
}

TEST(Damage, OfNpzMembers) {
  test::ZipMember two_sizes{"a.npy", test::npy("|u1", "(1,)", "x")};
  two_sizes.unpacked = 1000;
  const std::string bytes = test::build_zip({two_sizes});
  expect_error([&] { read_npz_array(ZipArchive(bytes_of(bytes), "a.npz"), "a", 1 << 20, "a.npz"); },
               "damaged: two sizes, 1000 and");
}

TEST(Damage, OfSafetensorsHeaders) {
  const auto file = [](const std::string& entry) {
    std::string out;
    const std::string header = "{\"t\":" + entry + "}";
    append_little<uint64_t>(out, header.size());
    return out + header;
  };
  expect_each(
      Cases{
          {file(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,0]})"),
           "tensor \"t\" has a size of 18446744073709551615, which is too large"},
          {file(R"({"dtype":true,"shape":[],"data_offsets":[0,4]})"), "a boolean"},
          {file(R"({"dtype":null,"shape":[],"data_offsets":[0,4]})"), "null"},
      },
      [](const std::string& bytes) { parse_safetensors(bytes_of(bytes), "a.safetensors"); });
}

TEST(Damage, OfWhatIsToBeWritten) {
  const test::TemporaryFolder folder;
  const std::vector<float> values(4);
  TensorView view{Dtype::F32, {2, 2}, {}, reinterpret_cast<const std::byte*>(values.data())};
  const auto write = [&](const std::string& name, const std::map<std::string, std::string>& metadata) {
    write_safetensors(folder / "a.safetensors", {{name, view}}, metadata);
  };
  expect_error([&] { write("__metadata__", {}); }, "no tensor may be named __metadata__; rename it");
  expect_error([&] { write("caf\xe9", {}); }, "a tensor's name or the metadata is not UTF-8");
  expect_error([&] { write("a", {{"key", "\xff"}}); }, "a tensor's name or the metadata is not UTF-8");
  view.strides = {1, 2};
  expect_error([&] { write("a", {}); }, "tensor \"a\" is strided; make it contiguous before writing");
  EXPECT_EQ(folder.file_count(), 0u);
}

TEST(Damage, OfTorchFiles) {
  using pickle::dict, pickle::tensor, pickle::text;
  pickle::TensorSpec strange;
  strange.type = "QUInt8Storage";
  std::string deep = "N";
  for (int i = 0; i < 80; ++i) deep = pickle::list({deep});
  const std::string no_storage =
      pickle::call(pickle::global("torch._utils", "_rebuild_tensor_v2"),
                   pickle::tuple({"N", pickle::number(0), pickle::tuple({}), pickle::tuple({}), "\x89",
                                  pickle::ordered_dict({})}));
  expect_each(
      Cases{
          {pickle::archive_of(dict({text("w"), tensor(strange)})),
           "which is not known here. Convert it to float32"},
          {pickle::archive_of(dict({text("w"), no_storage})), "a storage wanted, got a None"},
          {pickle::archive_of(dict({text("ema"), dict({pickle::number(7), tensor({})})})),
           "as a key; names are wanted"},
          {pickle::archive_of(
               dict({text("ema"), dict({text("w"), tensor({})}), text("args"), dict({text("deep"), deep})})),
           "its cfg or args is nested deeper than 64; save plain options"},
          {test::build_zip({{"m/version", "3\n"}}), "a zip file without a data.pkl"},
      },
      [](const std::string& bytes) { preferred_weights(parse_torch_checkpoint(bytes_of(bytes), "a.pt")); });
}

TEST(Damage, OfLegacyTorchStreams) {
  using namespace pickle;
  const std::string head =
      pickle_of("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19") + pickle_of("M\xe9\x03");
  const auto system = [](const char* little) { return pickle_of(dict({text("little_endian"), little})); };
  const std::string weights = pickle_of(dict({text("w"), tensor({})})) + pickle_of(list({text("0")}));
  expect_each(
      Cases{
          {head + system("\x89") + weights,
           "was saved on a big-endian machine; save it on a little-endian one"},
          {head + system("\x88") + weights, "ends before storage \"0\""},
      },
      [](const std::string& bytes) { parse_torch_checkpoint(bytes_of(bytes), "a.pt"); });
}

TEST(Damage, OfJpegs) {
  expect_error([] { parse_jpeg(bytes_of("\xff\xd8\xff and nothing more"), "a.jpg", DecodeOptions{}); },
               "a.jpg: broken JPEG file: ");
}

TEST(Damage, OfEventRecords) {
  const std::string no_event = "\x0b";  // the tag of a group, which no event has
  std::string record;
  append_little<uint64_t>(record, no_event.size());
  append_little<uint32_t>(record, tfevents::masked_crc(bytes_of(record)));
  record += no_event;
  append_little<uint32_t>(record, tfevents::masked_crc(bytes_of(no_event)));
  expect_error([&] { summarize_events(bytes_of(record), "events"); },
               "events: the record at byte 0 is no event");
}

TEST(Damage, OfConfigurationsOfDiffusers) {
  const std::string config = R"({"_class_name": "DiTTransformer2DModel", "num_attention_heads": "two"})";
  expect_error([&] { parse_diffusers_config(bytes_of(config), "config.json"); },
               "config.json: num_attention_heads is \"two\", expected a size");
}

TEST(Damage, OfFilesOnDisk) {
  const test::TemporaryFolder folder;
  std::ofstream(folder / "empty").flush();
  expect_error([&] { MappedFile::open(folder / "empty"); },
               "is empty (0 bytes); was the download cut short?");
  OutputFile file(folder / "a");
  file.commit();
  expect_error([&] { file.commit(); }, "a: is already committed");
  const FolderLock lock(folder / "");
  expect_error([&] { FolderLock another(folder / ""); },
               "another process is at work in this folder; let it end or stop it first");
}

}  // namespace
}  // namespace dydit

// What is not wanted is called what it is. Each row is a file of its own kind, and each kind has a neighbour.
#include "dydit/io/recognize.h"

#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "tests/support/archives.h"
#include "tests/support/files.h"
#include "tests/support/pickle_builder.h"

namespace dydit {
namespace {

using test::bytes_of;
using test::expect_error;
using test::write_file;

struct Row {
  std::string name, bytes, what;
};

std::string bytes(const char* text, size_t size) { return {text, size}; }

TEST(RecognizeFile, CallsEachKindByItsName) {
  const std::string rest(64, '\x01');
  for (const Row& row : std::vector<Row>{
           {"m.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "a Git LFS pointer"},
           {"m.pt", "<!DOCTYPE html>\n<html><body>Quota</body></html>", "a web page (HTML)"},
           {"m.pt", "\xEF\xBB\xBF \n<HTML lang=en>", "a web page (HTML)"},
           {"m.pt", "<!-- x --><html>", "a web page (HTML)"},
           {"m.pt", "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "an XML document"},
           {"m.pt", "{\"error\": \"Repository not found\"}", "JSON text"},
           {"m.json", "{\"metadata\": {}, \"weight_map\": {}}", "the index of several safetensors files"},
           {"config.json", "{\"_class_name\": \"DiTTransformer2DModel\"}", "a configuration of diffusers"},
           {"m.gguf", "GGUF" + rest, "a GGUF file"},
           {"m.bin", "lmgg" + rest, "a GGML file"},
           {"m.pt.gz", test::gzipped("x"), "a gzip file"},
           {"m.tar.xz", bytes("\xfd\x37zXZ\0", 6) + rest, "an xz file"},
           {"m.zst", "\x28\xb5\x2f\xfd" + rest, "a zstd file"},
           {"m.bz2", "BZh9" + rest, "a bzip2 file"},
           {"m.7z", "7z\xbc\xaf\x27\x1c" + rest, "a 7z archive"},
           {"m.rar", "Rar!\x1a\x07" + rest, "a rar archive"},
           {"m.h5", "\x89HDF\r\n\x1a\n" + rest, "an HDF5 file"},
           {"a.npy", "\x93NUMPY" + rest, "a numpy array (.npy)"},
           {"a.npz", test::build_zip({{"arr_0.npy", "x"}}), "numpy arrays (.npz)"},
           {"a.png", "\x89PNG\r\n\x1a\n" + rest, "a PNG image"},
           {"a.jpg", "\xff\xd8\xff\xe0" + rest, "a JPEG image"},
           {"a.webp", "RIFF" + bytes("\1\0\0\0", 4) + "WEBPVP8 ", "a WebP image"},
           {"train.parquet", "PAR1" + rest, "a Parquet table"},
           {"m.onnx", "\x08\x08\x12\x07pytorch" + rest, "an ONNX model"},
           {"flax_model.msgpack", "\x82\xa6params\x81\xa1x\x01" + rest, "weights of flax"},
           {"m.ckpt.index", rest + "\x57\xfb\x80\x8b\x24\x75\x47\xdb",
            "the index of a TensorFlow checkpoint"},
           {"data_batch_1",
            "\x80\x02}q\x01(U\x0b"
            "batch_labelq\x02U\x15training batch 1 of 5",
            "a batch of CIFAR"},
           {"test",
            "\x80\x02}q\x01(U\x0b"
            "fine_labelsq\x02",
            "a batch of CIFAR"},
           {"x.pkl", test::pickle::pickle_of("}"), "a Python pickle, but not one of torch.save"},
           {"s.pt",
            test::build_zip({{"s/constants.pkl", "x"}, {"s/code/__torch__.py", "x"}, {"s/data.pkl", "x"}}),
            "a TorchScript archive"},
           {"m.zip", test::build_zip({{"out/", ""}, {"out/ema.safetensors", "x"}}),
            "a zip archive of weights"},
           {"p.zip", test::build_zip({{"cat/1.PNG", "x"}, {"dog/1.jpg", "x"}}), "a zip archive of pictures"},
           {"d.docx", test::build_zip({{"word/document.xml", "x"}}), "an office document"},
           {"c.zip", test::build_zip({{"m/data.pkl", "x"}}).substr(0, 60),
            "a zip file that is damaged or cut short"},
           {"0.distcp", rest, "a part of a checkpoint of torch.distributed"},
           {"saved_model.pb", rest, "a graph of TensorFlow"},
           {"m.safetensors.crdownload", rest, "a download that has not ended"},
           {"m.safetensors", std::string(5000, '\0'), "full of zeros"},
           {"names.txt", "cat\ndog\n", "a text of 8 bytes"}}) {
    const auto seen = recognize_file(bytes_of(row.bytes), row.name);
    ASSERT_TRUE(seen) << row.name << " " << row.what;
    EXPECT_TRUE(seen->what.starts_with(row.what)) << seen->what << "; wanted " << row.what;
    EXPECT_FALSE(seen->way_out.empty());
  }
}

TEST(RecognizeFile, OfNothingKnownSaysNothing) {
  EXPECT_FALSE(recognize_file(bytes_of("\x01\x02\x03"), "m.pt"));
  EXPECT_FALSE(recognize_file({}, "m.pt"));
  expect_error([] { refuse_file(bytes_of("\x01\x02\x03"), "m.pt", "not a weight file"); },
               "m.pt: is not a weight file");
}

TEST(RecognizeFile, TheErrorHasTheWayOut) {
  expect_error([] { refuse_file(bytes_of("GGUF"), "m.pt", "not weights"); },
               "m.pt: is a GGUF file, not weights; convert it to safetensors");
}

class RecognizeFolder : public testing::Test {
 protected:
  void expect_what(const std::vector<std::string>& files, const std::string& part) {
    test::TemporaryFolder top;
    std::filesystem::create_directory(top / "m");
    for (const std::string& file : files) write_file(top / ("m/" + file), "x");
    const auto seen = recognize_folder(top / "m");
    ASSERT_TRUE(seen) << part;
    const std::string all = seen->what + "; " + seen->way_out;
    EXPECT_NE(all.find(part), all.npos) << all << "; wanted " << part;
  }
};

TEST_F(RecognizeFolder, CallsEachKindByItsName) {
  expect_what({}, "an empty folder");
  expect_what({"data.pkl", "data/0"}, "an unpacked torch file");
  expect_what({"archive/data.pkl", "archive/data/0"}, "zip -0 -r ../model.pt archive");
  expect_what({".metadata", "__0_0.distcp"}, "dcp_to_torch");
  expect_what({"mp_rank_00_model_states.pt"}, "mp_rank_00_model_states.pt");
  expect_what({"mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"}, "zero_to_fp32.py");
  expect_what({"saved_model.pb", "variables/variables.index"}, "a model of TensorFlow");
  expect_what({"flax_model.msgpack"}, "a checkpoint of flax");
  expect_what({"log.txt", "checkpoints/0000100.safetensors", "checkpoints/0000200.safetensors"},
              "checkpoints/0000200.safetensors");
  expect_what({"a.pt", "b.safetensors"}, "name one: a.pt, b.safetensors");
  expect_what({"cat/1.png", "dog/1.png"}, "a folder of folders of pictures");
}

}  // namespace
}  // namespace dydit

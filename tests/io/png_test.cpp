// PNG: pixels and text survive, broken files are refused.
#include "dydit/io/png.h"

#include <cstring>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <png.h>
#include <zlib.h>

#include "tests/support/files.h"

namespace dydit {
namespace {

using test::bytes_of;
using test::contents;
using test::expect_error;
using test::TemporaryFolder;

Image test_image(int height, int width, int channels) {
  Image image{height, width, channels, {}};
  for (int i = 0; i < height * width * channels; ++i) image.pixels.push_back(static_cast<uint8_t>(i * 7));
  return image;
}

std::string png_of(const Image& image, const PngText& text) {
  TemporaryFolder folder;
  write_png(folder / "a.png", image, text);
  return contents(folder / "a.png");
}

PngInfo parse(const std::string& file) { return parse_png_info(bytes_of(file), "a.png"); }

std::string big_endian(uint32_t value) {
  std::string out;
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift);
  return out;
}

std::string chunk(const std::string& type, const std::string& data) {
  const std::string body = type + data;
  const auto crc = crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()));
  return big_endian(static_cast<uint32_t>(data.size())) + body + big_endian(static_cast<uint32_t>(crc));
}

// libpng's simplified reader, as an independent eye on the pixels.
std::vector<uint8_t> decoded(const std::string& file, uint32_t format) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  EXPECT_NE(png_image_begin_read_from_memory(&image, file.data(), file.size()), 0);
  image.format = format;
  std::vector<uint8_t> pixels(PNG_IMAGE_SIZE(image));
  EXPECT_NE(png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr), 0);
  return pixels;
}

TEST(Png, RgbPixelsSurvive) {
  const Image image = test_image(5, 3, 3);
  EXPECT_EQ(decoded(png_of(image, {}), PNG_FORMAT_RGB), image.pixels);
}

TEST(Png, GrayPixelsSurvive) {
  const Image image = test_image(4, 7, 1);
  EXPECT_EQ(decoded(png_of(image, {}), PNG_FORMAT_GRAY), image.pixels);
}

TEST(Png, TextAndSizeComeBack) {
  const PngText text = {{"class", "207"}, {"empty", ""}, {"title", "gr\xc3\xbc\xc3\x9f dich \xe2\x82\xac"}};
  const PngInfo info = parse(png_of(test_image(5, 3, 3), text));
  EXPECT_EQ(info.height, 5);
  EXPECT_EQ(info.width, 3);
  EXPECT_EQ(info.channels, 3);
  EXPECT_EQ(info.text, text);
}

TEST(Png, AsciiGoesIntoTextAndTheRestIntoInternationalTextBeforeThePixels) {
  const std::string file = png_of(test_image(1, 1, 1), {{"a", "x"}, {"b", "\xc3\xbc"}});
  EXPECT_LT(file.find("tEXta"), file.find("IDAT"));
  EXPECT_LT(file.find("iTXtb"), file.find("IDAT"));
}

TEST(Png, TextAfterThePixelsAndCompressedTextAreRead) {
  std::string value(3000, 'z');
  std::string packed(100, '\0');
  uLongf size = packed.size();
  ASSERT_EQ(compress(reinterpret_cast<Bytef*>(packed.data()), &size,
                     reinterpret_cast<const Bytef*>(value.data()), value.size()),
            Z_OK);
  packed.resize(size);
  std::string file = png_of(test_image(2, 2, 3), {});
  file.insert(file.size() - 12, chunk("zTXt", std::string("long\0\0", 6) + packed) +
                                    chunk("tEXt", std::string("latin\0\xfc", 7)));
  const PngInfo info = parse(file);
  EXPECT_EQ(info.text.at("long"), value);
  EXPECT_EQ(info.text.at("latin"), "\xc3\xbc");
}

TEST(Png, TextBombIsBounded) {
  const std::string value(50 << 20, 'z');
  std::string packed(200'000, '\0');
  uLongf size = packed.size();
  ASSERT_EQ(compress(reinterpret_cast<Bytef*>(packed.data()), &size,
                     reinterpret_cast<const Bytef*>(value.data()), value.size()),
            Z_OK);
  packed.resize(size);
  std::string file = png_of(test_image(2, 2, 3), {});
  file.insert(file.size() - 12, chunk("zTXt", std::string("long\0\0", 6) + packed));
  try {
    EXPECT_FALSE(parse(file).text.contains("long"));
  } catch (const Error&) {
  }
}

TEST(Png, ChunkThatClaimsMoreThanTheFileHasIsNamed) {
  std::string file = png_of(test_image(2, 2, 3), {{"k", "v"}});
  file[file.find("tEXt") - 4] = '\x7f';
  expect_error([&] { parse(file); }, "chunk \"tEXt\" of 2130706435 bytes passes the end");
}

TEST(Png, LargePlainTextIsRead) {
  const std::string value(3 << 20, 'v'), wide = value + "\xc3\xa9";
  const PngInfo info = parse(png_of(test_image(2, 2, 3), {{"plain", value}, {"wide", wide}}));
  EXPECT_EQ(info.text.at("plain"), value);
  EXPECT_EQ(info.text.at("wide"), wide);
}

TEST(Png, LargerTextThanIsReadIsNotWritten) {
  const std::string value(kMaxPngTextBytes, 'v');
  expect_error([&] { png_of(test_image(2, 2, 3), {{"k", value}}); }, "at most 33554432 are read back");
  std::string file = png_of(test_image(2, 2, 3), {});
  file.insert(file.size() - 12, chunk("tEXt", std::string("k\0", 2) + value));
  expect_error([&] { parse(file); }, "at most 33554432 are read");
}

TEST(Png, LargeCompressedTextChunkIsRefused) {
  std::string file = png_of(test_image(2, 2, 3), {});
  for (const std::string& start : {std::string("zTXtk\0\0", 7), std::string("iTXtk\0\1\0\0\0", 10)}) {
    std::string large = file;
    large.insert(file.size() - 12, chunk(start.substr(0, 4), start.substr(4) + std::string(2 << 20, 'v')));
    expect_error([&] { parse(large); }, "at most 1048576 are read");
  }
}

TEST(Png, LargerSidesThanAreReadAreNotWritten) {
  const Image tall{kMaxPngSide + 1, 1, 1, std::vector<uint8_t>(kMaxPngSide + 1)};
  expect_error([&] { png_of(tall, {}); }, "at most 65536 a side");
  const Image largest{kMaxPngSide, 1, 1, std::vector<uint8_t>(kMaxPngSide)};
  EXPECT_EQ(parse(png_of(largest, {})).height, kMaxPngSide);
}

TEST(Png, SeveralPixelChunksAreRead) {
  Image noise = test_image(100, 100, 3);  // more than libpng's 8 KiB a chunk once compressed
  uint32_t state = 1;
  for (uint8_t& pixel : noise.pixels)
    pixel = static_cast<uint8_t>((state = state * 1664525 + 1013904223) >> 24);
  const std::string file = png_of(noise, {{"k", "v"}});
  ASSERT_NE(file.find("IDAT"), file.rfind("IDAT"));
  EXPECT_EQ(parse(file).text.at("k"), "v");
}

TEST(Png, HugeSidesAreRefused) {
  const std::string header = big_endian(1 << 20) + big_endian(1) + std::string("\x08\x02\0\0\0", 5);
  expect_error(
      [&] { parse("\x89PNG\r\n\x1a\n" + chunk("IHDR", header) + chunk("IDAT", "x") + chunk("IEND", "")); },
      "a.png: broken PNG file");
}

TEST(Png, EveryTruncationIsRefused) {
  const std::string file = png_of(test_image(3, 3, 3), {{"k", "v"}});
  for (size_t size = 0; size < file.size(); ++size) {
    test::error_of([&] { parse(file.substr(0, size)); });
  }
}

TEST(Png, DamagedTextIsRefused) {
  std::string file = png_of(test_image(3, 3, 3), {{"key", "value"}});
  file[file.find("value")] = 'V';
  expect_error([&] { parse(file); }, "CRC error");
}

TEST(Png, OtherFileIsRefused) {
  expect_error([] { parse("GIF89a"); }, "is not a PNG file");
}

TEST(Png, BadKeysAndValuesAreRefused) {
  const Image image = test_image(1, 1, 1);
  for (const std::string& key :
       {std::string(), std::string(80, 'k'), std::string(" k"), std::string("k\n")}) {
    expect_error([&] { write_png("/nonexistent", image, {{key, "v"}}); }, "PNG text key");
  }
  expect_error([&] { write_png("/nonexistent", image, {{"k", "\xff"}}); }, "UTF-8 without NUL");
  expect_error(
      [&] {
        write_png("/nonexistent", image, {{"k", std::string("a\0b", 3)}});
      },
      "UTF-8 without NUL");
}

TEST(Png, PixelsThatDoNotMatchTheSizeAreRefused) {
  Image image = test_image(2, 2, 3);
  image.pixels.pop_back();
  expect_error([&] { write_png("/nonexistent", image, {}); }, "2x2x3 pixels take 12 bytes, got 11");
}

TEST(Png, FourChannelsAreRefused) {
  expect_error([] { write_png("/nonexistent", test_image(2, 2, 4), {}); }, "1 or 3 channels");
}

TEST(Png, FullDeviceIsAnError) {
  expect_error([] { write_png("/dev/full", test_image(2, 2, 3), {}); }, "No space left");
}

TEST(Png, MutatedFilesAreReadOrRefused) {
  const std::string seed = png_of(test_image(3, 3, 3), {{"k", "v"}, {"u", "\xc3\xbc"}});
  const int refused = test::refused_mutations(seed, 5000, parse);
  EXPECT_GT(refused, 4000);
}

}  // namespace
}  // namespace dydit

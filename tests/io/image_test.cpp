// PNG and JPEG decode to what PIL gives, and what is broken, hostile or of another kind is named; grids lie
// as torchvision lays them.
#include "dydit/io/image.h"

#include <algorithm>
#include <cmath>
#include <string>

#include <gtest/gtest.h>

#include "tests/support/archives.h"

namespace dydit {
namespace {

using test::bytes_of;
using test::expect_error;
using test::recorded;

Image decode(const std::string& file) { return decode_image(bytes_of(file), "a.png"); }

std::string text_of(const Image& image) { return {image.pixels.begin(), image.pixels.end()}; }

class DecodedImage : public testing::TestWithParam<std::string> {};

TEST_P(DecodedImage, EqualsPil) {
  std::vector<int64_t> shape;
  const std::string wanted = recorded("pixels_" + GetParam(), &shape);
  const Image image = decode(recorded("file_" + GetParam()));
  EXPECT_EQ(image.height, shape[0]);
  EXPECT_EQ(image.width, shape[1]);
  EXPECT_EQ(image.channels, shape.size() == 2 ? 1 : 3);
  EXPECT_EQ(text_of(image), wanted);
}

INSTANTIATE_TEST_SUITE_P(Kinds, DecodedImage,
                         testing::Values("png_rgb", "png_rgba", "png_gray", "png_gray_alpha", "png_palette",
                                         "png_palette_clear", "png_bits", "jpeg_rgb", "jpeg_444",
                                         "jpeg_progressive", "jpeg_gray"),
                         [](const auto& info) { return info.param; });

std::string big_endian(size_t value, int bytes) {
  std::string out;
  for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) out += static_cast<char>(value >> shift);
  return out;
}

// A PNG of a header and of rows with their filters.
std::string png_of(const std::string& header, const std::string& rows) {
  const auto chunk = [](const std::string& type, const std::string& data) {
    const std::string body = type + data;
    const auto crc = crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()));
    return big_endian(data.size(), 4) + body + big_endian(crc, 4);
  };
  return "\x89PNG\r\n\x1a\n" + chunk("IHDR", header) + chunk("IDAT", test::deflated(rows, 15)) +
         chunk("IEND", "");
}

// 3x5 gray pixels, interlaced: the passes hold 1, 0, 1, 2, 2, 3 and 6 of them.
std::string png_of_passes() {
  const std::string rows("\0\x01\0\x0b\0\x02\0\x03\0\x0d\x0e\0\x15\0\x16\0\x17\0\x20\x21\x22\0\x30\x31\x32",
                         25);
  return png_of(std::string("\0\0\0\x03\0\0\0\x05\x08\0\0\0\x01", 13), rows);
}

TEST(DecodeImage, SixteenBitsKeepTheUpperEight) {
  // 2x1 gray, 16 bits, made by hand: filter 0, 0x1234, 0xFF01
  const Image image = decode(
      png_of(std::string("\0\0\0\x02\0\0\0\x01\x10\0\0\0\0", 13), std::string("\0\x12\x34\xff\x01", 5)));
  EXPECT_EQ(image.pixels, (std::vector<uint8_t>{0x12, 0xFF}));
}

// Its inks are smooth ramps: cyan 19 x, magenta 23 y, yellow 10 (x + y), black 255 - x y.
TEST(DecodeImage, CmykBecomesRgbAsInPil) {
  const std::string file = recorded("file_jpeg_cmyk");
  EXPECT_EQ(read_image_header(bytes_of(file)),
            (ImageHeader{.height = 11, .width = 13, .channels = 3, .cmyk = true}));
  const Image image = decode(file);
  ASSERT_EQ(image.channels, 3);
  double worst = 0;
  for (int y = 0; y < 11; ++y) {
    for (int x = 0; x < 13; ++x) {
      const double white = x * y / 255.0;
      const double inks[] = {19.0 * x, 23.0 * y, 10.0 * (x + y)};
      for (int c = 0; c < 3; ++c) {
        const double wanted = (255 - inks[c]) * white;
        worst = std::max(worst, std::abs(image.pixels[static_cast<size_t>((y * 13 + x) * 3 + c)] - wanted));
      }
    }
  }
  EXPECT_LT(worst, 12);  // JPEG's own loss
}

TEST(DecodeImage, AnotherKindIsRefused) {
  expect_error([] { decode("GIF89a"); }, "a.png: is neither PNG nor JPEG");
}

TEST(DecodeImage, EveryTruncationIsRefused) {
  for (const std::string kind : {"png_rgb", "png_palette", "jpeg_rgb", "jpeg_progressive"}) {
    const std::string file = recorded("file_" + kind);
    // The last two bytes of a JPEG only say that it ends; libjpeg has all pixels before.
    const size_t needed = kind.starts_with("jpeg") ? file.size() - 2 : file.size();
    for (size_t size = 0; size < needed; ++size) {
      test::error_of([&] { decode(file.substr(0, size)); });
    }
  }
}

TEST(DecodeImage, MutatedFilesAreReadOrRefused) {
  for (const std::string kind :
       {"png_rgb", "png_palette_clear", "png_bits", "jpeg_rgb", "jpeg_progressive"}) {
    EXPECT_GT(test::refused_mutations(recorded("file_" + kind), 3000, decode), 0) << kind;
  }
}

TEST(DecodeImage, HugeSizesAreRefusedBeforeTheyAreAllocated) {
  std::string jpeg = recorded("file_jpeg_rgb");
  const size_t frame = jpeg.find("\xff\xc0");
  jpeg.replace(frame + 5, 4, "\xff\xdc\xff\xdc");
  expect_error([&] { decode(jpeg); }, "65500x65500 pixels in a file of");
}

// An EXIF block with one entry: orientation.
std::string exif_block(int orientation, bool little) {
  const std::string value(1, static_cast<char>(orientation));
  using namespace std::string_literals;
  return little ? "II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"s + value + "\0\0\0\0\0\0\0"s
                : "MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"s + value + "\0\0\0\0\0\0"s;
}

// The file with that block: an APP1 segment after the start, or a chunk eXIf before the pixels.
std::string with_exif(std::string file, const std::string& block) {
  if (file[0] == '\xff') {
    const std::string body = std::string("Exif\0\0", 6) + block;
    return file.insert(2, "\xff\xe1" + big_endian(body.size() + 2, 2) + body);
  }
  const std::string body = "eXIf" + block;
  const auto crc = crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()));
  return file.insert(33, big_endian(block.size(), 4) + body + big_endian(crc, 4));
}

// Pixel (y, x) of a picture as it is shown, from the stored one: EXIF 2.32, table of tag Orientation.
const uint8_t* shown_pixel(const Image& stored, int orientation, int y, int x) {
  const int bottom = stored.height - 1, right = stored.width - 1;
  const int rows[] = {0, y, y, bottom - y, bottom - y, x, bottom - x, bottom - x, x};
  const int columns[] = {0, x, right - x, right - x, x, y, y, right - y, right - y};
  const int at = rows[orientation] * stored.width + columns[orientation];
  return &stored.pixels[static_cast<size_t>(at * stored.channels)];
}

TEST(Orientation, OfAllEightValuesIsApplied) {
  const std::string interlaced = png_of_passes();
  for (const std::string& file : {recorded("file_jpeg_rgb"), recorded("file_jpeg_gray"),
                                  recorded("file_png_rgb"), recorded("file_png_gray"), interlaced}) {
    const Image stored = decode(file);
    for (int orientation = 1; orientation <= 8; ++orientation) {
      const std::string turned = with_exif(file, exif_block(orientation, orientation % 2 == 0));
      const Image shown = decode(turned);
      const bool swapped = orientation > 4;
      ASSERT_EQ(shown.height, swapped ? stored.width : stored.height);
      ASSERT_EQ(shown.width, swapped ? stored.height : stored.width);
      const auto header = read_image_header(bytes_of(turned));
      EXPECT_EQ(header->orientation, orientation);
      EXPECT_EQ(header->height, shown.height);
      bool same = true;
      for (int y = 0; y < shown.height; ++y) {
        for (int x = 0; x < shown.width; ++x) {
          const auto at = static_cast<size_t>((y * shown.width + x) * shown.channels);
          same = same && std::equal(&shown.pixels[at], &shown.pixels[at] + shown.channels,
                                    shown_pixel(stored, orientation, y, x));
        }
      }
      EXPECT_TRUE(same) << "orientation " << orientation;
    }
  }
}

TEST(Orientation, OfADamagedBlockIsThatOfTheFile) {
  const std::string file = recorded("file_jpeg_rgb"), block = exif_block(6, true);
  for (size_t size = 0; size < block.size(); ++size)
    EXPECT_NO_THROW(decode(with_exif(file, block.substr(0, size)))) << size;
  for (const int wrong : {0, 9, 255}) EXPECT_EQ(decode(with_exif(file, exif_block(wrong, true))).width, 13);
  EXPECT_EQ(decode(with_exif(file, "XX" + block.substr(2))).width, 13);
}

TEST(ImageHeader, SaysWhatDecodingGives) {
  for (const std::string kind :
       {"png_rgb", "png_rgba", "png_gray", "png_gray_alpha", "png_palette", "png_palette_clear", "png_bits",
        "jpeg_rgb", "jpeg_progressive", "jpeg_gray"}) {
    const std::string file = recorded("file_" + kind);
    const auto header = read_image_header(bytes_of(file));
    const Image image = decode(file);
    ASSERT_TRUE(header) << kind;
    EXPECT_EQ(header->height, image.height) << kind;
    EXPECT_EQ(header->width, image.width) << kind;
    EXPECT_EQ(header->channels, image.channels) << kind;
    EXPECT_EQ(header->alpha,
              kind.find("alpha") != kind.npos || kind.ends_with("rgba") || kind.ends_with("clear"))
        << kind;
    for (size_t size = 0; size < file.size(); ++size) read_image_header(bytes_of(file.substr(0, size)));
  }
}

TEST(LargeImage, IsDecodedForASideAlone) {
  const std::string png = test::png_bytes(test::plain_image(4200, 3, 9));
  expect_error([&] { decode(png); }, "an image of 4200x4200 pixels in a file of");
  EXPECT_TRUE(is_large(*read_image_header(bytes_of(png)), png.size()));
  EXPECT_EQ(decode_image(bytes_of(png), "a.png", 64).width, 4200);  // PNG is read whole
}

TEST(LargeImage, BeyondAllBoundsItIsTooLarge) {
  std::string jpeg = recorded("file_jpeg_rgb");
  jpeg.replace(jpeg.find("\xff\xc0") + 5, 4, "\xff\xdc\xff\xdc");
  EXPECT_THROW(decode_image(bytes_of(jpeg), "a.jpg", 40'000), TooLarge);
}

TEST(WithChannels, LumaEqualsPil) {
  EXPECT_EQ(text_of(with_channels(test::noise_image(16, 16, 3), 1)), recorded("luma"));
}

TEST(WithChannels, GrayIsRepeated) {
  EXPECT_EQ(with_channels(Image{1, 2, 1, {3, 9}}, 3).pixels, (std::vector<uint8_t>{3, 3, 3, 9, 9, 9}));
}

Image numbered_image(int height, int width, int channels) {
  Image image{height, width, channels, {}};
  for (int i = 0; i < height * width * channels; ++i) image.pixels.push_back(static_cast<uint8_t>(i * 7));
  return image;
}

TEST(MakeGrid, LeavesTwoBlackPixelsAroundEachImage) {
  const std::vector<Image> images(3, Image{1, 1, 1, {9}});
  const Image grid = make_grid(images, 2);
  EXPECT_EQ(grid.width, 8);
  EXPECT_EQ(grid.height, 8);
  std::vector<uint8_t> expected(64, 0);
  expected[2 * 8 + 2] = expected[2 * 8 + 5] = expected[5 * 8 + 2] = 9;
  EXPECT_EQ(grid.pixels, expected);
}

TEST(MakeGrid, IsNoWiderThanItsImages) {
  EXPECT_EQ(make_grid(std::vector<Image>(2, numbered_image(1, 4, 3)), 8).width, 14);
}

TEST(MakeGrid, SingleImageIsReturnedAsItIs) {
  const std::vector<Image> images(1, numbered_image(2, 3, 3));
  EXPECT_EQ(make_grid(images, 4).pixels, images[0].pixels);
}

TEST(MakeGrid, RefusesNothingAndUnequalSizes) {
  expect_error([] { make_grid({}, 2); }, "grid of 0 images");
  const std::vector<Image> images = {numbered_image(1, 1, 3), numbered_image(1, 2, 3)};
  expect_error([&] { make_grid(images, 2); }, "must be of one size");
}

}  // namespace
}  // namespace dydit

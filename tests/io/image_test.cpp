// PNG and JPEG decode to what PIL gives, and what is broken, hostile or of another kind is named.
#include "dydit/io/image.h"

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

TEST(DecodeImage, SixteenBitsKeepTheUpperEight) {
  // 2x1 gray, 16 bits, made by hand: filter 0, 0x1234, 0xFF01
  const std::string row("\0\x12\x34\xff\x01", 5);
  std::string packed = test::deflated(row, 15);
  const auto chunk = [](const std::string& type, const std::string& data) {
    const std::string body = type + data;
    const auto big = [](uint64_t value) {
      std::string out;
      for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift);
      return out;
    };
    const auto crc = crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()));
    return big(data.size()) + body + big(crc);
  };
  const std::string header("\0\0\0\x02\0\0\0\x01\x10\0\0\0\0", 13);
  const Image image =
      decode("\x89PNG\r\n\x1a\n" + chunk("IHDR", header) + chunk("IDAT", packed) + chunk("IEND", ""));
  EXPECT_EQ(image.pixels, (std::vector<uint8_t>{0x12, 0xFF}));
}

TEST(DecodeImage, CmykIsRefusedByName) {
  expect_error([] { decode(recorded("file_jpeg_cmyk")); }, "a.png: is a CMYK JPEG; convert it to RGB");
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

TEST(WithChannels, LumaEqualsPil) {
  EXPECT_EQ(text_of(with_channels(test::noise_image(16, 16, 3), 1)), recorded("luma"));
}

TEST(WithChannels, GrayIsRepeated) {
  EXPECT_EQ(with_channels(Image{1, 2, 1, {3, 9}}, 3).pixels, (std::vector<uint8_t>{3, 3, 3, 9, 9, 9}));
}

}  // namespace
}  // namespace dydit

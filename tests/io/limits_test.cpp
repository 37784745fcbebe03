// What keeps PNG and JPEG within the bounds of docs/fuzzing.md: each fact fails when its limit is taken out
// of the reader. The files are those of the fuzz driver, or made with its parts.
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/io/image.h"
#include "dydit/io/png.h"
#include "tests/fuzz/hostile.h"
#include "tests/fuzz/memory.h"
#include "tests/fuzz/seeds.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

using fuzz::png_file;
using test::bytes_of;
using test::expect_error;

constexpr size_t kMiB = size_t{1} << 20;

std::string made(const std::vector<fuzz::Hostile>& files, const std::string& name) {
  for (const fuzz::Hostile& file : files) {
    if (file.name == name) return file.make();
  }
  ADD_FAILURE() << "no hostile file is called " << name;
  return "";
}

std::string jpeg(const std::string& name) { return made(fuzz::hostile_jpeg(), name); }
std::string png(const std::string& name) { return made(fuzz::hostile_png(), name); }

Image decode(const std::string& file) { return decode_image(bytes_of(file), "a"); }
PngInfo info(const std::string& file) { return parse_png_info(bytes_of(file), "a.png"); }

// The most memory that `read` holds at any moment, whether it takes or refuses the file.
size_t peak_of(const std::function<void()>& read) {
  fuzz::start_counting();
  const size_t before = fuzz::live_bytes();
  fuzz::reset_peak();
  try {
    read();
  } catch (const Error&) {
  }
  return fuzz::peak_bytes() - before;
}

void expect_within_bounds(const std::string& file, const std::function<void()>& read) {
  EXPECT_LE(peak_of(read), 64 * kMiB + 4 * file.size());
}

// A text chunk that is small as it lies in the file.
std::string packed_text(const std::string& key, size_t size) {
  return fuzz::png_chunk("zTXt", key + std::string(2, '\0') + fuzz::deflated(std::string(size, 'z'), 15));
}

TEST(JpegLimits, CoefficientsOfAProgressiveFileComeOnTopOfItsPixels) {
  const std::string file = jpeg("4,096 x 4,096 pixels, progressive");
  expect_within_bounds(file, [&] { decode(file); });
}

TEST(JpegLimits, MoreThan100ScansAreRefused) {
  const std::string file = jpeg("1,000 scans");
  expect_error([&] { decode(file); }, "101 scans of 9 x 9 pixels are too many");
}

TEST(JpegLimits, ALargeImageMayHaveFewerScans) {
  const std::string file = jpeg("4,096 x 4,096 gray pixels, progressive, 90 more scans");
  expect_error([&] { decode(file); }, "17 scans of 4096 x 4096 pixels are too many");
}

TEST(JpegLimits, ClaimedSizeIsJudgedBeforePixelsAreAllocated) {
  const std::string file = jpeg("65,500 x 65,500 pixels");
  EXPECT_LT(peak_of([&] { decode(file); }), kMiB);
}

TEST(LargeJpeg, IsScaledDownNoFurtherThanTheSideAndTheBound) {
  for (const bool progressive : {false, true}) {
    const std::string file = fuzz::jpeg_file({.side = 5001, .progressive = progressive, .flat = true});
    expect_error([&] { decode(file); }, "an image of 5001x5001 pixels");
    EXPECT_EQ(decode_image(bytes_of(file), "a", 256).width, 2501);   // half fits
    EXPECT_EQ(decode_image(bytes_of(file), "a", 2501).width, 2501);  // of this size at least
    EXPECT_EQ(decode_image(bytes_of(file), "a", 2502).width, 5001);
    EXPECT_LE(peak_of([&] { decode_image(bytes_of(file), "a", 256); }), (progressive ? 200 : 40) * kMiB);
  }
}

TEST(LargeJpeg, IsReadAnEighthOfItsSizeAtLeast) {
  const std::string file =
      jpeg("65,500 x 65,500 pixels");  // of which an eighth takes more than the usual bound
  EXPECT_LT(peak_of([&] { decode_image(bytes_of(file), "a", 256); }), 500 * kMiB);
}

TEST(PngLimits, SixtyTextsOfAMegabyteStayWithinBounds) {
  const std::string file = png("60 texts that unfold to 1 MiB each");
  expect_within_bounds(file, [&] { info(file); });
}

TEST(PngLimits, ATextThatUnfoldsToMoreThanAMegabyteIsLeftOut) {
  const std::string file =
      png_file({.chunks = packed_text("large", 2 * kMiB) + packed_text("small", kMiB / 2)});
  const PngText text = info(file).text;
  EXPECT_FALSE(text.contains("large"));
  EXPECT_TRUE(text.contains("small"));
}

// With 8 to 11 bytes of a chunk there libpng has read its length, and allocates.
TEST(PngLimits, ClaimOfAChunkThatIsCutOffTakesNoMemory) {
  constexpr size_t kUpToHeader = 8 + 25;  // signature, IHDR
  const std::string claim("\x54\x00\x19\x7azTXt", 8);
  for (const std::string rest : {"", "k", "ke", "key", "key4"}) {
    const std::string file = png_file({}).substr(0, kUpToHeader) + claim + rest;
    EXPECT_LT(peak_of([&] { info(file); }), kMiB) << rest.size() << " bytes of it";
    expect_error([&] { info(file); }, "chunk \"zTXt\" of 1409292666 bytes passes the end");
  }
}

TEST(PngLimits, SidesBeyond65536AreRefused) {
  expect_error([] { info(png_file({.width = 65'537, .height = 1})); }, "a.png: broken PNG file");
}

TEST(PngLimits, ClaimedSizeIsJudgedBeforePixelsAreAllocated) {
  const std::string file = png("65,535 x 65,535 pixels");
  EXPECT_LT(peak_of([&] { decode(file); }), kMiB);
}

}  // namespace
}  // namespace dydit

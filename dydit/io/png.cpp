// PNG through libpng. libpng reports an error by longjmp, which skips destructors: so every function that
// calls setjmp has only trivial locals, and all that needs destroying belongs to its caller.
#include "dydit/io/png.h"

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstring>

#include <png.h>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/exif.h"
#include "dydit/io/file.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

// Together they bound what compressed text chunks can unfold to, and what that takes as UTF-8: 12 and 24 MiB.
constexpr png_alloc_size_t kMaxChunkBytes = 1 << 20;
constexpr png_uint_32 kMaxChunks = 12;
constexpr size_t kMaxKeyBytes = 79;

// What libpng said, kept in a plain array: it is filled right before the longjmp.
using Complaint = std::array<char, 200>;

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  auto* complaint = static_cast<Complaint*>(png_get_error_ptr(png));
  std::strncpy(complaint->data(), message, complaint->size() - 1);
  png_longjmp(png, 1);
}

// Warnings are about profiles and the like; the library never prints.
void on_warning(png_structp, png_const_charp) {}

struct Writer {
  Complaint complaint{};
  std::string bytes;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &complaint, on_error, on_warning);
  png_infop info = png == nullptr ? nullptr : png_create_info_struct(png);
  ~Writer() { png_destroy_write_struct(&png, &info); }
};

struct Reader {
  Reader(std::span<const std::byte> bytes, const std::string& name) : rest(bytes) {
    DYDIT_CHECK(info != nullptr, "{}: libpng could not be set up; is memory short?", name);
  }
  Complaint complaint{};
  std::span<const std::byte> rest;
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &complaint, on_error, on_warning);
  png_infop info = png == nullptr ? nullptr : png_create_info_struct(png);
  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
};

void append_bytes(png_structp png, png_bytep data, size_t size) {
  bool out_of_memory = false;
  try {
    static_cast<Writer*>(png_get_io_ptr(png))->bytes.append(reinterpret_cast<const char*>(data), size);
  } catch (const std::exception&) {
    out_of_memory =
        true;  // an exception must not pass through libpng's frames, a longjmp not leave a handler
  }
  if (out_of_memory) png_error(png, "out of memory");
}

void take_bytes(png_structp png, png_bytep data, size_t size) {
  std::span<const std::byte>& rest = static_cast<Reader*>(png_get_io_ptr(png))->rest;
  if (size > rest.size()) png_error(png, "the file ends too early");
  std::memcpy(data, rest.data(), size);
  rest = rest.subspan(size);
}

// False when libpng gave up; the writer's complaint says why.
bool encode(Writer& writer, const Image& image, const png_text* texts, int text_count) {
  if (setjmp(png_jmpbuf(writer.png)) != 0) return false;
  png_set_write_fn(writer.png, &writer, append_bytes, nullptr);
  const int color = image.channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB;
  png_set_IHDR(writer.png, writer.info, static_cast<png_uint_32>(image.width),
               static_cast<png_uint_32>(image.height), 8, color, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_set_text(writer.png, writer.info, texts, text_count);
  png_write_info(writer.png, writer.info);
  const size_t row_bytes = static_cast<size_t>(image.width) * static_cast<size_t>(image.channels);
  for (size_t row = 0; row < static_cast<size_t>(image.height); ++row) {
    png_write_row(writer.png, image.pixels.data() + row * row_bytes);
  }
  png_write_end(writer.png, writer.info);
  return true;
}

// Passes over all chunks but those of the picture. Errors jump to the caller's setjmp.
void begin_reading(Reader& reader) {
  png_set_read_fn(reader.png, &reader, take_bytes);
  png_set_user_limits(reader.png, kMaxPngSide, kMaxPngSide);
  png_set_chunk_malloc_max(reader.png, kMaxChunkBytes);
  png_set_keep_unknown_chunks(reader.png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
}

// Reads all chunks but skips those that hold neither size nor text, the pixels included.
bool scan(Reader& reader) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  begin_reading(reader);
  png_set_chunk_cache_max(reader.png, kMaxChunks);
  png_set_crc_action(reader.png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  // Each name with its NUL, as libpng wants them.
  const auto* text_chunks = reinterpret_cast<png_const_bytep>("tEXt\0zTXt\0iTXt");
  png_set_keep_unknown_chunks(reader.png, PNG_HANDLE_CHUNK_AS_DEFAULT, text_chunks, 3);
  png_set_benign_errors(reader.png, /*allowed=*/1);  // pixels left unread are one
  png_read_info(reader.png, reader.info);
  // Without a start, png_read_end would take the pixels' bytes for chunks; with it, it skips them.
  png_start_read_image(reader.png);
  png_read_end(reader.png, reader.info);
  return true;
}

// Reads up to the pixels and asks for 8-bit gray or RGB. Other chunks are passed over unread.
bool read_header(Reader& reader) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  begin_reading(reader);
  png_read_info(reader.png, reader.info);
  png_set_expand(reader.png);
  png_set_strip_16(reader.png);
  png_set_strip_alpha(reader.png);
  png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  return true;
}

// Rows go to their places at once, or through `row` where the picture is turned: `turn` counts pixels.
struct Rows {
  uint8_t* pixels;
  size_t height, width, channels;
  const Turn* turn;  // null: as stored
  uint8_t* row;      // (width, channels), when it is turned
};

// Moves a row between its place in the turned picture and `rows.row`. A pass of an interlaced file needs what
// the passes before left.
template <bool kTake>
void move_row(const Rows& rows, size_t y) {
  const auto channels = static_cast<std::ptrdiff_t>(rows.channels);
  std::ptrdiff_t at = (rows.turn->start + static_cast<std::ptrdiff_t>(y) * rows.turn->down) * channels;
  uint8_t* own = rows.row;
  for (size_t x = 0; x < rows.width; ++x, at += rows.turn->right * channels) {
    for (std::ptrdiff_t c = 0; c < channels; ++c, ++own) {
      if constexpr (kTake) {
        *own = rows.pixels[at + c];
      } else {
        rows.pixels[at + c] = *own;
      }
    }
  }
}

bool read_pixels(Reader& reader, const Rows& rows) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  const int passes = png_get_interlace_type(reader.png, reader.info) == PNG_INTERLACE_NONE ? 1 : 7;
  for (int pass = 0; pass < passes; ++pass) {
    for (size_t y = 0; y < rows.height; ++y) {
      if (rows.turn == nullptr) {
        png_read_row(reader.png, rows.pixels + y * rows.width * rows.channels, nullptr);
        continue;
      }
      if (pass > 0) move_row<true>(rows, y);
      png_read_row(reader.png, rows.row, nullptr);
      move_row<false>(rows, y);
    }
  }
  png_read_end(reader.png, nullptr);
  return true;
}

// tEXt, or iTXt whose flag behind the key says that it is not compressed.
bool is_plain_text(std::string_view type, std::span<const std::byte> data) {
  const auto key_end = std::find(data.begin(), data.end(), std::byte{0});
  return type == "tEXt" || (type == "iTXt" && data.end() - key_end > 1 && key_end[1] == std::byte{0});
}

// libpng only warns of a chunk that is too large and then allocates what it claims, so sizes are checked
// first: of every chunk whose length and type are there, even if nothing comes after them.
void check_chunk_sizes(std::span<const std::byte> bytes, const std::string& name) {
  constexpr size_t kSignature = 8;
  constexpr size_t kStart = 8;    // length and type
  constexpr size_t kAround = 12;  // and checksum
  for (size_t at = kSignature; bytes.size() - at >= kStart;) {
    const size_t left = bytes.size() - at;
    const uint32_t length = __builtin_bswap32(load_little<uint32_t>(bytes.data() + at));
    const std::string_view type = text_of(bytes.subspan(at + 4, 4));
    DYDIT_CHECK(left >= kAround && length <= left - kAround,
                "{}: broken PNG file: chunk {} of {} bytes passes the end. Fetch or write it again.", name,
                quote(type), length);
    // Plain text takes what the file itself has; libpng allocates no more for it.
    const size_t limit =
        is_plain_text(type, bytes.subspan(at + kStart, length)) ? kMaxPngTextBytes : kMaxChunkBytes;
    DYDIT_CHECK(type == "IDAT" || length <= limit,
                "{}: PNG chunk {} of {} bytes; at most {} are read. Write it again without.", name,
                quote(type), length, limit);
    if (type == "IEND") return;  // what follows is not read
    at += kAround + length;
  }
}

// tEXt and zTXt are Latin-1 by the standard; code points up to U+00FF take at most two bytes of UTF-8.
std::string utf8_from_latin1(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80) {
      out += c;
    } else {
      out += static_cast<char>(0xC0 | (byte >> 6));
      out += static_cast<char>(0x80 | (byte & 0x3F));
    }
  }
  return out;
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// Views into `text`, which outlives the result.
std::vector<png_text> text_chunks(const PngText& text, const std::string& file) {
  std::vector<png_text> chunks;
  for (const auto& [key, value] : text) {
    const bool printable_key =
        std::all_of(key.begin(), key.end(), [](char c) { return c >= 0x20 && c < 0x7F; });
    const bool trimmed =
        !key.empty() && key.front() != ' ' && key.back() != ' ' && key.find("  ") == key.npos;
    DYDIT_CHECK(trimmed && printable_key && key.size() <= kMaxKeyBytes,
                "{}: PNG text key {}: 1 to {} characters of printable ASCII without outer or double spaces "
                "are wanted",
                file, quote(key), kMaxKeyBytes);
    DYDIT_CHECK(key.size() + value.size() < kMaxPngTextBytes,
                "{}: PNG text {} of {} bytes; at most {} are read back", file, quote(key), value.size(),
                kMaxPngTextBytes);
    DYDIT_CHECK(is_utf8(value) && value.find('\0') == value.npos,
                "{}: PNG text {} has the value {}; UTF-8 without NUL is wanted", file, quote(key),
                quote(value));
    png_text chunk{};
    chunk.compression = is_ascii(value) ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE;
    chunk.key = const_cast<char*>(key.c_str());
    chunk.text = const_cast<char*>(value.c_str());
    chunk.text_length = is_ascii(value) ? value.size() : 0;
    chunk.itxt_length = is_ascii(value) ? 0 : value.size();
    chunks.push_back(chunk);
  }
  return chunks;
}

PngText read_texts(const Reader& reader) {
  PngText result;
  png_textp texts = nullptr;
  const int count = png_get_text(reader.png, reader.info, &texts, nullptr);
  for (int i = 0; i < count; ++i) {
    const png_text& chunk = texts[i];
    const bool international = chunk.compression >= PNG_ITXT_COMPRESSION_NONE;
    const std::string_view value(chunk.text, international ? chunk.itxt_length : chunk.text_length);
    result.insert_or_assign(utf8_from_latin1(chunk.key),
                            international ? std::string(value) : utf8_from_latin1(value));
  }
  return result;
}

}  // namespace

std::string png_bytes(const Image& image, const PngText& text, const std::string& file) {
  DYDIT_CHECK(image.height > 0 && image.width > 0 && (image.channels == 1 || image.channels == 3),
              "{}: cannot write {}x{} pixels of {} channels as PNG; 1 or 3 channels are wanted", file,
              image.height, image.width, image.channels);
  DYDIT_CHECK(image.height <= kMaxPngSide && image.width <= kMaxPngSide,
              "{}: {}x{} pixels; at most {} a side are read back as PNG", file, image.height, image.width,
              kMaxPngSide);
  const size_t wanted = static_cast<size_t>(image.height) * static_cast<size_t>(image.width) *
                        static_cast<size_t>(image.channels);
  DYDIT_CHECK(image.pixels.size() == wanted, "{}: {}x{}x{} pixels take {} bytes, got {}", file, image.height,
              image.width, image.channels, wanted, image.pixels.size());
  const std::vector<png_text> chunks = text_chunks(text, file);
  Writer writer;
  DYDIT_CHECK(writer.info != nullptr, "{}: libpng could not be set up; is memory short?", file);
  DYDIT_CHECK(encode(writer, image, chunks.data(), static_cast<int>(chunks.size())),
              "{}: cannot encode PNG: {}", file, printable(writer.complaint.data()));
  return std::move(writer.bytes);
}

void write_png(const std::filesystem::path& path, const Image& image, const PngText& text) {
  write_output_file(path, png_bytes(image, text, path.string()));
}

PngInfo parse_png_info(std::span<const std::byte> bytes, const std::string& name) {
  DYDIT_CHECK(sniff_file_kind(bytes) == FileKind::Png, "{}: is not a PNG file (wrong first bytes)", name);
  check_chunk_sizes(bytes, name);
  Reader reader(bytes, name);
  DYDIT_CHECK(scan(reader), "{}: broken PNG file: {}. Fetch or write it again.", name,
              printable(reader.complaint.data()));
  PngInfo info;
  info.width = static_cast<int>(png_get_image_width(reader.png, reader.info));
  info.height = static_cast<int>(png_get_image_height(reader.png, reader.info));
  const bool palette = png_get_color_type(reader.png, reader.info) == PNG_COLOR_TYPE_PALETTE;
  info.channels = palette ? 3 : png_get_channels(reader.png, reader.info);
  info.text = read_texts(reader);
  return info;
}

std::optional<ImageHeader> parse_png_header(std::span<const std::byte> bytes) {
  constexpr size_t kSignature = 8, kAround = 12, kHeaderBytes = 13;  // length, type and checksum
  const auto number = [&](size_t at) { return __builtin_bswap32(load_little<uint32_t>(bytes.data() + at)); };
  const auto is = [&](size_t at, const char* type) {
    return std::memcmp(bytes.data() + at + 4, type, 4) == 0;
  };
  if (bytes.size() < kSignature + kAround + kHeaderBytes || !is(kSignature, "IHDR")) return std::nullopt;
  const uint32_t width = number(kSignature + 8), height = number(kSignature + 12);
  if (width == 0 || height == 0 || width > kMaxPngSide || height > kMaxPngSide) return std::nullopt;
  const auto color = std::to_integer<unsigned>(bytes[kSignature + 17]);
  ImageHeader header{.height = static_cast<int>(height), .width = static_cast<int>(width)};
  header.channels = (color & (PNG_COLOR_MASK_COLOR | PNG_COLOR_MASK_PALETTE)) == 0 ? 1 : 3;
  header.alpha = (color & PNG_COLOR_MASK_ALPHA) != 0;
  for (size_t at = kSignature; bytes.size() - at >= kAround;) {
    const uint32_t length = number(at);
    if (length > bytes.size() - at - kAround || is(at, "IEND")) break;
    if (is(at, "tRNS")) header.alpha = true;
    if (is(at, "eXIf")) header.orientation = exif_orientation(bytes.subspan(at + 8, length));
    at += kAround + length;
  }
  if (swaps_sides(header.orientation)) std::swap(header.height, header.width);
  return header;
}

Image parse_png(std::span<const std::byte> bytes, const std::string& name, const DecodeOptions& options) {
  DYDIT_CHECK(sniff_file_kind(bytes) == FileKind::Png, "{}: is not a PNG file (wrong first bytes)", name);
  Reader reader(bytes, name);
  const auto check = [&](bool done) {
    DYDIT_CHECK(done, "{}: broken PNG file: {}. Fetch or write it again.", name,
                printable(reader.complaint.data()));
  };
  check(read_header(reader));
  const png_uint_32 height = png_get_image_height(reader.png, reader.info);
  const png_uint_32 width = png_get_image_width(reader.png, reader.info);
  const int channels = png_get_channels(reader.png, reader.info);
  check_image_size(width, height, channels, bytes.size(), options.side > 0, name);
  const size_t row_bytes = png_get_rowbytes(reader.png, reader.info);
  DYDIT_CHECK((channels == 1 || channels == 3) && row_bytes == width * static_cast<size_t>(channels),
              "{}: PNG of {} channels in {} bytes a row cannot be read; convert it to RGB first", name,
              channels, row_bytes);
  Image image{static_cast<int>(height), static_cast<int>(width), channels,
              std::vector<uint8_t>(row_bytes * height)};
  const Turn turn = make_turn(options.orientation, image.height, image.width);
  const bool turned = options.orientation != 1;
  std::vector<uint8_t> row(turned ? row_bytes : 0);
  check(read_pixels(reader, {image.pixels.data(), height, width, static_cast<size_t>(channels),
                             turned ? &turn : nullptr, row.data()}));
  if (swaps_sides(options.orientation)) std::swap(image.height, image.width);
  return image;
}

}  // namespace dydit

// Files on disk. Reading is one read-only mapping; writing goes to `.<name>.tmp-<pid>-<n>` beside the target
// and becomes visible by rename(2), so that a reader sees the old file or the new one and nothing between.
#include "dydit/io/file.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <openssl/evp.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <system_error>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

std::string reason(int error_number) { return std::generic_category().message(error_number); }

// Closes a descriptor on every way out.
struct Descriptor {
  int value;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

// The names of this process's own streams. They are never renamed over, even when they lead to a regular
// file.
bool names_an_open_stream(const fs::path& path) {
  const std::string text = path.lexically_normal().string();
  return text.starts_with("/dev/std") || text.starts_with("/dev/fd/") || text.starts_with("/proc/");
}

fs::path temporary_name(const fs::path& target) {
  static std::atomic<unsigned> counter{0};
  // NAME_MAX is 255 bytes on the usual file systems; what we add must fit too.
  const std::string stem = target.filename().string().substr(0, 200);
  return target.parent_path() / fmt::format(".{}.tmp-{}-{}", stem, ::getpid(), counter++);
}

[[noreturn]] void fail_write(const fs::path& target, int error_number) {
  throw Error(fmt::format("{}: cannot write: {}", target.string(), reason(error_number)));
}

}  // namespace

MappedFile::MappedFile(fs::path path, const std::byte* data, size_t size)
    : path_(std::move(path)), data_(data), size_(size) {}

void MappedFile::drop_pages(const void* data, size_t size) const {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin =
      std::max(reinterpret_cast<uintptr_t>(data), reinterpret_cast<uintptr_t>(data_)) / page * page;
  const auto end =
      std::min(reinterpret_cast<uintptr_t>(data) + size, reinterpret_cast<uintptr_t>(data_) + size_);
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

MappedFile::~MappedFile() { ::munmap(const_cast<std::byte*>(data_), size_); }

std::shared_ptr<const MappedFile> MappedFile::open(const fs::path& path) {
  // O_NONBLOCK: opening a pipe without a writer would wait for ever; it is refused just below.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  DYDIT_CHECK(file.value >= 0, "{}: cannot open: {}. Is the path right?", path.string(), reason(errno));
  struct stat status {};
  DYDIT_CHECK(::fstat(file.value, &status) == 0, "{}: cannot stat: {}", path.string(), reason(errno));
  DYDIT_CHECK(!S_ISDIR(status.st_mode), "{}: is a directory; a file is wanted", path.string());
  DYDIT_CHECK(S_ISREG(status.st_mode), "{}: is not a regular file; copy it to one first", path.string());
  DYDIT_CHECK(status.st_size > 0, "{}: is empty (0 bytes); was the download cut short?", path.string());
  const auto size = static_cast<size_t>(status.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.value, 0);
  DYDIT_CHECK(data != MAP_FAILED, "{}: cannot map {} bytes: {}", path.string(), size, reason(errno));
  return std::shared_ptr<const MappedFile>(new MappedFile(path, static_cast<const std::byte*>(data), size));
}

OutputFile::OutputFile(fs::path target) : target_(std::move(target)) {
  std::error_code ignored;  // a target that cannot be looked at fails in open(2) below, with its reason
  const fs::file_status status = fs::status(target_, ignored);
  DYDIT_CHECK(status.type() != fs::file_type::directory, "{}: is a directory; name a file in it",
              target_.string());
  if (names_an_open_stream(target_) || (fs::exists(status) && !fs::is_regular_file(status))) {
    descriptor_ = ::open(target_.c_str(), O_WRONLY | O_CLOEXEC);
    if (descriptor_ < 0) fail_write(target_, errno);
    return;
  }
  if (fs::is_symlink(fs::symlink_status(target_, ignored)) && fs::exists(status)) {
    const fs::path resolved = fs::canonical(target_, ignored);
    if (!resolved.empty()) target_ = resolved;
  }
  do {
    temporary_ = temporary_name(target_);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (descriptor_ < 0 && errno == EEXIST);  // left by a killed process of the same number
  if (descriptor_ < 0) fail_write(target_, errno);
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_write(target_, errno);
    bytes = bytes.subspan(static_cast<size_t>(written));
    size_ += static_cast<uint64_t>(written);
  }
}

void OutputFile::write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

void OutputFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  DYDIT_CHECK(offset <= size_ && bytes.size() <= size_ - offset,
              "{}: {} bytes at {} would pass the {} bytes written so far", target_.string(), bytes.size(),
              offset, size_);
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    DYDIT_CHECK(written >= 0 || errno != ESPIPE,
                "{}: cannot go back to fill in the header of a pipe; write to a regular file",
                target_.string());
    if (written < 0) fail_write(target_, errno);
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
}

void OutputFile::commit(Durability durability) {
  DYDIT_CHECK(descriptor_ >= 0, "{}: is already committed", target_.string());
  if (durability == Durability::Synced && ::fsync(descriptor_) != 0) fail_write(target_, errno);
  const int closed = ::close(descriptor_);
  descriptor_ = -1;  // gone whatever close says; a second close could hit another file
  if (closed != 0) fail_write(target_, errno);
  if (temporary_.empty()) return;
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail_write(target_, errno);
  temporary_.clear();
}

FolderLock::FolderLock(const fs::path& folder)
    : descriptor_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  DYDIT_CHECK(descriptor_ >= 0, "{}: cannot open: {}", folder.string(), reason(errno));
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return;
  const int error_number = errno;
  ::close(descriptor_);
  DYDIT_CHECK(error_number != EWOULDBLOCK,
              "{}: another process is at work in this folder; let it end or stop it first", folder.string());
  // Some network file systems have no locks; what they cannot tell is no reason not to work.
  descriptor_ = -1;
}

FolderLock::~FolderLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

std::string sha256_hex(std::span<const std::byte> bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned length = 0;
  DYDIT_CHECK(EVP_Digest(bytes.data(), bytes.size(), digest.data(), &length, EVP_sha256(), nullptr) == 1,
              "SHA-256 is not available in this OpenSSL; is it configured for FIPS without a provider?");
  return fmt::format("{:02x}", fmt::join(digest.begin(), digest.begin() + length, ""));
}

FileKind sniff_file_kind(std::span<const std::byte> bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with("\x89PNG\r\n\x1a\n")) return FileKind::Png;
  if (text.starts_with("PK\x03\x04") && text.size() >= 30) {
    const auto length = load_little<uint16_t>(bytes.data() + 26);
    const std::string_view first_member = text.substr(30, length);
    if (first_member.ends_with(".npy")) return FileKind::Npz;
    // torch puts every member into one folder: <name>/data.pkl, <name>/data/0
    return first_member.find('/') != std::string_view::npos ? FileKind::TorchZip : FileKind::Unknown;
  }
  // Before the pickle test: a header length may begin with 0x80 too.
  if (text.size() >= 9 && text[8] == '{') return FileKind::Safetensors;
  if (text.size() >= 2 && text[0] == '\x80' && text[1] >= 2 && text[1] <= 5) return FileKind::TorchLegacy;
  return FileKind::Unknown;
}

}  // namespace dydit

// Files on disk. Reading is one copy or one read-only mapping; writing goes to `.<name>.tmp-<pid>-<n>` beside
// the target and becomes visible by rename(2), so that a reader sees the old file or the new one and nothing
// between.
#include "dydit/io/file.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <new>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <openssl/evp.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <system_error>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
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

// Live objects by a pointer of each, for signal handlers: no lock and no heap. What does not fit is left out,
// which costs the handler's courtesy and nothing else.
template <typename T, size_t kSlots>
class Register {
 public:
  void add(const T* item) noexcept {
    for (auto& slot : slots_) {
      const T* free = nullptr;
      if (slot.compare_exchange_strong(free, item)) return;
    }
  }
  void remove(const T* item) noexcept {
    for (auto& slot : slots_) {
      const T* expected = item;
      if (slot.compare_exchange_strong(expected, nullptr)) return;
    }
  }
  const std::array<std::atomic<const T*>, kSlots>& slots() const { return slots_; }

 private:
  static_assert(std::atomic<const T*>::is_always_lock_free);
  std::array<std::atomic<const T*>, kSlots> slots_ = {};
};

Register<MappedFile, 512> mapped_files;  // a checkpoint in shards, a large photograph a thread
Register<char, 64> temporaries;          // names

constexpr std::align_val_t kCopyAlignment{64};  // as the writers of checkpoints place tensors

int64_t modified_ns(const struct stat& status) {
  return int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
}

fs::path temporary_name(const fs::path& target) {
  static std::atomic<unsigned> counter{0};
  // NAME_MAX is 255 bytes on the usual file systems; what we add must fit too.
  const std::string stem = target.filename().string().substr(0, 200);
  return target.parent_path() / fmt::format(".{}.tmp-{}-{}", stem, ::getpid(), counter++);
}

[[noreturn]] void fail_changed(const fs::path& path) {
  throw Error(
      fmt::format("{}: changed while it was in use: another program wrote to it; let that end and run again",
                  path.string()));
}

[[noreturn]] void fail_write(const fs::path& target, int error_number) {
  throw Error(fmt::format("{}: cannot write: {}", target.string(), reason(error_number)));
}

}  // namespace

MappedFile::MappedFile(fs::path path, int descriptor, size_t size)
    : path_(std::move(path)), descriptor_(descriptor), size_(size) {}

MappedFile::~MappedFile() {
  if (!is_mapped()) {
    ::operator delete(const_cast<std::byte*>(data_), kCopyAlignment);
    return;
  }
  mapped_files.remove(this);
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  ::close(descriptor_);
}

std::shared_ptr<const MappedFile> MappedFile::open(const fs::path& path) {
  // O_NONBLOCK: opening a pipe without a writer would wait for ever; it is refused just below.
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  DYDIT_CHECK(file.value >= 0, "{}: cannot open: {}. Is the path right?", path.string(), reason(errno));
  struct stat status {};
  DYDIT_CHECK(::fstat(file.value, &status) == 0, "{}: cannot stat: {}", path.string(), reason(errno));
  DYDIT_CHECK(!S_ISDIR(status.st_mode), "{}: is a directory; a file is wanted", path.string());
  DYDIT_CHECK(S_ISREG(status.st_mode), "{}: is not a regular file; copy it to one first", path.string());
  DYDIT_CHECK(status.st_size > 0, "{}: is empty (0 bytes); was the download cut short?", path.string());
  const std::shared_ptr<MappedFile> result(
      new MappedFile(path, std::exchange(file.value, -1), static_cast<size_t>(status.st_size)));
  result->modified_ns_ = modified_ns(status);
  if (result->size_ <= kCopiedBytes) {
    result->read_copy();
  } else {
    result->map();
  }
  return result;
}

void MappedFile::read_copy() {
  auto* const copy = static_cast<std::byte*>(::operator new(size_, kCopyAlignment));
  const Descriptor file{std::exchange(descriptor_, -1)};
  data_ = copy;  // the destructor's from here
  for (size_t done = 0; done < size_;) {
    const ssize_t got = ::read(file.value, copy + done, size_ - done);
    if (got < 0 && errno == EINTR) continue;
    DYDIT_CHECK(got >= 0, "{}: cannot read: {}", path_.string(), reason(errno));
    if (got == 0) fail_changed(path_);
    done += static_cast<size_t>(got);
  }
  check_state(file.value);
}

void MappedFile::map() {
  void* const data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor_, 0);
  DYDIT_CHECK(data != MAP_FAILED, "{}: cannot map {} bytes: {}", path_.string(), size_, reason(errno));
  data_ = static_cast<const std::byte*>(data);
  mapped_files.add(this);
}

void MappedFile::check_state(int descriptor) const {
  struct stat status {};
  DYDIT_CHECK(::fstat(descriptor, &status) == 0, "{}: cannot stat: {}", path_.string(), reason(errno));
  if (static_cast<size_t>(status.st_size) != size_ || modified_ns(status) != modified_ns_)
    fail_changed(path_);
}

void MappedFile::check_unchanged() const {
  if (is_mapped()) check_state(descriptor_);
}

void MappedFile::drop_pages(const void* data, size_t size) const {
  if (!is_mapped()) return;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin =
      std::max(reinterpret_cast<uintptr_t>(data), reinterpret_cast<uintptr_t>(data_)) / page * page;
  const auto end =
      std::min(reinterpret_cast<uintptr_t>(data) + size, reinterpret_cast<uintptr_t>(data_) + size_);
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

const MappedFile* MappedFile::at(const void* address) noexcept {
  for (const auto& slot : mapped_files.slots()) {
    const MappedFile* const file = slot.load();
    if (file == nullptr) continue;
    const auto begin = reinterpret_cast<uintptr_t>(file->data_);
    if (reinterpret_cast<uintptr_t>(address) - begin < file->size_) return file;
  }
  return nullptr;
}

std::optional<int> own_descriptor(fs::path path) {
  constexpr int kMostLinks = 40;  // as the system's own
  std::error_code error;
  const fs::path descriptors = fs::canonical("/proc/self/fd", error);
  for (int link = 0; link < kMostLinks && !error; ++link) {
    const fs::path folder = fs::canonical(path.has_parent_path() ? path.parent_path() : ".", error);
    const std::string name = path.filename().string();
    if (!error && folder == descriptors) {
      if (const auto number = parse_number<int>(name); number && *number >= 0) return number;
    }
    if (!error) path = folder / fs::read_symlink(folder / name, error);
  }
  return std::nullopt;
}

OutputFile::OutputFile(fs::path target) : target_(std::move(target)) {
  if (const std::optional<int> stream = own_descriptor(target_)) {
    is_stream_ = true;
    const int mode = ::fcntl(*stream, F_GETFL);
    if (mode < 0) fail_write(target_, errno);
    if ((mode & O_ACCMODE) == O_RDONLY) fail_write(target_, EBADF);
    descriptor_ = ::fcntl(*stream, F_DUPFD_CLOEXEC, 0);
    if (descriptor_ < 0) fail_write(target_, errno);
    return;
  }
  std::error_code ignored;  // a target that cannot be looked at fails in open(2) below, with its reason
  const fs::file_status status = fs::status(target_, ignored);
  DYDIT_CHECK(status.type() != fs::file_type::directory && target_.has_filename(),
              "{}: is a directory; name a file in it", target_.string());
  const bool other_process = target_.lexically_normal().string().starts_with("/proc/");  // its open file
  if (other_process || (fs::exists(status) && !fs::is_regular_file(status))) {
    descriptor_ = ::open(target_.c_str(), O_WRONLY | O_CLOEXEC);
    if (descriptor_ < 0) fail_write(target_, errno);
    return;
  }
  if (fs::is_symlink(fs::symlink_status(target_, ignored)) && fs::exists(status)) {
    const fs::path resolved = fs::canonical(target_, ignored);
    if (!resolved.empty()) target_ = resolved;
  }
  if (const int error_number = open_temporary(); error_number != 0) {
    abandon();  // no destructor after a constructor that throws
    fail_write(target_, error_number);
  }
}

// Returns errno, or 0.
int OutputFile::open_temporary() {
  std::vector<fs::path> missing;
  std::error_code ignored;
  for (fs::path folder = target_.parent_path(); !folder.empty() && !fs::exists(folder, ignored);
       folder = folder.parent_path()) {
    missing.push_back(folder);
  }
  for (; !missing.empty(); missing.pop_back()) {
    if (::mkdir(missing.back().c_str(), 0777) == 0) {
      made_folders_.push_back(missing.back());
    } else if (errno != EEXIST) {
      return errno;
    }
  }
  int error_number = 0;
  do {
    temporary_ = temporary_name(target_);
    temporaries.add(temporary_.c_str());  // before it is there: a signal in between would leave it
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ >= 0) return 0;
    error_number = errno;
    temporaries.remove(temporary_.c_str());
  } while (error_number == EEXIST);  // left by a killed process of the same number
  temporary_.clear();
  return error_number;
}

OutputFile::~OutputFile() { abandon(); }

void OutputFile::abandon() noexcept {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) {
    ::unlink(temporary_.c_str());
    temporaries.remove(temporary_.c_str());
  }
  for (; !made_folders_.empty(); made_folders_.pop_back()) ::rmdir(made_folders_.back().c_str());
}

void OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int error_number = errno;
      const MappedFile* const source = error_number == EFAULT ? MappedFile::at(bytes.data()) : nullptr;
      if (source != nullptr) source->check_unchanged();  // cut short: there is nothing to write any more
      fail_write(target_, error_number);
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
    size_ += static_cast<uint64_t>(written);
  }
}

void OutputFile::write(std::string_view text) { write(bytes_of(text)); }

void OutputFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  DYDIT_CHECK(offset <= size_ && bytes.size() <= size_ - offset,
              "{}: {} bytes at {} would pass the {} bytes written so far", target_.string(), bytes.size(),
              offset, size_);
  // A stream begins anywhere and may be in append mode.
  DYDIT_CHECK(!is_stream_, "{}: cannot go back to fill in the header of a stream; write to a regular file",
              target_.string());
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
  const bool synced = durability == Durability::Synced && !temporary_.empty();
  if (synced && ::fsync(descriptor_) != 0) fail_write(target_, errno);
  const int closed = ::close(descriptor_);
  descriptor_ = -1;  // gone whatever close says; a second close could hit another file
  if (closed != 0) fail_write(target_, errno);
  if (temporary_.empty()) return;
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail_write(target_, errno);
  temporaries.remove(temporary_.c_str());
  temporary_.clear();
  if (synced) sync_folders();
  made_folders_.clear();
}

// A name is on the disk once its folder is, and so is a folder's.
void OutputFile::sync_folders() const {
  std::vector<fs::path> names = made_folders_;
  names.push_back(target_);
  for (const fs::path& name : names) {
    const fs::path folder = name.has_parent_path() ? name.parent_path() : fs::path(".");
    const Descriptor opened{::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (opened.value < 0) continue;  // one that may be written but not read cannot be synced
    // EINVAL: a file system that has no such thing.
    if (::fsync(opened.value) != 0 && errno != EINVAL) fail_write(target_, errno);
  }
}

void write_output_file(const fs::path& target, std::string_view text) {
  OutputFile file(target);
  file.write(text);
  file.commit();
}

void check_writable(const fs::path& target) {
  std::error_code ignored;
  const fs::file_status status = fs::status(target, ignored);
  // A pipe's reader would take the opening and closing for all that is to come.
  if (!own_descriptor(target) && fs::exists(status) && !fs::is_regular_file(status) &&
      !fs::is_directory(status)) {
    if (::access(target.c_str(), W_OK) != 0) fail_write(target, errno);
    return;
  }
  const OutputFile probe(target);  // removed again: never committed
}

void check_not_input(const fs::path& output, std::span<const fs::path> inputs) {
  for (const fs::path& input : inputs) {
    std::error_code unlike;  // one of the two does not exist
    DYDIT_USAGE_CHECK(!fs::equivalent(output, input, unlike) || unlike,
                      "{}: is the input {} itself, which would be lost; name another file", output.string(),
                      input.string());
  }
}

void remove_temporaries() noexcept {
  for (const auto& slot : temporaries.slots()) {
    if (const char* const name = slot.load()) ::unlink(name);
  }
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
  const std::string_view text = text_of(bytes);
  if (text.starts_with("\x89PNG\r\n\x1a\n")) return FileKind::Png;
  if (text.starts_with("PK\x03\x04") && text.size() >= 30) {
    const auto length = load_little<uint16_t>(bytes.data() + 26);
    const std::string_view first_member = text.substr(30, length);
    if (first_member.ends_with(".npy")) return FileKind::Npz;
    // torch puts every member into one folder: <name>/data.pkl, <name>/data/0
    return first_member.find('/') != std::string_view::npos ? FileKind::TorchZip : FileKind::Unknown;
  }
  // Before the pickle test: a header length may begin with 0x80 too.
  // A text of JSON may have its '{' there, too, but no header is so long that the eighth byte is one of a
  // text.
  if (text.size() >= 9 && text[8] == '{' && !is_text_byte(text[7])) return FileKind::Safetensors;
  if (text.size() >= 2 && text[0] == '\x80' && text[1] >= 2 && text[1] <= 5) return FileKind::TorchLegacy;
  return FileKind::Unknown;
}

}  // namespace dydit

// Limits of control groups, read from trees that the tests make, and of the process itself.
#include "dydit/base/machine.h"

#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "tests/support/files.h"

namespace dydit {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

// A root with proc/ and sys/ as the kernel shows them; a machine of 64 GiB.
class Root {
 public:
  Root() {
    write("proc/meminfo", "MemTotal:       67108864 kB\nMemFree:         1000 kB\nSwapTotal:   0 kB\n");
  }

  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << text;
  }
  std::filesystem::path path() const { return folder_ / ""; }

  // Version 2, the process in `group`, of a mount that shows the hierarchy from `top` on.
  void unified(const std::string& group, const std::string& top = "/") const {
    write("proc/self/cgroup", "0::" + group + "\n");
    write("proc/self/mountinfo",
          "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
          "30 22 0:26 " +
              top + " /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
  }
  // Version 1: cpu and cpuacct together, memory by itself; beside them a hierarchy of version 2 without
  // limits.
  void separate(const std::string& group, const std::string& top = "/") const {
    write("proc/self/cgroup",
          "5:memory:" + group + "\n4:cpu,cpuacct:" + group + "\n1:name=systemd:/x\n0::/\n");
    write("proc/self/mountinfo", "31 22 0:27 " + top +
                                     " /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
                                     "32 22 0:28 " +
                                     top +
                                     " /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
                                     "33 22 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  }

 private:
  test::TemporaryFolder folder_;
};

// The threads that a quota of so many processors would give, had the machine no end of cores.
int quota_of(const Root& root) {
  const int threads = default_threads(root.path());
  EXPECT_GE(threads, 1);
  EXPECT_LE(threads, physical_cores());
  return threads;
}

// As quota_of must answer on this machine for `processors`.
int at_most(int processors) { return std::min(processors, physical_cores()); }

TEST(DefaultThreads, AreTheCoresWithoutAnyLimit) {
  EXPECT_EQ(quota_of(Root()), physical_cores());
  Root unified, separate;
  unified.unified("/user");
  unified.write("sys/fs/cgroup/user/cpu.max", "max 100000\n");
  EXPECT_EQ(quota_of(unified), physical_cores());
  separate.separate("/user");
  separate.write("sys/fs/cgroup/cpu,cpuacct/user/cpu.cfs_quota_us", "-1\n");
  separate.write("sys/fs/cgroup/cpu,cpuacct/user/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota_of(separate), physical_cores());
}

TEST(DefaultThreads, AreAsManyAsTheQuotaRoundedUp) {
  for (const auto& [max, processors] : std::vector<std::pair<std::string, int>>{
           {"100000 100000", 1}, {"50000 100000", 1}, {"150000 100000", 2}, {"1000 1000000", 1}}) {
    Root root;
    root.unified("/user");
    root.write("sys/fs/cgroup/user/cpu.max", max + "\n");
    EXPECT_EQ(quota_of(root), at_most(processors)) << max;
  }
}

TEST(DefaultThreads, ObeyTheSmallestQuotaOnTheWayUp) {
  for (const char* tight :
       {"sys/fs/cgroup/cpu.max", "sys/fs/cgroup/a/cpu.max", "sys/fs/cgroup/a/b/cpu.max"}) {
    Root root;
    root.unified("/a/b");
    for (const char* file : {"sys/fs/cgroup/cpu.max", "sys/fs/cgroup/a/cpu.max", "sys/fs/cgroup/a/b/cpu.max"})
      root.write(file, "6400000 100000\n");
    root.write("sys/fs/cgroup/a/other/cpu.max", "1000 100000\n");  // not on the way
    EXPECT_EQ(quota_of(root), at_most(64));
    root.write(tight, "100000 100000\n");
    EXPECT_EQ(quota_of(root), 1) << tight;
  }
}

TEST(DefaultThreads, ObeyTheQuotaOfVersion1) {
  Root root;
  root.separate("/docker/abc");
  root.write("sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_quota_us", "90000\n");
  root.write("sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota_of(root), 1);
}

// In a container proc/self/cgroup may speak of the machine's hierarchy, of which only the own part is
// mounted.
TEST(DefaultThreads, ObeyTheQuotaOfAContainerThatSeesItselfAtTheTop) {
  for (const auto& [group, top] :
       std::vector<std::pair<std::string, std::string>>{{"/docker/abc", "/docker/abc"},
                                                        {"/", "/"},
                                                        {"/../elsewhere", "/"},
                                                        {"/docker/abc", "/kubepods/x"}}) {
    Root unified, separate;
    unified.unified(group, top);
    unified.write("sys/fs/cgroup/cpu.max", "100000 100000\n");
    EXPECT_EQ(quota_of(unified), 1) << group << " under " << top;
    separate.separate(group, top);
    separate.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "100000\n");
    separate.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    EXPECT_EQ(quota_of(separate), 1) << group << " under " << top;
  }
}

TEST(DefaultThreads, ObeyAGroupBelowTheTopOfAContainer) {
  Root root;
  root.unified("/docker/abc/inner", "/docker/abc");
  root.write("sys/fs/cgroup/inner/cpu.max", "100000 100000\n");
  EXPECT_EQ(quota_of(root), 1);
}

TEST(DefaultThreads, PassOverWhatTheyCannotRead) {
  Root root;
  root.write("proc/self/cgroup", "nonsense\n0:\n::\n0::/a\n");
  root.write("proc/self/mountinfo",
             "\nx - \n1 2 3 - cgroup2\n30 22 0:26 / /sys/fs/cgroup rw - cgroup2 x rw\n");
  root.write("sys/fs/cgroup/a/cpu.max", "lots of it\n");
  root.write("sys/fs/cgroup/cpu.max", "0 0\n");
  EXPECT_EQ(quota_of(root), physical_cores());
}

TEST(MemoryLimit, IsTheMachinesMemoryAndSwapWithoutAnyOther) {
  Root root;
  EXPECT_EQ(memory_limit(root.path()).bytes, 64 * kGiB);
  EXPECT_EQ(memory_limit(root.path()).by, "this machine has");
  root.write("proc/meminfo", "MemTotal: 1048576 kB\nSwapTotal: 2097152 kB\n");
  EXPECT_EQ(memory_limit(root.path()).bytes, 3 * kGiB);
}

TEST(MemoryLimit, IsTheSmallestOnTheWayUp) {
  for (const char* tight : {"", "a/", "a/b/"}) {
    Root unified, separate;
    unified.unified("/a/b");
    separate.separate("/a/b");
    for (const char* folder : {"", "a/", "a/b/"}) {
      const bool least = std::string(folder) == tight;
      unified.write(std::string("sys/fs/cgroup/") + folder + "memory.max", least ? "1073741824\n" : "max\n");
      separate.write(std::string("sys/fs/cgroup/memory/") + folder + "memory.limit_in_bytes",
                     least ? "1073741824\n" : "9223372036854771712\n");
    }
    for (const Root* root : {&unified, &separate}) {
      EXPECT_EQ(memory_limit(root->path()).bytes, kGiB) << tight;
      EXPECT_EQ(memory_limit(root->path()).by, "its control group allows");
    }
  }
}

TEST(MemoryLimit, CountsTheSwapThatAGroupMayUse) {
  const std::string machine = "MemTotal: 67108864 kB\nSwapTotal: 4194304 kB\n";  // 64 and 4 GiB
  for (const auto& [swap, wanted] :
       std::vector<std::pair<std::string, int64_t>>{{"0", 1}, {"max", 5}, {"1073741824", 2}}) {
    Root root;
    root.unified("/a");
    root.write("proc/meminfo", machine);
    root.write("sys/fs/cgroup/a/memory.max", "1073741824\n");
    root.write("sys/fs/cgroup/a/memory.swap.max", swap + "\n");
    EXPECT_EQ(memory_limit(root.path()).bytes, wanted * kGiB) << swap;
  }
  Root root;
  root.separate("/a");
  root.write("proc/meminfo", machine);
  root.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1073741824\n");
  EXPECT_EQ(memory_limit(root.path()).bytes, 5 * kGiB);
  root.write("sys/fs/cgroup/memory/a/memory.memsw.limit_in_bytes", "2147483648\n");
  EXPECT_EQ(memory_limit(root.path()).bytes, 2 * kGiB);
}

// Lowers this process's own limit while it lives.
class OwnLimit {
 public:
  OwnLimit(__rlimit_resource resource, uint64_t bytes) : resource_(resource) {
    getrlimit(resource, &before_);
    const rlimit lower = {bytes, before_.rlim_max};
    EXPECT_EQ(setrlimit(resource, &lower), 0);
  }
  ~OwnLimit() { setrlimit(resource_, &before_); }

 private:
  __rlimit_resource resource_;
  rlimit before_;
};

TEST(MemoryLimit, IsTheProcesssOwnWhereThatIsSmaller) {
  Root root;
  root.write("proc/meminfo", "MemTotal: 1073741824000 kB\n");  // a pebibyte
  {
    const OwnLimit limit(RLIMIT_AS, uint64_t{1} << 45);
    EXPECT_EQ(memory_limit(root.path()).bytes, int64_t{1} << 45);
    EXPECT_EQ(memory_limit(root.path()).by, "ulimit -v allows");
  }
  const OwnLimit limit(RLIMIT_DATA, uint64_t{1} << 44);
  EXPECT_EQ(memory_limit(root.path()).bytes, int64_t{1} << 44);
  EXPECT_EQ(memory_limit(root.path()).by, "ulimit -d allows");
}

TEST(CheckMemory, RefusesOnlyMoreThanThereIsAndSaysBoth) {
  const MemoryLimit limit = memory_limit();
  ASSERT_GT(limit.bytes, 0);
  check_memory(static_cast<double>(limit.bytes), "all of it", "");
  const std::string message =
      test::error_of([&] { check_memory(1e24, "a batch of 9 images", "take fewer"); });
  EXPECT_EQ(message, "a batch of 9 images: needs at least 1000000000000 TB of memory, " + limit.by + " " +
                         memory_text(static_cast<double>(limit.bytes)) + "; take fewer");
}

TEST(MemoryText, HasThreeDigits) {
  EXPECT_EQ(memory_text(0), "0 MB");
  EXPECT_EQ(memory_text(1.5e6), "1.5 MB");
  EXPECT_EQ(memory_text(64e6), "64 MB");
  EXPECT_EQ(memory_text(999.6e6), "1 GB");
  EXPECT_EQ(memory_text(24.56e9), "24.6 GB");
  EXPECT_EQ(memory_text(312.4e9), "312 GB");
  EXPECT_EQ(memory_text(17.6e12), "17.6 TB");
}

}  // namespace
}  // namespace dydit

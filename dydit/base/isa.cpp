// CPUID through the compiler's builtins; caps handed to oneDNN and ATen by the variables they read.
#include "dydit/base/isa.h"

#include <algorithm>
#include <array>
#include <cpuid.h>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <unistd.h>

#include <sys/syscall.h>

#include "dydit/base/error.h"

namespace dydit {
namespace {

struct IsaNames {
  Isa isa;
  std::string_view name;
  const char* onednn;  // ONEDNN_MAX_CPU_ISA
  const char* aten;    // ATEN_CPU_CAPABILITY
};
constexpr std::array kIsaNames = {
    IsaNames{Isa::Sse, "sse", "SSE41", "default"},
    IsaNames{Isa::Avx2, "avx2", "AVX2", "avx2"},
    IsaNames{Isa::Avx512, "avx512", "AVX512_CORE_VNNI", "avx512"},
    IsaNames{Isa::Avx512Bf16, "avx512_bf16", "AVX512_CORE_BF16", "avx512"},
    IsaNames{Isa::Amx, "amx", "AVX512_CORE_AMX", "avx512"},
};

std::optional<Isa> applied_level;

// Linux gives a process the tile registers, 8 KiB a thread, when it asks for them.
bool request_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of arch_prctl(2)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx_bf16() {
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBf16) && (d & kTiles) && request_tiles();
}

}  // namespace

Isa detect_isa() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::Sse;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return Isa::Avx2;
  }
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::Avx512;
  return has_amx_bf16() ? Isa::Amx : Isa::Avx512Bf16;
}

std::string_view isa_name(Isa isa) { return kIsaNames[static_cast<size_t>(isa)].name; }

Isa apply_isa_cap(const std::string& cap) {
  const Isa detected = detect_isa();
  Isa level = detected;
  if (!cap.empty()) {
    const IsaNames* found = nullptr;
    for (const IsaNames& names : kIsaNames) {
      if (names.name == cap) found = &names;
    }
    DYDIT_USAGE_CHECK(found, "DYDIT_ISA={}: expected avx2, avx512, avx512_bf16 or amx", cap);
    level = std::min(detected, found->isa);
    // The user's own ONEDNN_MAX_CPU_ISA or ATEN_CPU_CAPABILITY would contradict what is printed.
    setenv("ONEDNN_MAX_CPU_ISA", kIsaNames[static_cast<size_t>(level)].onednn, 1);
    setenv("ATEN_CPU_CAPABILITY", kIsaNames[static_cast<size_t>(level)].aten, 1);
  }
  DYDIT_USAGE_CHECK(level >= Isa::Avx2, "{}: this program needs AVX2 and FMA; {}",
                    cap.empty() ? "this processor has no AVX2" : "DYDIT_ISA=" + cap,
                    detected >= Isa::Avx2 ? "unset DYDIT_ISA or set it to avx2 or above"
                                          : "run it on a processor of 2013 or later");
  applied_level = level;
  return level;
}

Isa active_isa() {
  static const Isa detected = detect_isa();
  return applied_level.value_or(detected);
}

bool has_vnni(Isa isa) {
  if (isa >= Isa::Avx512) return __builtin_cpu_supports("avx512vnni");
  constexpr unsigned kAvxVnni = 1u << 4;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return isa == Isa::Avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvxVnni);
}

bool is_intel() {
  static const bool intel = __builtin_cpu_is("intel");
  return intel;
}

std::string cpu_model_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

}  // namespace dydit

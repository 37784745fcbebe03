// Which instructions the processor has and which ones a run may use (DYDIT_ISA).
#pragma once

#include <string>
#include <string_view>

namespace dydit {

/// Levels in ascending order; each includes the ones before it.
enum class Isa { Sse, Avx2, Avx512, Avx512Bf16, Amx };

/// The highest level this processor (and operating system) offers. Where there is AMX, asks for its
/// registers.
Isa detect_isa();
/// "sse", "avx2", "avx512", "avx512_bf16", "amx".
std::string_view isa_name(Isa isa);

/// Caps this process, its oneDNN and its ATen kernels to `cap` (a name, or empty for none) and returns the
/// level in force. Must be called before the first tensor operation. Throws UsageError for an unknown name
/// and for a level below AVX2, which the project does not support.
Isa apply_isa_cap(const std::string& cap);

/// The level in force: what apply_isa_cap returned, else what the processor offers.
Isa active_isa();

/// Whether there are dot products of bytes (VNNI) at a level: in vectors of 512 bits, or of 256 at Avx2.
bool has_vnni(Isa isa);

/// Whether Intel made the processor.
bool is_intel();

/// The processor's name, as the operating system gives it.
std::string cpu_model_name();

}  // namespace dydit

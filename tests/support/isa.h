// DYDIT_ISA caps the tests as it does the program: DYDIT_ISA=avx2 build/release/tests/engine_tests.
#pragma once

namespace dydit::test {

/// The level of DYDIT_ISA, or the processor's own; in force from the start of every test program with
/// LibTorch.
void apply_isa_of_environment();

}  // namespace dydit::test

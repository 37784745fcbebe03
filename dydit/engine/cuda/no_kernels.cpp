// The kernels of a build without them.
#include "dydit/engine/cuda/errors.h"
#include "dydit/engine/cuda/launch.h"

namespace dydit::cuda {
namespace {

[[noreturn]] void missing() { refuse("this build has no kernels"); }

}  // namespace

bool has_kernels() { return false; }
bool has_attention(int /*N*/, int /*D*/) { return false; }
size_t packed_router_words(int /*C*/, int /*R*/) { missing(); }
void pack_router(uint32_t* /*packed*/, const float* /*w1*/, int /*C*/, int /*R*/) { missing(); }
void residual_norm(Bf16* /*out*/, float* /*x*/, const Addend& /*addend*/, const Modulation& /*modulation*/,
                   const Rows& /*rows*/, float /*eps*/, void* /*stream*/) {
  missing();
}
void norm_gather(Bf16* /*out*/, const float* /*x*/, const int* /*chosen*/, const Modulation& /*modulation*/,
                 const Rows& /*rows*/, float /*eps*/, void* /*stream*/) {
  missing();
}
void residual_router(float* /*logits*/, float* /*x*/, const Addend& /*addend*/, const TokenRouter& /*router*/,
                     const Modulation& /*modulation*/, const Rows& /*rows*/, void* /*stream*/) {
  missing();
}
void choose_tokens(const ChosenTokens& /*chosen*/, const float* /*logits*/, const TokenRule& /*rule*/,
                   int /*B*/, int /*T*/, void* /*stream*/) {
  missing();
}
void attention(Bf16* /*out*/, const Bf16* /*qkv*/, float /*scale*/, int /*B*/, int /*N*/, int /*n*/,
               int /*D*/, void* /*stream*/) {
  missing();
}

}  // namespace dydit::cuda

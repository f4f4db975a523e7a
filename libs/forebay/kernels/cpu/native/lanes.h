// Sixteen numbers at once, in the widest form that this build of the library may use.
//
// Every kernel is written once, against the functions below; each library is compiled for one instruction set, which
// picks one of the three files. All of them compute lane by lane in the same order, so that a kernel's result differs
// between instruction sets only by how products are rounded (scalar: no fused multiply-add; bf16 pairs: see dot2).
//
//   F32   16 floats
//   I32   16 words of 32 bits: integers, four bytes each, or a pair of bf16 each
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace forebay::lanes {

constexpr int kCount = 16;
// How far loops over rows or queries are unrolled: all the way where their sums are to stay in registers.
#if defined(__AVX2__)
constexpr int kUnroll = 16;
#else
constexpr int kUnroll = 1;
#endif

}  // namespace forebay::lanes

#if defined(__AVX512F__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#include "lanes_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "lanes_avx2.h"
#else
#include "lanes_scalar.h"
#endif

// Vectors of floats as wide as the instruction set has them, for the sources built once for each
// instruction set (FOURLANE_ISA names the namespace). Private to them.
//
// Everything has internal linkage: an inline function compiled with AVX-512 could else be the copy the
// linker keeps for everybody. For the same reason those sources call nothing of the standard library.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fourlane::FOURLANE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// GCC's and Clang's vector types; `Loose...` may lie at any address their elements may lie at.
using Floats [[gnu::vector_size(kLanes * 4)]] = float;
using Ints [[gnu::vector_size(kLanes * 4)]] = std::int32_t;
using LooseFloats [[gnu::vector_size(kLanes * 4), gnu::aligned(4), gnu::may_alias]] = float;

inline Floats splat(float value) { return Floats{} + value; }
inline Floats load(const float* at) { return *reinterpret_cast<const LooseFloats*>(at); }
inline void store(float* at, Floats value) { *reinterpret_cast<LooseFloats*>(at) = value; }

// a * b + c, fused where the instruction set has it. Not left to the compiler's contraction, which may
// choose differently in two instances of one template and so break batch invariance.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

// exp(-|x|) to about 1 ulp, 0 where it would be subnormal. Cephes' expf: x = n ln 2 + r, a polynomial in r, times 2^n.
inline Floats exp_of_negative(Floats magnitude) {
    constexpr float kLeast = 87.0F;  // exp(-87.34) is the least normal number
    const Ints in_range = magnitude < splat(kLeast);
    const Floats x = in_range ? -magnitude : splat(-kLeast);
    const Floats shifter = splat(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer
    const Floats shifted = multiply_add(x, splat(1.44269504088896341F), shifter);
    const Floats n = shifted - shifter;
    Floats r = multiply_add(n, splat(-0.693359375F), x);
    r = multiply_add(n, splat(2.12194440e-4F), r);
    Floats p = splat(1.9875691500e-4F);
    p = multiply_add(p, r, splat(1.3981999507e-3F));
    p = multiply_add(p, r, splat(8.3334519073e-3F));
    p = multiply_add(p, r, splat(4.1665795894e-2F));
    p = multiply_add(p, r, splat(1.6666665459e-1F));
    p = multiply_add(p, r, splat(5.0000001201e-1F));
    p = multiply_add(p, r * r, r) + 1.0F;
    const Ints exponent = reinterpret_cast<Ints>(shifted) << 23;  // n sits in the low bits of `shifted`
    const Floats result = reinterpret_cast<Floats>(reinterpret_cast<Ints>(p) + exponent);
    return in_range ? result : (magnitude == magnitude ? Floats{} : magnitude);
}

}  // namespace
}  // namespace fourlane::FOURLANE_ISA

// Rows of float32 to float8 with scales and back, compiled once for each instruction set; see vectors.hpp for the rules.
//
// Every step is one correctly rounded operation, so that any other implementation of them gives the same bits.
#include "float8_kernels.hpp"

#include <cstddef>
#include <cstdint>

#include "fourlane/float8_rows.hpp"
#include "vectors.hpp"

namespace fourlane::FOURLANE_ISA {
namespace {

static_assert(kFloat8Block % kLanes == 0);

using Codes [[gnu::vector_size(kLanes)]] = std::uint8_t;
using LooseCodes [[gnu::vector_size(kLanes), gnu::aligned(1), gnu::may_alias]] = std::uint8_t;

constexpr std::int32_t kMagnitude = 0x7fffffff;
constexpr std::int32_t kInfinity = 0x7f800000;
constexpr float kGreatest = 448.0F;
constexpr float kLeastMaximum = kGreatest * 0x1p-126F;  // a scale is never subnormal

inline Ints all(std::int32_t value) { return Ints{} + value; }
inline Ints bits_of(Floats values) { return reinterpret_cast<Ints>(values); }

inline Floats load_up_to(const float* at, std::int64_t count) {
    if (count >= kLanes) return load(at);
    Floats values{};
    for (std::int64_t i = 0; i < count; ++i) values[i] = at[i];
    return values;
}

// The greatest magnitude among the finite values, at least kLeastMaximum.
inline float greatest_of(const float* x, std::int64_t count) {
    Ints greatest{};  // magnitudes are ordered as their bits
    for (std::int64_t i = 0; i < count; i += kLanes) {
        const Ints magnitude = bits_of(load_up_to(x + i, count - i)) & all(kMagnitude);
        const Ints finite = magnitude < all(kInfinity) ? magnitude : Ints{};
        greatest = finite > greatest ? finite : greatest;
    }
    std::int32_t bits = greatest[0];
    for (int i = 1; i < kLanes; ++i) bits = greatest[i] > bits ? greatest[i] : bits;
    const float value = __builtin_bit_cast(float, bits);
    return value > kLeastMaximum ? value : kLeastMaximum;
}

// The nearest float8 (ties to even) of values up to 448; what is not finite becomes NaN. PyTorch's way, in lanes.
inline Codes encode(Floats values) {
    const Ints bits = bits_of(values);
    const Ints magnitude = bits & all(kMagnitude);
    const Ints odd = (magnitude >> 20) & all(1);
    const Ints normal = (magnitude - all(120 << 23) + all(0x7ffff) + odd) >> 20;
    // Adding 2^14 leaves the code of what is below 2^-6 in the last bits.
    const Ints subnormal = bits_of(reinterpret_cast<Floats>(magnitude) + splat(0x1p14F)) - all(141 << 23);
    Ints code = magnitude < all(121 << 23) ? subnormal : normal;
    code = magnitude >= all(kInfinity) ? all(0x7f) : code;
    return __builtin_convertvector(code | ((bits >> 24) & all(0x80)), Codes);
}

inline Floats decode(Codes codes) {
    const Ints code = __builtin_convertvector(codes, Ints);
    const Ints magnitude = code & all(0x7f);
    const Floats normal = reinterpret_cast<Floats>((magnitude << 20) + all(120 << 23));
    const Floats subnormal = __builtin_convertvector(magnitude, Floats) * splat(0x1p-9F);
    Ints bits = magnitude < all(8) ? bits_of(subnormal) : bits_of(normal);
    bits = magnitude == all(0x7f) ? all(0x7fc00000) : bits;
    return reinterpret_cast<Floats>(bits | ((code & all(0x80)) << 24));
}

void pack(const float* x, std::int64_t columns, std::byte* packed) {
    auto* codes = reinterpret_cast<std::uint8_t*>(packed);
    std::byte* scales = packed + columns;
    for (std::int64_t first = 0; first < columns; first += kFloat8Block, scales += sizeof(float)) {
        const std::int64_t left = columns - first;
        const std::int64_t count = left < kFloat8Block ? left : kFloat8Block;
        const float greatest = greatest_of(x + first, count);
        const float scale = greatest / kGreatest;
        const Floats inverse = splat(kGreatest / greatest);
        __builtin_memcpy(scales, &scale, sizeof scale);
        for (std::int64_t i = first; i < first + count; i += kLanes) {
            const std::int64_t rest = first + count - i;
            const Codes some = encode(load_up_to(x + i, rest) * inverse);
            if (rest >= kLanes) {
                *reinterpret_cast<LooseCodes*>(codes + i) = some;
            } else {
                for (std::int64_t lane = 0; lane < rest; ++lane) codes[i + lane] = some[lane];
            }
        }
    }
}

void unpack(const std::byte* packed, std::int64_t columns, float* x) {
    const auto* codes = reinterpret_cast<const std::uint8_t*>(packed);
    const std::byte* scales = packed + columns;
    for (std::int64_t first = 0; first < columns; first += kFloat8Block, scales += sizeof(float)) {
        float scale = 0;
        __builtin_memcpy(&scale, scales, sizeof scale);
        const std::int64_t left = columns - first;
        const std::int64_t end = first + (left < kFloat8Block ? left : kFloat8Block);
        std::int64_t i = first;
        for (; i + kLanes <= end; i += kLanes) {
            store(x + i, decode(*reinterpret_cast<const LooseCodes*>(codes + i)) * splat(scale));
        }
        if (i < end) {
            Codes some{};
            for (std::int64_t lane = 0; lane < end - i; ++lane) some[lane] = codes[i + lane];
            const Floats values = decode(some) * splat(scale);
            for (std::int64_t lane = 0; lane < end - i; ++lane) x[i + lane] = values[lane];
        }
    }
}

}  // namespace

const Float8Kernels kFloat8Kernels = {&pack, &unpack};

}  // namespace fourlane::FOURLANE_ISA

// Draws that are the same on every machine: splitmix64, and normals from sums of its bits.
//
// Source: G. Steele, D. Lea, C. Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
#pragma once

#include <cstdint>

namespace fourlane::balance {

class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t bits() {
        std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
        return z ^ (z >> 31);
    }

    // An integer in 0 .. count - 1.
    std::int32_t below(std::int32_t count) {
        return static_cast<std::int32_t>(((bits() >> 32) * static_cast<std::uint64_t>(count)) >> 32);
    }

    // Near a standard normal: twelve uniforms of 21 bits less their mean (Irwin-Hall), within -6 .. 6.
    double normal() {
        std::int64_t sum = 0;
        for (int word = 0; word < 4; ++word) {
            const std::uint64_t drawn = bits();
            sum += static_cast<std::int64_t>((drawn & kMask) + ((drawn >> 21) & kMask) + ((drawn >> 42) & kMask));
        }
        return static_cast<double>(2 * sum + 12 - 12 * (std::int64_t{1} << 21)) / static_cast<double>(std::int64_t{1} << 22);
    }

private:
    static constexpr std::uint64_t kMask = (1ULL << 21) - 1;
    std::uint64_t state_;
};

}  // namespace fourlane::balance

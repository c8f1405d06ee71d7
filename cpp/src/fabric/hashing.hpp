// Mixing functions with a fixed result on every machine.
#pragma once

#include <cstdint>

namespace fourlane::fabric {

// The finaliser of MurmurHash3 (public domain), 32 bits.
inline std::uint32_t mix32(std::uint32_t h) {
    h ^= h >> 16;
    h *= 0x85ebca6bU;
    h ^= h >> 13;
    h *= 0xc2b2ae35U;
    return h ^ (h >> 16);
}

// The finaliser of SplitMix64 (Steele, Lea, Flood: OOPSLA 2014).
inline std::uint64_t mix64(std::uint64_t h) {
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9ULL;
    h = (h ^ (h >> 27)) * 0x94D049BB133111EBULL;
    return h ^ (h >> 31);
}

inline constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ULL;
inline constexpr std::uint64_t kStep = 0xD1B54A32D192ED03ULL;

// Map a 32-bit hash evenly to 0..count-1.
inline std::uint32_t reduce(std::uint32_t hash, std::size_t count) {
    return static_cast<std::uint32_t>((static_cast<std::uint64_t>(hash) * count) >> 32);
}

}  // namespace fourlane::fabric

// Draws that a seed decides, the same on every machine.
#pragma once

#include <cstdint>

namespace fourlane::balance {

// Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014.
class Draws {
public:
    explicit Draws(std::uint64_t seed) : state_(seed) {}

    // A number in 0 .. end - 1.
    std::int32_t below(std::int32_t end) {
        state_ += 0x9e3779b97f4a7c15;
        std::uint64_t z = state_;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        z ^= z >> 31;
        return static_cast<std::int32_t>((z >> 32) * static_cast<std::uint64_t>(end) >> 32);
    }

private:
    std::uint64_t state_;
};

}  // namespace fourlane::balance

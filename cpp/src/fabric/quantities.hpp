// Time and bytes as types of their own, so that one is not taken for the other.
#pragma once

#include <compare>
#include <cstdint>
#include <limits>

namespace fourlane::fabric {

// Picoseconds since the scenario began, or between two moments.
struct Time {
    std::int64_t ps = 0;
    auto operator<=>(const Time&) const = default;
    Time& operator+=(Time other) { ps += other.ps; return *this; }
    friend Time operator+(Time a, Time b) { return {a.ps + b.ps}; }
    friend Time operator-(Time a, Time b) { return {a.ps - b.ps}; }
};

inline constexpr Time kNever{std::numeric_limits<std::int64_t>::max()};

struct Bytes {
    std::int64_t count = 0;
    auto operator<=>(const Bytes&) const = default;
    Bytes& operator+=(Bytes other) { count += other.count; return *this; }
    Bytes& operator-=(Bytes other) { count -= other.count; return *this; }
    friend Bytes operator+(Bytes a, Bytes b) { return {a.count + b.count}; }
    friend Bytes operator-(Bytes a, Bytes b) { return {a.count - b.count}; }
};

// Time on the wire; the pace is ps a byte x 65536.
inline Time serialisation(std::int64_t pace_q16, Bytes size) { return {(size.count * pace_q16) >> 16}; }

// The same of any number of bytes: of more than some packets the product above may not fit.
inline Time long_serialisation(std::int64_t pace_q16, Bytes size) {
    return {(size.count >> 16) * pace_q16 + (((size.count & 0xFFFF) * pace_q16) >> 16)};
}

}  // namespace fourlane::fabric

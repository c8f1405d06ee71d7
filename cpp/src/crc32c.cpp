#include "fourlane/crc32c.hpp"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace fourlane {
namespace detail {
namespace {

constexpr std::uint32_t kPolynomial = 0x82f63b78;  // 0x1edc6f41 with its bits reversed

using Table = std::array<std::array<std::uint32_t, 256>, 8>;

// table[n][b]: the CRC of byte b followed by n zero bytes ("slicing by 8").
constexpr Table make_slicing_table() {
    Table table{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
        table[0][byte] = crc;
    }
    for (std::size_t n = 1; n < 8; ++n) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t before = table[n - 1][byte];
            table[n][byte] = (before >> 8) ^ table[0][before & 0xff];
        }
    }
    return table;
}

constexpr Table kSlicing = make_slicing_table();

std::uint32_t update_bytes(std::uint32_t crc, const std::byte* data, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) {
        crc = (crc >> 8) ^ kSlicing[0][(crc ^ std::to_integer<std::uint32_t>(data[i])) & 0xff];
    }
    return crc;
}

}  // namespace

std::uint32_t crc32c_table(std::span<const std::byte> data, std::uint32_t seed) {
    std::uint32_t crc = ~seed;
    const std::byte* at = data.data();
    std::size_t left = data.size();
    if constexpr (std::endian::native == std::endian::little) {
        for (; left >= 8; at += 8, left -= 8) {
            std::uint64_t word = 0;
            std::memcpy(&word, at, 8);
            word ^= crc;
            crc = 0;
            for (std::size_t n = 0; n < 8; ++n) crc ^= kSlicing[7 - n][(word >> (8 * n)) & 0xff];
        }
    }
    return ~update_bytes(crc, at, left);
}

#if defined(__x86_64__)
namespace {

// The crc32 instruction takes three cycles but starts every cycle, so three independent streams run
// side by side. Their CRCs are joined by shifting: the CRC of "a then n zero bytes" is a linear map
// of the CRC of a, tabulated here for the stream lengths used.
using Shift = std::array<std::array<std::uint32_t, 256>, 4>;
using Matrix = std::array<std::uint32_t, 32>;

constexpr std::uint32_t apply(const Matrix& matrix, std::uint32_t vector) {
    std::uint32_t sum = 0;
    for (std::size_t bit = 0; vector != 0; vector >>= 1, ++bit) {
        if ((vector & 1) != 0) sum ^= matrix[bit];
    }
    return sum;
}

constexpr Matrix squared(const Matrix& matrix) {
    Matrix result{};
    for (std::size_t bit = 0; bit < 32; ++bit) result[bit] = apply(matrix, matrix[bit]);
    return result;
}

// The map for `bytes` zero bytes; `bytes` is a power of two.
constexpr Shift make_shift(std::size_t bytes) {
    Matrix matrix{kPolynomial};
    for (std::size_t bit = 1; bit < 32; ++bit) matrix[bit] = 1U << (bit - 1);  // one zero bit
    for (std::size_t bits = 1; bits < 8 * bytes; bits *= 2) matrix = squared(matrix);
    Shift shift{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        for (std::size_t n = 0; n < 4; ++n) shift[n][byte] = apply(matrix, byte << (8 * n));
    }
    return shift;
}

constexpr std::size_t kLong = 8192;
constexpr std::size_t kShort = 256;
constexpr Shift kLongShift = make_shift(kLong);
constexpr Shift kShortShift = make_shift(kShort);

std::uint32_t shifted(const Shift& shift, std::uint32_t crc) {
    return shift[0][crc & 0xff] ^ shift[1][(crc >> 8) & 0xff] ^ shift[2][(crc >> 16) & 0xff] ^ shift[3][crc >> 24];
}

std::uint64_t word_at(const std::byte* at) {
    std::uint64_t word = 0;
    std::memcpy(&word, at, 8);
    return word;
}

// Consume as many runs of three streams of `length` bytes as there are.
__attribute__((target("sse4.2"))) std::uint32_t three_streams(std::uint32_t crc, std::span<const std::byte>& data,
                                                              std::size_t length, const Shift& shift) {
    while (data.size() >= 3 * length) {
        const std::byte* at = data.data();
        std::uint64_t first = crc;
        std::uint64_t second = 0;
        std::uint64_t third = 0;
        for (const std::byte* end = at + length; at < end; at += 8) {
            first = _mm_crc32_u64(first, word_at(at));
            second = _mm_crc32_u64(second, word_at(at + length));
            third = _mm_crc32_u64(third, word_at(at + 2 * length));
        }
        crc = shifted(shift, static_cast<std::uint32_t>(first)) ^ static_cast<std::uint32_t>(second);
        crc = shifted(shift, crc) ^ static_cast<std::uint32_t>(third);
        data = data.subspan(3 * length);
    }
    return crc;
}

__attribute__((target("sse4.2"))) std::uint32_t one_stream(std::uint32_t crc, std::span<const std::byte> data) {
    std::uint64_t wide = crc;
    for (; data.size() >= 8; data = data.subspan(8)) wide = _mm_crc32_u64(wide, word_at(data.data()));
    crc = static_cast<std::uint32_t>(wide);
    for (const std::byte byte : data) crc = _mm_crc32_u8(crc, std::to_integer<unsigned char>(byte));
    return crc;
}

}  // namespace

bool crc32c_has_hardware() { return __builtin_cpu_supports("sse4.2") != 0; }

std::uint32_t crc32c_hardware(std::span<const std::byte> data, std::uint32_t seed) {
    if (!crc32c_has_hardware()) return crc32c_table(data, seed);
    std::uint32_t crc = ~seed;
    crc = three_streams(crc, data, kLong, kLongShift);
    crc = three_streams(crc, data, kShort, kShortShift);
    return ~one_stream(crc, data);
}

#else

bool crc32c_has_hardware() { return false; }

std::uint32_t crc32c_hardware(std::span<const std::byte> data, std::uint32_t seed) { return crc32c_table(data, seed); }

#endif

}  // namespace detail

Crc32c crc32c(std::span<const std::byte> data, Crc32c seed) {
    return Crc32c{detail::crc32c_hardware(data, static_cast<std::uint32_t>(seed))};
}

}  // namespace fourlane

// CRC-32C (Castagnoli, RFC 3720 appendix B.4), to check KV frames on the wire.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fourlane {

// A finished CRC-32C. A type of its own, so that it is not mistaken for a length or another checksum.
enum class Crc32c : std::uint32_t {};

// Continue `seed` (the CRC of what came before; 0 at the beginning) over `data`.
Crc32c crc32c(std::span<const std::byte> data, Crc32c seed = Crc32c{0});

namespace detail {

// The two ways `crc32c` chooses from at run time; exposed so that tests can hold one against the other.
std::uint32_t crc32c_table(std::span<const std::byte> data, std::uint32_t seed);
std::uint32_t crc32c_hardware(std::span<const std::byte> data, std::uint32_t seed);  // table where there is none
bool crc32c_has_hardware();

}  // namespace detail
}  // namespace fourlane

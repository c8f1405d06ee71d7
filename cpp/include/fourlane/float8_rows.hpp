// Rows of activations in a quarter of float32's bytes: float8 (e4m3fn) with a scale for each 128 elements.
//
// A packed row: a byte an element, then the scales, float32, at any alignment; the last block may be short.
//
//     greatest = max(the greatest finite magnitude of the block, 448 * 2^-126)
//     scale = greatest / 448;  code = float8(x * (448 / greatest));  x' = code * scale
//
// each operation rounded to the nearest float32 (float8: e4m3fn), ties to even. What is not finite arrives as NaN and
// leaves its neighbours alone. Zeros are exact. |x - x'| <= max(|x| / 16, greatest * 2^-18).
// Not batched in any way: a row's bytes do not depend on other rows. One thread computes a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "fourlane/panels.hpp"

namespace fourlane {

inline constexpr std::int64_t kFloat8Block = 128;

constexpr std::int64_t float8_row_bytes(std::int64_t columns) {
    return columns + (columns + kFloat8Block - 1) / kFloat8Block * static_cast<std::int64_t>(sizeof(float));
}

// `packed` is [rows, float8_row_bytes(columns)].
void pack_float8(RowsView x, std::byte* packed, InstructionSet set);
void unpack_float8(const std::byte* packed, MutableRowsView x, InstructionSet set);

}  // namespace fourlane

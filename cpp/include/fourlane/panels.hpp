// Matrix products for CPU inference whose results do not depend on the batch.
//
// Weights [N, K] are repacked once, at load time, into panels of 32 output columns, K-major:
// [N/32][K][32], zero-padded. In a bfloat16 panel columns i and i+16 share a 32-bit word (low, high half),
// so that a shift and a mask expand a whole line to float32. Every output element is summed over k in
// order, in one accumulator: a row's result is the same alone and in any batch, on any rank. It may
// differ in the last bits between machines with and without fused multiply-add.
//
// One thread computes a call. Nothing here allocates but `expert_ffn` and `linear`, for packed rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fourlane {

inline constexpr std::int64_t kPanelColumns = 32;

enum class WeightType : std::uint8_t { float32, bfloat16 };

constexpr std::size_t size_of(WeightType type) { return type == WeightType::float32 ? 4 : 2; }
constexpr std::int64_t panels_for(std::int64_t columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }

// A packed matrix, or a stack of them: [slots][panels][depth][32].
struct PackedWeights {
    const void* data;
    WeightType type;
    std::int64_t slots;
    std::int64_t panels;
    std::int64_t depth;
};

// Rows of float32, densely packed: [rows, columns].
struct RowsView {
    const float* data;
    std::int64_t rows;
    std::int64_t columns;
};

struct MutableRowsView {
    float* data;
    std::int64_t rows;
    std::int64_t columns;
};

// What the CPU this runs on can do; each is one build of the same kernel source.
enum class InstructionSet : std::uint8_t { baseline, avx2, avx512 };

InstructionSet best_instruction_set();
bool is_supported(InstructionSet set);

// Pack a row-major [columns, depth] matrix into panels first, first + step, first + 2 step, ... of `packed`.
void pack_panels(const void* weight, WeightType type, std::int64_t columns, std::int64_t depth, void* packed,
                 std::int64_t first, std::int64_t step);

// out[r] = W x[r], with W one packed slot.
void linear(RowsView x, PackedWeights weight, MutableRowsView out, InstructionSet set);

// out[r] = down[s] (silu(gate[s] x[r]) * (up[s] x[r])) for the rows offsets[s] .. offsets[s+1] of each slot s.
// `gate_up` holds gate panels at even and up panels at odd places; `down.depth` is the hidden dimension.
void expert_ffn(RowsView x, std::span<const std::int64_t> offsets, PackedWeights gate_up, PackedWeights down,
                MutableRowsView out, InstructionSet set);

}  // namespace fourlane

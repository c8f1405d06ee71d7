#include "fourlane/panels.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <vector>

#include "panel_kernels.hpp"

namespace fourlane {
namespace {

const PanelKernels& kernels_of(InstructionSet set) {
#if defined(__x86_64__)
    if (set == InstructionSet::avx512) return avx512::kPanelKernels;
    if (set == InstructionSet::avx2) return avx2::kPanelKernels;
#endif
    static_cast<void>(set);
    return baseline::kPanelKernels;
}

TileFunction tile_function(const PanelKernels& kernels, WeightType type) {
    return type == WeightType::float32 ? kernels.tile_float32 : kernels.tile_bfloat16;
}

// Rows are worked on in chunks of this many tiles, so that scratch stays small and a panel is used often.
constexpr std::int64_t kChunkTiles = 8;

// A chunk of rows cut into tiles of nearly equal height.
class Tiles {
public:
    Tiles(std::int64_t first, std::int64_t rows, std::int64_t most) : first_(first), rows_(rows), count_((rows + most - 1) / most) {}

    std::int64_t count() const { return count_; }
    std::int64_t begin(std::int64_t tile) const { return first_ + rows_ * tile / count_; }
    std::int64_t height(std::int64_t tile) const { return begin(tile + 1) - begin(tile); }
    // Where a tile begins in a chunk's scratch of `depth` floats a row.
    std::int64_t scratch(std::int64_t tile, std::int64_t depth) const { return (begin(tile) - first_) * depth; }

private:
    std::int64_t first_;
    std::int64_t rows_;
    std::int64_t count_;
};

// Turn `rows` rows of `depth` floats into [depth][rows].
void transpose(const float* from, std::int64_t rows, std::int64_t depth, float* to) {
    if (rows == 1) {
        std::memcpy(to, from, static_cast<std::size_t>(depth) * sizeof(float));
        return;
    }
    constexpr std::int64_t kStrip = 16;  // a cache line of each row at a time
    for (std::int64_t begin = 0; begin < depth; begin += kStrip) {
        const std::int64_t end = std::min(begin + kStrip, depth);
        for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t k = begin; k < end; ++k) to[k * rows + r] = from[r * depth + k];
        }
    }
}

void transpose(RowsView x, const Tiles& tiles, float* to) {
    for (std::int64_t t = 0; t < tiles.count(); ++t) {
        transpose(x.data + tiles.begin(t) * x.columns, tiles.height(t), x.columns, to + tiles.scratch(t, x.columns));
    }
}

const std::byte* panel_at(PackedWeights weights, std::int64_t slot, std::int64_t panel) {
    const std::int64_t index = (slot * weights.panels + panel) * weights.depth * kPanelColumns;
    return static_cast<const std::byte*>(weights.data) + index * static_cast<std::int64_t>(size_of(weights.type));
}

// One slot's product with a chunk of transposed rows; results go to rows of `out`.
void multiply(const float* x, const Tiles& tiles, PackedWeights weights, std::int64_t slot, const std::byte* next,
              MutableRowsView out, const PanelKernels& kernels) {
    const TileFunction tile = tile_function(kernels, weights.type);
    alignas(64) float results[16 * kTileColumns];
    for (std::int64_t panel = 0; panel < weights.panels; panel += kStepPanels) {
        const std::int64_t count = std::min(kStepPanels, weights.panels - panel);
        const std::byte* here = panel_at(weights, slot, panel);
        const std::byte* prefetch = panel + count < weights.panels ? panel_at(weights, slot, panel + count) : next;
        const std::int64_t column = panel * kPanelColumns;
        const std::int64_t columns = std::min(count * kPanelColumns, out.columns - column);
        for (std::int64_t t = 0; t < tiles.count(); ++t, prefetch = here) {
            const std::int64_t rows = tiles.height(t);
            tile(x + tiles.scratch(t, weights.depth), rows, here, prefetch, weights.depth, count, results);
            for (std::int64_t r = 0; r < rows; ++r) {
                std::memcpy(out.data + (tiles.begin(t) + r) * out.columns + column, results + r * kTileColumns,
                            static_cast<std::size_t>(columns) * sizeof(float));
            }
        }
    }
}

// silu(gate x) * (up x) of one slot for a chunk of transposed rows; `hidden` comes out transposed too.
void multiply_gated(const float* x, const Tiles& tiles, PackedWeights gate_up, std::int64_t slot, const std::byte* next,
                    std::int64_t hidden_columns, float* hidden, const PanelKernels& kernels) {
    const TileFunction tile = tile_function(kernels, gate_up.type);
    alignas(64) float results[16 * kTileColumns];
    for (std::int64_t panel = 0; panel < gate_up.panels; panel += kStepPanels) {
        const std::int64_t count = std::min(kStepPanels, gate_up.panels - panel);
        const std::byte* here = panel_at(gate_up, slot, panel);
        const std::byte* prefetch = panel + count < gate_up.panels ? panel_at(gate_up, slot, panel + count) : next;
        const std::int64_t column = panel / 2 * kPanelColumns;
        const std::int64_t columns = std::min(count / 2 * kPanelColumns, hidden_columns - column);
        for (std::int64_t t = 0; t < tiles.count(); ++t, prefetch = here) {
            const std::int64_t rows = tiles.height(t);
            tile(x + tiles.scratch(t, gate_up.depth), rows, here, prefetch, gate_up.depth, count, results);
            kernels.silu_product(results, rows, columns, hidden + tiles.scratch(t, hidden_columns) + column * rows);
        }
    }
}

std::unique_ptr<float[]> scratch_for(std::int64_t rows, std::int64_t depth) {
    return std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(rows * depth));
}

template <typename Element>
void pack_into(const Element* weight, std::int64_t columns, std::int64_t depth, Element* packed, std::int64_t first,
               std::int64_t step) {
    for (std::int64_t panel = 0; panel < panels_for(columns); ++panel) {
        Element* to = packed + (first + panel * step) * depth * kPanelColumns;
        for (std::int64_t place = 0; place < kPanelColumns; ++place) {
            // In 16-bit panels place 2i holds column i, place 2i+1 column i+16 (the word's low half is first in memory).
            constexpr bool kPaired = sizeof(Element) == 2;
            const std::int64_t half = std::endian::native == std::endian::little ? place % 2 : 1 - place % 2;
            const std::int64_t column = panel * kPanelColumns + (kPaired ? place / 2 + 16 * half : place);
            for (std::int64_t k = 0; k < depth; ++k) {
                to[k * kPanelColumns + place] = column < columns ? weight[column * depth + k] : Element{};
            }
        }
    }
}

}  // namespace

bool is_supported(InstructionSet set) {
#if defined(__x86_64__)
    if (set == InstructionSet::avx512) {
        return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
               __builtin_cpu_supports("avx512vl") != 0;
    }
    if (set == InstructionSet::avx2) return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
#endif
    return set == InstructionSet::baseline;
}

InstructionSet best_instruction_set() {
    if (is_supported(InstructionSet::avx512)) return InstructionSet::avx512;
    return is_supported(InstructionSet::avx2) ? InstructionSet::avx2 : InstructionSet::baseline;
}

void pack_panels(const void* weight, WeightType type, std::int64_t columns, std::int64_t depth, void* packed,
                 std::int64_t first, std::int64_t step) {
    if (type == WeightType::float32) {
        pack_into(static_cast<const float*>(weight), columns, depth, static_cast<float*>(packed), first, step);
    } else {
        pack_into(static_cast<const std::uint16_t*>(weight), columns, depth, static_cast<std::uint16_t*>(packed), first,
                  step);
    }
}

void linear(RowsView x, PackedWeights weight, MutableRowsView out, InstructionSet set) {
    const PanelKernels& kernels = kernels_of(set);
    const std::int64_t chunk = std::min(x.rows, kernels.most_rows * kChunkTiles);
    const auto scratch = scratch_for(chunk, x.columns);
    for (std::int64_t first = 0; first < x.rows; first += chunk) {
        const Tiles tiles(first, std::min(chunk, x.rows - first), kernels.most_rows);
        transpose(x, tiles, scratch.get());
        multiply(scratch.get(), tiles, weight, 0, panel_at(weight, 0, 0), out, kernels);
    }
}

void expert_ffn(RowsView x, std::span<const std::int64_t> offsets, PackedWeights gate_up, PackedWeights down,
                MutableRowsView out, InstructionSet set) {
    const PanelKernels& kernels = kernels_of(set);
    std::vector<std::int64_t> busy;  // slots with rows, then the first again: what comes next is prefetched
    for (std::int64_t slot = 0; slot < gate_up.slots; ++slot) {
        const auto index = static_cast<std::size_t>(slot);
        if (offsets[index + 1] > offsets[index]) busy.push_back(slot);
    }
    if (busy.empty()) return;
    busy.push_back(busy.front());
    const std::int64_t chunk = std::min(x.rows, kernels.most_rows * kChunkTiles);
    const auto scratch = scratch_for(chunk, x.columns);
    const auto hidden = scratch_for(chunk, down.depth);
    for (std::size_t i = 0; i + 1 < busy.size(); ++i) {
        const std::int64_t slot = busy[i];
        const std::int64_t end = offsets[static_cast<std::size_t>(slot) + 1];
        for (std::int64_t first = offsets[static_cast<std::size_t>(slot)]; first < end; first += chunk) {
            const Tiles tiles(first, std::min(chunk, end - first), kernels.most_rows);
            const std::int64_t following = first + chunk < end ? slot : busy[i + 1];
            transpose(x, tiles, scratch.get());
            multiply_gated(scratch.get(), tiles, gate_up, slot, panel_at(down, slot, 0), down.depth, hidden.get(),
                           kernels);
            multiply(hidden.get(), tiles, down, slot, panel_at(gate_up, following, 0), out, kernels);
        }
    }
}

}  // namespace fourlane

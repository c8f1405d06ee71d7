// The table of functions that every build of panel_kernels.cpp provides. Private to the core.
#pragma once

#include <cstdint>

namespace fourlane {

// Panels a kernel call goes through at most; its tile of results has 32 columns for each.
inline constexpr std::int64_t kStepPanels = 4;
inline constexpr std::int64_t kTileColumns = 32 * kStepPanels;

// tile[r][c] = sum over k of x[k][r] * w[k][c] for `panels` panels of `depth` lines from `weights` on.
// `x` is [depth][rows]. `prefetch` points to the panels wanted next (or to `weights`).
using TileFunction = void (*)(const float* x, std::int64_t rows, const void* weights, const void* prefetch,
                              std::int64_t depth, std::int64_t panels, float* tile);

// hidden[k][r] = silu(gate) * up for tiles of gate and up panels in turn; `columns` of them, `hidden` is [columns][rows].
using SiluFunction = void (*)(const float* tile, std::int64_t rows, std::int64_t columns, float* hidden);

struct PanelKernels {
    std::int64_t most_rows;  // rows of a tile at most
    TileFunction tile_float32;
    TileFunction tile_bfloat16;
    SiluFunction silu_product;
};

namespace baseline {
extern const PanelKernels kPanelKernels;
}
namespace avx2 {
extern const PanelKernels kPanelKernels;
}
namespace avx512 {
extern const PanelKernels kPanelKernels;
}

}  // namespace fourlane

// The inner loops, compiled once for each instruction set (FOURLANE_ISA names the namespace).
//
// Only own, internal-linkage functions and intrinsics here: an inline function of the standard library
// compiled with AVX-512 could be the copy the linker keeps for everybody.
#include "panel_kernels.hpp"

#include <cstdint>

#include "vectors.hpp"

namespace fourlane::FOURLANE_ISA {
namespace {

constexpr int kMostRows = kLanes == 16 ? 12 : 6;

using Words [[gnu::vector_size(kLanes * 4)]] = std::uint32_t;
using LooseWords [[gnu::vector_size(kLanes * 4), gnu::aligned(4), gnu::may_alias]] = std::uint32_t;

// A group: the 2 * kLanes columns that one line of words holds, `i` and `i + 16` of a panel.
constexpr int kGroupsPerPanel = 16 / kLanes;

struct Group {
    Floats low;
    Floats high;
};

struct Float32 {
    using Element = float;
    static Group load(const float* at) {
        return {*reinterpret_cast<const LooseFloats*>(at), *reinterpret_cast<const LooseFloats*>(at + 16)};
    }
    static constexpr std::int64_t kLine = 32;  // elements a k
    static constexpr std::int64_t kGroup = kLanes;
};

struct Bfloat16 {
    using Element = std::uint32_t;
    static Group load(const std::uint32_t* at) {
        const Words words = *reinterpret_cast<const LooseWords*>(at);
        return {reinterpret_cast<Floats>(words << 16), reinterpret_cast<Floats>(words & 0xffff0000U)};
    }
    static constexpr std::int64_t kLine = 16;
    static constexpr std::int64_t kGroup = kLanes;
};

// M rows times U groups, side by side: enough independent sums to hide the latency of multiply-add.
template <typename W, int M, int U>
inline void tile_of_groups(const float* x, const typename W::Element* weights, const typename W::Element* prefetch,
                           std::int64_t depth, std::int64_t group, float* tile) {
    Floats low[U][M];
    Floats high[U][M];
    const typename W::Element* at[U];
    std::int64_t column[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
        const std::int64_t panel = (group + u) / kGroupsPerPanel;
        const std::int64_t within = (group + u) % kGroupsPerPanel;
        at[u] = weights + panel * depth * W::kLine + within * W::kGroup;
        column[u] = panel * 32 + within * kLanes;
#pragma GCC unroll 12
        for (int r = 0; r < M; ++r) low[u][r] = high[u][r] = Floats{};
    }
    const std::int64_t ahead = prefetch - weights;
    for (std::int64_t k = 0; k < depth; ++k) {
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
            const Group w = W::load(at[u]);
            __builtin_prefetch(at[u] + ahead, 0, 2);
            at[u] += W::kLine;
#pragma GCC unroll 12
            for (int r = 0; r < M; ++r) {
                const Floats value = splat(x[r]);
                low[u][r] = multiply_add(value, w.low, low[u][r]);
                high[u][r] = multiply_add(value, w.high, high[u][r]);
            }
        }
        x += M;
    }
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
#pragma GCC unroll 12
        for (int r = 0; r < M; ++r) {
            float* out = tile + r * kTileColumns + column[u];
            *reinterpret_cast<LooseFloats*>(out) = low[u][r];
            *reinterpret_cast<LooseFloats*>(out + 16) = high[u][r];
        }
    }
}

template <typename W, int M>
void tile_of_rows(const float* x, const void* weights, const void* prefetch, std::int64_t depth, std::int64_t panels,
                  float* tile) {
    constexpr int kTogether = M == 1 ? 4 : M <= 2 ? 2 : 1;
    const auto* w = static_cast<const typename W::Element*>(weights);
    const auto* next = static_cast<const typename W::Element*>(prefetch);
    const std::int64_t groups = panels * kGroupsPerPanel;
    std::int64_t group = 0;
    for (; group + kTogether <= groups; group += kTogether) {
        tile_of_groups<W, M, kTogether>(x, w, next, depth, group, tile);
    }
    for (; group < groups; ++group) tile_of_groups<W, M, 1>(x, w, next, depth, group, tile);
}

template <typename W, int M = kMostRows>
void tile(const float* x, std::int64_t rows, const void* weights, const void* prefetch, std::int64_t depth,
          std::int64_t panels, float* out) {
    if (rows == M) return tile_of_rows<W, M>(x, weights, prefetch, depth, panels, out);
    if constexpr (M > 1) tile<W, M - 1>(x, rows, weights, prefetch, depth, panels, out);
}

// x * sigmoid(x), computed from exp(-|x|) so that neither end overflows.
inline Floats silu(Floats x) {
    const Floats e = exp_of_negative(x < 0.0F ? -x : x);
    const Floats numerator = x < 0.0F ? e : splat(1.0F);
    return x * (numerator / (e + 1.0F));
}

void silu_product(const float* tile, std::int64_t rows, std::int64_t columns, float* hidden) {
    for (std::int64_t r = 0; r < rows; ++r, tile += kTileColumns) {
        for (std::int64_t c = 0; c < columns; c += kLanes) {
            const float* gate = tile + c / 32 * 64 + c % 32;
            const Floats product = silu(*reinterpret_cast<const LooseFloats*>(gate)) *
                                   *reinterpret_cast<const LooseFloats*>(gate + 32);
            if (rows == 1 && c + kLanes <= columns) {
                *reinterpret_cast<LooseFloats*>(hidden + c) = product;
                continue;
            }
            const std::int64_t end = columns - c < kLanes ? columns - c : kLanes;
            for (std::int64_t i = 0; i < end; ++i) hidden[(c + i) * rows + r] = product[i];
        }
    }
}

}  // namespace

const PanelKernels kPanelKernels = {kMostRows, &tile<Float32>, &tile<Bfloat16>, &silu_product};

}  // namespace fourlane::FOURLANE_ISA

// The table of functions that every build of attention_kernels.cpp provides. Private to the core.
#pragma once

#include <cstdint>

namespace fourlane {

// Keys are worked on in tiles of this many, the first of them at a multiple of it.
inline constexpr std::int64_t kTileKeys = 64;
inline constexpr std::int64_t kMostLanes = 16;

// Where some tokens' keys or values lie: floats rows[i] + offset and following.
struct Rows {
    const float* const* rows;
    std::int64_t count;
    std::int64_t offset;
};

// The keys and values of some tokens for one KV head; values have padded_dim floats, a multiple of 16.
struct KeyTile {
    const float* keys;  // [head_dim][kTileKeys]
    Rows values;
    std::int64_t head_dim;
    std::int64_t padded_dim;
};

// Rows of queries and what is known of their softmax so far: the greatest score, sums of exp(score - greatest)
// by lane, and values weighted by the same.
struct QueryTile {
    const float* queries;  // [head_dim][rows], scaled
    std::int64_t rows;
    const std::int64_t* visible;  // [rows], how many of the tile's keys each sees; may exceed the count or be < 0
    float* greatest;              // [rows]
    float* sums;                  // [rows][kMostLanes]
    float* weighted;              // [rows][padded_dim]
};

struct AttentionKernels {
    std::int64_t most_rows;  // rows of a query tile at most
    // out[k][i] = keys[i][k], zero beyond the last key.
    void (*transpose_keys)(const Rows& keys, std::int64_t head_dim, float* out);
    void (*attend)(const KeyTile& keys, const QueryTile& queries);
    // out = weighted / sum, for one row.
    void (*finish)(const float* sums, const float* weighted, std::int64_t head_dim, float* out);
};

namespace baseline {
extern const AttentionKernels kAttentionKernels;
}
namespace avx2 {
extern const AttentionKernels kAttentionKernels;
}
namespace avx512 {
extern const AttentionKernels kAttentionKernels;
}

}  // namespace fourlane

// Causal attention over a paged KV cache, for CPU inference.
//
// A query's result does not depend on the batch, on how its sequence is cut into chunks, or on other
// sequences: keys are taken in order, in tiles that begin at multiples of the same number, and every sum
// has one order. It may differ in the last bits between instruction sets.
//
// One thread computes a call; it allocates scratch of bounded size.
#pragma once

#include <cstdint>
#include <span>

#include "fourlane/panels.hpp"

namespace fourlane {

// Queries [tokens, heads, head_dim] of float32; a token's heads are contiguous, tokens `stride` floats apart.
struct QueriesView {
    const float* data;
    std::int64_t tokens;
    std::int64_t heads;
    std::int64_t stride;
};

// One layer's pages, [blocks, block_size, kv_heads, head_dim] each.
struct PagesView {
    const float* keys;
    const float* values;
    std::int64_t blocks;
    std::int64_t block_size;
    std::int64_t kv_heads;
    std::int64_t head_dim;
};

// Sequence s owns queries query_start[s] .. query_start[s+1], its last ones; its context[s] tokens lie, in
// order, in the pages of row s of `blocks` [sequences, width].
struct SequencesView {
    std::span<const std::int64_t> query_start;
    std::span<const std::int64_t> context;
    const std::int32_t* blocks;
    std::int64_t width;
};

// out[t] = the heads' softmax(scale q k) v, [tokens, heads * head_dim]; `heads` is a multiple of `kv_heads`.
void paged_attention(QueriesView queries, PagesView pages, SequencesView sequences, float scale, float* out,
                     InstructionSet set);

}  // namespace fourlane

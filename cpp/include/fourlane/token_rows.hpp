// What an MoE layer does to rows of tokens between its matrix products, for CPU inference: norms, rotary
// embedding, the choice of experts, and the order of rows on their way to experts and back.
//
// A row's result does not depend on other rows. One thread computes a call.
#pragma once

#include <cstdint>
#include <span>

#include "fourlane/panels.hpp"

namespace fourlane {

// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight.
void rms_norm(RowsView x, const float* weight, float eps, MutableRowsView out, InstructionSet set);

// Rows of query, key and value heads, [tokens][heads + 2 * kv_heads][head_dim], head_dim even.
struct HeadsView {
    float* data;
    std::int64_t tokens;
    std::int64_t heads;
    std::int64_t kv_heads;
    std::int64_t head_dim;
};

// How query and key heads are normed and rotated.
struct HeadTransform {
    const float* norm;  // [heads + kv_heads, head_dim]; null: they are rotated only
    const float* cos;   // [tokens, head_dim]
    const float* sin;   // [tokens, head_dim], negative in the first half
    float eps;
};

// Norm and rotate the query and key heads in place, then write each token's keys and values into the pages'
// place `slots[t]`; `keys` and `values` are [places][kv_heads][head_dim].
void place_heads(HeadsView heads, const HeadTransform& transform, std::span<const std::int64_t> slots, float* keys,
                 float* values, InstructionSet set);

// out[r] += y[r] * sigmoid(gate[r]), one gate a row.
void add_gated(RowsView y, const float* gate, MutableRowsView out, InstructionSet set);

// The `top_k` greatest logits of each row, greatest first (of equals the first), and their softmax: over all
// logits, or if `renormalise` over the chosen ones. Both outputs are [rows, top_k].
void choose_experts(RowsView logits, std::int64_t top_k, bool renormalise, std::int64_t* experts, float* weights,
                    InstructionSet set);

// Order the (token, k) pairs of `experts` by slot, then token, then k. Experts and slots must be in range.
//   order [pairs]: the pair each sorted row is;  rows [pairs]: its token;  counts [experts]: pairs of each expert.
void sort_by_slot(std::span<const std::int64_t> experts, std::int64_t top_k, std::span<const std::int64_t> slot_of,
                  std::int64_t slots, std::int64_t* order, std::int64_t* rows, std::span<std::int64_t> counts);

// Write firsts[0], firsts[0] + 1, ... (counts[0] of them), then the same of firsts[1], and so on.
void join_ranges(std::span<const std::int64_t> firsts, std::span<const std::int64_t> counts, std::int64_t* out);

// How one rank's rows lie among those of all ranks: by slot, and within a slot by the rank they come from.
struct RowLayout {
    std::int64_t* first_P;    // [slots]: where its rows for each slot begin in the buffer of the slot's rank
    std::int64_t* rows_G;     // [ranks]: the rows it gets from each rank
    std::int64_t* offset_S1;  // [slots a rank + 1]: where the rows of each of its own slots begin, and their end
};

// Lay out rows of which quota_GP [ranks, slots] go from each rank to each slot, slots a rank's next to each other.
void lay_out_rows(std::span<const std::int64_t> quota_GP, std::size_t ranks, std::size_t rank, const RowLayout& out);

// Undo `sort_by_slot` and sum each token's rows of y, weighted [tokens, top_k], in the order of k.
void weighted_sum(RowsView y, std::span<const std::int64_t> order, RowsView weights, MutableRowsView out,
                  InstructionSet set);

// Sum each token's rows, weighted [tokens, top_k], in the order of k; `rows` has one for each weight, wherever it lies.
void weighted_sum_of(std::span<const float* const> rows, RowsView weights, MutableRowsView out, InstructionSet set);

}  // namespace fourlane

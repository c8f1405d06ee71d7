#include "fourlane/token_rows.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

#include "row_kernels.hpp"

namespace fourlane {
namespace {

const RowKernels& kernels_of(InstructionSet set) {
#if defined(__x86_64__)
    if (set == InstructionSet::avx512) return avx512::kRowKernels;
    if (set == InstructionSet::avx2) return avx2::kRowKernels;
#endif
    static_cast<void>(set);
    return baseline::kRowKernels;
}

// Write the `top_k` places of the greatest values, greatest first, of equals the first; NaN is never greater.
void greatest_places(const float* values, std::int64_t count, std::int64_t top_k, std::int64_t* places) {
    std::int64_t held = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        if (held == top_k && !(values[i] > values[places[top_k - 1]])) continue;
        std::int64_t at = held < top_k ? held++ : top_k - 1;
        for (; at > 0 && values[i] > values[places[at - 1]]; --at) places[at] = places[at - 1];
        places[at] = i;
    }
}

}  // namespace

void rms_norm(RowsView x, const float* weight, float eps, MutableRowsView out, InstructionSet set) {
    const RowKernels& kernels = kernels_of(set);
    for (std::int64_t r = 0; r < x.rows; ++r) {
        kernels.rms_norm(x.data + r * x.columns, weight, x.columns, eps, out.data + r * x.columns);
    }
}

void place_heads(HeadsView heads, const HeadTransform& transform, std::span<const std::int64_t> slots, float* keys,
                 float* values, InstructionSet set) {
    const RowKernels& kernels = kernels_of(set);
    const std::int64_t dim = heads.head_dim;
    const std::int64_t turned = heads.heads + heads.kv_heads;
    const std::int64_t place = heads.kv_heads * dim;
    for (std::int64_t t = 0; t < heads.tokens; ++t) {
        float* row = heads.data + t * (turned * dim + place);
        for (std::int64_t h = 0; h < turned; ++h) {
            const float *cos = transform.cos + t * dim, *sin = transform.sin + t * dim;
            if (transform.norm == nullptr) {
                kernels.rotate(row + h * dim, cos, sin, dim);
            } else {
                kernels.norm_and_rotate(row + h * dim, transform.norm + h * dim, cos, sin, dim, transform.eps);
            }
        }
        const std::int64_t slot = slots[static_cast<std::size_t>(t)];
        std::copy_n(row + heads.heads * dim, place, keys + slot * place);
        std::copy_n(row + turned * dim, place, values + slot * place);
    }
}

void add_gated(RowsView y, const float* gate, MutableRowsView out, InstructionSet set) {
    const RowKernels& kernels = kernels_of(set);
    for (std::int64_t r = 0; r < y.rows; ++r) {
        kernels.add_gated(y.data + r * y.columns, gate[r], y.columns, out.data + r * y.columns);
    }
}

void choose_experts(RowsView logits, std::int64_t top_k, bool renormalise, std::int64_t* experts, float* weights,
                    InstructionSet set) {
    const RowKernels& kernels = kernels_of(set);
    std::vector<float> all(static_cast<std::size_t>(logits.columns));
    for (std::int64_t r = 0; r < logits.rows; ++r, experts += top_k, weights += top_k) {
        const float* row = logits.data + r * logits.columns;
        greatest_places(row, logits.columns, top_k, experts);
        float sum = kernels.exp_below(row, logits.columns, row[experts[0]], all.data());
        for (std::int64_t k = 0; k < top_k; ++k) weights[k] = all[static_cast<std::size_t>(experts[k])];
        if (renormalise) {
            sum = 0.0F;
            for (std::int64_t k = 0; k < top_k; ++k) sum += weights[k];
        }
        for (std::int64_t k = 0; k < top_k; ++k) weights[k] /= sum;
    }
}

void sort_by_slot(std::span<const std::int64_t> experts, std::int64_t top_k, std::span<const std::int64_t> slot_of,
                  std::int64_t slots, std::int64_t* order, std::int64_t* rows, std::span<std::int64_t> counts) {
    std::vector<std::int64_t> next(static_cast<std::size_t>(slots) + 1);  // where a slot's next row goes
    const auto slot_at = [&](std::size_t pair) {
        return static_cast<std::size_t>(slot_of[static_cast<std::size_t>(experts[pair])]);
    };
    std::fill(counts.begin(), counts.end(), 0);
    for (std::size_t pair = 0; pair < experts.size(); ++pair) {
        ++counts[static_cast<std::size_t>(experts[pair])];
        ++next[slot_at(pair) + 1];
    }
    for (std::size_t slot = 0; slot + 1 < next.size(); ++slot) next[slot + 1] += next[slot];
    for (std::size_t pair = 0; pair < experts.size(); ++pair) {
        const std::int64_t place = next[slot_at(pair)]++;
        order[place] = static_cast<std::int64_t>(pair);
        rows[place] = static_cast<std::int64_t>(pair) / top_k;
    }
}

void join_ranges(std::span<const std::int64_t> firsts, std::span<const std::int64_t> counts, std::int64_t* out) {
    for (std::size_t range = 0; range < firsts.size(); ++range) {
        std::int64_t* const end = out + counts[range];
        std::iota(out, end, firsts[range]);
        out = end;
    }
}

void lay_out_rows(std::span<const std::int64_t> quota_GP, std::size_t ranks, std::size_t rank, const RowLayout& out) {
    const std::size_t slots = quota_GP.size() / ranks;
    const std::size_t own = slots / ranks;
    std::fill_n(out.rows_G, ranks, 0);
    for (std::size_t slot = 0, of = 0; slot < slots; ++of) {
        std::int64_t rows = 0;  // of this rank's slots so far
        for (const std::size_t end = slot + own; slot < end; ++slot) {
            if (of == rank) out.offset_S1[slot - of * own] = rows;
            for (std::size_t from = 0; from < ranks; ++from) {
                if (from == rank) out.first_P[slot] = rows;
                const std::int64_t quota = quota_GP[from * slots + slot];
                if (of == rank) out.rows_G[from] += quota;
                rows += quota;
            }
        }
        if (of == rank) out.offset_S1[own] = rows;
    }
}

void weighted_sum(RowsView y, std::span<const std::int64_t> order, RowsView weights, MutableRowsView out,
                  InstructionSet set) {
    std::vector<const float*> row_of(order.size(), y.data);  // each (token, k) pair's row
    for (std::size_t place = 0; place < order.size(); ++place) {
        row_of[static_cast<std::size_t>(order[place])] = y.data + static_cast<std::int64_t>(place) * y.columns;
    }
    weighted_sum_of(row_of, weights, out, set);
}

void weighted_sum_of(std::span<const float* const> rows, RowsView weights, MutableRowsView out, InstructionSet set) {
    const RowKernels& kernels = kernels_of(set);
    for (std::int64_t t = 0; t < weights.rows; ++t) {
        const std::int64_t pair = t * weights.columns;
        kernels.weighted_sum(rows.data() + pair, weights.data + pair, weights.columns, out.columns,
                             out.data + t * out.columns);
    }
}

}  // namespace fourlane

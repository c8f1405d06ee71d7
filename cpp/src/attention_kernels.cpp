// The inner loops of paged attention, compiled once for each instruction set; see vectors.hpp for the rules.
#include "attention_kernels.hpp"

#include <cstdint>

#include "vectors.hpp"

namespace fourlane::FOURLANE_ISA {
namespace {

constexpr int kMostRows = kLanes == 16 ? 12 : 6;
constexpr float kMinusInfinity = -__builtin_inff();

// How many vectors side by side fill the registers with sums of M rows.
template <int M>
constexpr int kAbreast = kLanes == 16 && M <= 6 ? 4 : 2;

// Lanes of a and b in turn; low takes their first halves, high their second.
inline Floats interleave_low(Floats a, Floats b) {
#if defined(__AVX512F__)
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}

inline Floats interleave_high(Floats a, Floats b) {
#if defined(__AVX512F__)
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// Interleaving row i with row i + kLanes / 2 log2(kLanes) times transposes the square.
inline void transpose_square(Floats (&rows)[kLanes]) {
#pragma GCC unroll 4
    for (int width = 1; width < kLanes; width *= 2) {
        Floats next[kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; ++i) {
            next[2 * i] = interleave_low(rows[i], rows[i + kLanes / 2]);
            next[2 * i + 1] = interleave_high(rows[i], rows[i + kLanes / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
    }
}

void transpose_keys(const Rows& keys, std::int64_t head_dim, float* out) {
    std::int64_t i = 0;
    for (; i + kLanes <= keys.count; i += kLanes) {
        std::int64_t k = 0;
        for (; k + kLanes <= head_dim; k += kLanes) {
            Floats square[kLanes];
#pragma GCC unroll 16
            for (int r = 0; r < kLanes; ++r) square[r] = load(keys.rows[i + r] + keys.offset + k);
            transpose_square(square);
#pragma GCC unroll 16
            for (int r = 0; r < kLanes; ++r) store(out + (k + r) * kTileKeys + i, square[r]);
        }
        for (; k < head_dim; ++k) {
            for (int r = 0; r < kLanes; ++r) out[k * kTileKeys + i + r] = keys.rows[i + r][keys.offset + k];
        }
    }
    for (std::int64_t k = 0; k < head_dim; ++k) {
        for (std::int64_t j = i; j < kTileKeys; ++j) {
            out[k * kTileKeys + j] = j < keys.count ? keys.rows[j][keys.offset + k] : 0.0F;
        }
    }
}

// scores[r][i] = the sum over k of queries[k][r] * keys[k][i], in order, for U vectors of keys.
template <int M, int U>
void score_vectors(const float* queries, const float* keys, std::int64_t head_dim, float* scores) {
    Floats sum[M][U] = {};
    for (std::int64_t k = 0; k < head_dim; ++k, queries += M, keys += kTileKeys) {
        Floats key[U];
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) key[u] = load(keys + u * kLanes);
#pragma GCC unroll 12
        for (int r = 0; r < M; ++r) {
            const Floats query = splat(queries[r]);
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u) sum[r][u] = multiply_add(query, key[u], sum[r][u]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r) {
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) store(scores + r * kTileKeys + u * kLanes, sum[r][u]);
    }
}

template <int M>
void score(const KeyTile& keys, const QueryTile& queries, float* scores) {
    std::int64_t i = 0;
    for (; i + (kAbreast<M> - 1) * kLanes < keys.values.count; i += kAbreast<M> * kLanes) {
        score_vectors<M, kAbreast<M>>(queries.queries, keys.keys + i, keys.head_dim, scores + i);
    }
    for (; i < keys.values.count; i += kLanes) score_vectors<M, 1>(queries.queries, keys.keys + i, keys.head_dim, scores + i);
}

inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }

inline float greatest_lane(Floats values) {
    using Four [[gnu::vector_size(16), gnu::may_alias]] = float;
    alignas(64) float lanes[kLanes];
    *reinterpret_cast<Floats*>(lanes) = values;
    Four four = *reinterpret_cast<const Four*>(lanes);
    for (int i = 4; i < kLanes; i += 4) {
        const Four other = *reinterpret_cast<const Four*>(lanes + i);
        four = other > four ? other : four;
    }
    const float left = four[1] > four[0] ? four[1] : four[0];
    const float right = four[3] > four[2] ? four[3] : four[2];
    return right > left ? right : left;
}

// Hide the keys a row does not see and return the greatest score of the others.
inline float hide_unseen(std::int64_t visible, std::int64_t count, float* scores) {
    Ints lane{};
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    Floats most = splat(kMinusInfinity);
    for (std::int64_t i = 0; i < count; i += kLanes) {
        Floats score = load(scores + i);
        if (visible < i + kLanes) {
            score = lane < static_cast<std::int32_t>(visible - i) ? score : splat(kMinusInfinity);
            store(scores + i, score);
        }
        most = greater(score, most);
    }
    return greatest_lane(most);
}

// Turn scores into exp(score - greatest) and bring what was summed so far down to the new greatest score.
template <int M>
void weigh(const KeyTile& keys, const QueryTile& queries, float* scores, float* shrink) {
    alignas(64) float fall[kMostLanes] = {};
    for (int r = 0; r < M; ++r) {
        const float most = hide_unseen(queries.visible[r], keys.values.count, scores + r * kTileKeys);
        const float before = queries.greatest[r];
        const float after = most > before ? most : before;
        fall[r] = after - before;
        queries.greatest[r] = after;
    }
    for (int r = 0; r < M; r += kLanes) store(shrink + r, exp_of_negative(load(fall + r)));
    for (int r = 0; r < M; ++r) {
        const Floats greatest = splat(queries.greatest[r]);
        float* row = scores + r * kTileKeys;
        Floats sum = load(queries.sums + r * kMostLanes) * splat(shrink[r]);
        for (std::int64_t i = 0; i < keys.values.count; i += kLanes) {
            const Floats weight = exp_of_negative(greatest - load(row + i));
            store(row + i, weight);
            sum = sum + weight;
        }
        store(queries.sums + r * kMostLanes, sum);
    }
}

// weighted[r] = weighted[r] * shrink[r] + the sum over keys of weights[r][i] * values[i], for U vectors of dims.
template <int M, int U>
void add_vectors(const KeyTile& keys, const float* weights, const float* shrink, std::int64_t dim, float* weighted) {
    Floats sum[M][U];
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r) {
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) sum[r][u] = load(weighted + r * keys.padded_dim + dim + u * kLanes) * splat(shrink[r]);
    }
    for (std::int64_t i = 0; i < keys.values.count; ++i) {
        Floats value[U];
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) value[u] = load(keys.values.rows[i] + keys.values.offset + dim + u * kLanes);
#pragma GCC unroll 12
        for (int r = 0; r < M; ++r) {
            const Floats weight = splat(weights[r * kTileKeys + i]);
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u) sum[r][u] = multiply_add(weight, value[u], sum[r][u]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < M; ++r) {
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) store(weighted + r * keys.padded_dim + dim + u * kLanes, sum[r][u]);
    }
}

template <int M>
void add_values(const KeyTile& keys, const float* weights, const float* shrink, float* weighted) {
    constexpr int kMost = kAbreast<M>;
    std::int64_t dim = 0;
    for (; dim + kMost * kLanes <= keys.padded_dim; dim += kMost * kLanes) {
        add_vectors<M, kMost>(keys, weights, shrink, dim, weighted);
    }
    for (; dim + 2 * kLanes <= keys.padded_dim; dim += 2 * kLanes) add_vectors<M, 2>(keys, weights, shrink, dim, weighted);
    for (; dim < keys.padded_dim; dim += kLanes) add_vectors<M, 1>(keys, weights, shrink, dim, weighted);
}

template <int M = kMostRows>
void attend(const KeyTile& keys, const QueryTile& queries) {
    if (queries.rows == M) {
        alignas(64) float scores[M * kTileKeys];
        alignas(64) float shrink[kMostLanes];
        score<M>(keys, queries, scores);
        weigh<M>(keys, queries, scores, shrink);
        return add_values<M>(keys, scores, shrink, queries.weighted);
    }
    if constexpr (M > 1) attend<M - 1>(keys, queries);
}

void finish(const float* sums, const float* weighted, std::int64_t head_dim, float* out) {
    float sum = 0.0F;
    for (int i = 0; i < kLanes; ++i) sum += sums[i];
    for (std::int64_t k = 0; k < head_dim; ++k) out[k] = weighted[k] / sum;
}

}  // namespace

const AttentionKernels kAttentionKernels = {kMostRows, &transpose_keys, &attend<>, &finish};

}  // namespace fourlane::FOURLANE_ISA

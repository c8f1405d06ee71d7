// What is done to one row of a token, compiled once for each instruction set; see vectors.hpp for the rules.
#include "row_kernels.hpp"

#include <cstdint>

#include "vectors.hpp"

namespace fourlane::FOURLANE_ISA {
namespace {

// Add the lanes up in order.
inline float sum_of_lanes(Floats values) {
    float sum = values[0];
    for (int i = 1; i < kLanes; ++i) sum += values[i];
    return sum;
}

// Load the `count` < kLanes floats that are left; the other lanes are `fill`.
inline Floats load_some(const float* at, std::int64_t count, float fill) {
    Floats values = splat(fill);
    for (std::int64_t i = 0; i < count; ++i) values[i] = at[i];
    return values;
}

inline void store_some(float* at, std::int64_t count, Floats values) {
    for (std::int64_t i = 0; i < count; ++i) at[i] = values[i];
}

// 1 / sqrt(mean(x^2) + eps).
inline float scale_of(const float* x, std::int64_t columns, float eps) {
    Floats sum{};
    std::int64_t i = 0;
    for (; i + kLanes <= columns; i += kLanes) sum = multiply_add(load(x + i), load(x + i), sum);
    if (i < columns) {
        const Floats rest = load_some(x + i, columns - i, 0.0F);
        sum = multiply_add(rest, rest, sum);
    }
    return 1.0F / __builtin_sqrtf(sum_of_lanes(sum) / static_cast<float>(columns) + eps);
}

void rms_norm(const float* x, const float* weight, std::int64_t columns, float eps, float* out) {
    const Floats scale = splat(scale_of(x, columns, eps));
    std::int64_t i = 0;
    for (; i + kLanes <= columns; i += kLanes) store(out + i, load(x + i) * scale * load(weight + i));
    for (; i < columns; ++i) out[i] = x[i] * scale[0] * weight[i];
}

void norm_and_rotate(float* head, const float* weight, const float* cos, const float* sin, std::int64_t head_dim,
                     float eps) {
    const std::int64_t half = head_dim / 2;
    const float scale = scale_of(head, head_dim, eps);
    std::int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        const Floats left = load(head + i) * splat(scale) * load(weight + i);
        const Floats right = load(head + half + i) * splat(scale) * load(weight + half + i);
        store(head + i, left * load(cos + i) + right * load(sin + i));
        store(head + half + i, right * load(cos + half + i) + left * load(sin + half + i));
    }
    for (; i < half; ++i) {
        const float left = head[i] * scale * weight[i];
        const float right = head[half + i] * scale * weight[half + i];
        head[i] = left * cos[i] + right * sin[i];
        head[half + i] = right * cos[half + i] + left * sin[half + i];
    }
}

void rotate(float* head, const float* cos, const float* sin, std::int64_t head_dim) {
    const std::int64_t half = head_dim / 2;
    std::int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        const Floats left = load(head + i);
        const Floats right = load(head + half + i);
        store(head + i, left * load(cos + i) + right * load(sin + i));
        store(head + half + i, right * load(cos + half + i) + left * load(sin + half + i));
    }
    for (; i < half; ++i) {
        const float left = head[i];
        const float right = head[half + i];
        head[i] = left * cos[i] + right * sin[i];
        head[half + i] = right * cos[half + i] + left * sin[half + i];
    }
}

float exp_below(const float* x, std::int64_t columns, float greatest, float* out) {
    Floats sum{};
    std::int64_t i = 0;
    for (; i + kLanes <= columns; i += kLanes) {
        const Floats weight = exp_of_negative(splat(greatest) - load(x + i));
        store(out + i, weight);
        sum = sum + weight;
    }
    if (i < columns) {
        const Floats weight = exp_of_negative(splat(greatest) - load_some(x + i, columns - i, -__builtin_inff()));
        store_some(out + i, columns - i, weight);
        sum = sum + weight;
    }
    return sum_of_lanes(sum);
}

void weighted_sum(const float* const* rows, const float* weights, std::int64_t count, std::int64_t columns, float* out) {
    std::int64_t i = 0;
    for (; i + kLanes <= columns; i += kLanes) {
        Floats sum = load(rows[0] + i) * splat(weights[0]);
        for (std::int64_t k = 1; k < count; ++k) sum = sum + load(rows[k] + i) * splat(weights[k]);
        store(out + i, sum);
    }
    for (; i < columns; ++i) {
        float sum = rows[0][i] * weights[0];
        for (std::int64_t k = 1; k < count; ++k) sum = sum + rows[k][i] * weights[k];
        out[i] = sum;
    }
}

// The sigmoid is computed from exp(-|gate|) so that neither end overflows.
void add_gated(const float* y, float gate, std::int64_t columns, float* out) {
    const Floats e = exp_of_negative(splat(gate < 0.0F ? -gate : gate));
    const Floats weight = (gate < 0.0F ? e : splat(1.0F)) / (e + 1.0F);
    std::int64_t i = 0;
    for (; i + kLanes <= columns; i += kLanes) store(out + i, load(out + i) + load(y + i) * weight);
    for (; i < columns; ++i) out[i] = out[i] + y[i] * weight[0];
}

}  // namespace

const RowKernels kRowKernels = {&rms_norm, &norm_and_rotate, &rotate, &exp_below, &weighted_sum, &add_gated};

}  // namespace fourlane::FOURLANE_ISA

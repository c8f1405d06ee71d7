// The table of functions that every build of row_kernels.cpp provides. Each works on one row. Private to the core.
#pragma once

#include <cstdint>

namespace fourlane {

struct RowKernels {
    void (*rms_norm)(const float* x, const float* weight, std::int64_t columns, float eps, float* out);
    // Norm and rotate one head in place; cos and sin are [head_dim], sin negative in its first half.
    void (*norm_and_rotate)(float* head, const float* weight, const float* cos, const float* sin, std::int64_t head_dim,
                            float eps);
    // Rotate one head in place, as `norm_and_rotate` does.
    void (*rotate)(float* head, const float* cos, const float* sin, std::int64_t head_dim);
    // out[i] = exp(x[i] - greatest); returns their sum. `x` and `out` may be the same.
    float (*exp_below)(const float* x, std::int64_t columns, float greatest, float* out);
    // out = the sum over k of rows[k] * weights[k], in order.
    void (*weighted_sum)(const float* const* rows, const float* weights, std::int64_t count, std::int64_t columns,
                         float* out);
    // out += y * sigmoid(gate).
    void (*add_gated)(const float* y, float gate, std::int64_t columns, float* out);
};

namespace baseline {
extern const RowKernels kRowKernels;
}
namespace avx2 {
extern const RowKernels kRowKernels;
}
namespace avx512 {
extern const RowKernels kRowKernels;
}

}  // namespace fourlane

// The table of functions that every build of float8_kernels.cpp provides. Each works on one row. Private to the core.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fourlane {

struct Float8Kernels {
    // Write the codes of x, then the scales; see float8_rows.hpp.
    void (*pack)(const float* x, std::int64_t columns, std::byte* packed);
    void (*unpack)(const std::byte* packed, std::int64_t columns, float* x);
};

namespace baseline {
extern const Float8Kernels kFloat8Kernels;
}
namespace avx2 {
extern const Float8Kernels kFloat8Kernels;
}
namespace avx512 {
extern const Float8Kernels kFloat8Kernels;
}

}  // namespace fourlane

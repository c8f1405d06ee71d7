#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "fourlane/split_aware.hpp"
#include "random.hpp"

namespace fourlane::balance {
namespace {

// exp(x) to about 1e-6 for |x| < 8 from products alone, so that no library's last bits steer a search.
double exponential(double x) {
    const double part = x / 4096.0;
    double power = 1.0 + part + part * part / 2.0;
    for (int doubling = 0; doubling < 12; ++doubling) power *= power;
    return power;
}

// The mean rank's load: fine enough for parts of a token, and all ranks together below 2^30.
double unit_of(std::int32_t ranks) { return std::min(65536.0, std::floor(1073741824.0 / ranks)); }

double sum_of(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

}  // namespace

Batches draw_batches(std::span<const double> windows_WE, std::int32_t experts, std::int32_t ranks,
                     const Leaning& leaning, std::uint64_t seed) {
    const auto width = static_cast<std::size_t>(experts);
    const std::size_t windows = windows_WE.size() / width;
    Random random(seed);
    Batches batches{leaning.count, experts, std::vector<std::int32_t>(static_cast<std::size_t>(leaning.count) * width)};
    std::vector<double> drawn(width);
    for (std::size_t b = 0; b < static_cast<std::size_t>(leaning.count); ++b) {
        const double* window = windows_WE.data() + b % windows * width;
        for (std::size_t e = 0; e < width; ++e) drawn[e] = window[e] * exponential(leaning.sd * random.normal());
        double sum = sum_of(drawn);
        if (leaning.pairs > 0 && sum > 0) {  // near Poisson
            for (double& load : drawn) {
                load *= leaning.pairs / sum;
                load = std::max(0.0, load + std::sqrt(load) * random.normal());
            }
            sum = sum_of(drawn);
        }
        if (!(sum > 0)) continue;
        const double scale = unit_of(ranks) * ranks / sum;
        for (std::size_t e = 0; e < width; ++e) {
            batches.load_BE[b * width + e] = static_cast<std::int32_t>(drawn[e] * scale);
        }
    }
    return batches;
}

}  // namespace fourlane::balance

// Tests of the balancer's core without Python, so that sanitizers see every path (scripts/sanitize).
// What is right is tested in tests/unit/policy and tests/property; here results are held against plain loops.
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "fourlane/balance.hpp"

namespace {

namespace balance = fourlane::balance;

int failures = 0;

void expect(bool condition, const char* what) {
    if (condition) return;
    ++failures;
    std::printf("FAILED: %s\n", what);
}

// Loads of `experts` with a long tail, and what a replica costs with 1 .. most of them.
std::vector<std::int64_t> random_costs(std::int64_t experts, std::int64_t most, std::uint32_t seed) {
    std::mt19937 generator(seed);
    std::lognormal_distribution<double> loads(10, 1);
    std::vector<std::int64_t> cost;
    for (std::int64_t expert = 0; expert < experts; ++expert) {
        const auto load = static_cast<std::int64_t>(loads(generator) * 1000);
        for (std::int64_t copies = 1; copies <= most; ++copies) cost.push_back(load / copies);
    }
    return cost;
}

void copies_go_to_the_costliest() {
    const std::vector<std::int64_t> data = random_costs(40, 8, 1);
    const balance::CostView cost{data.data(), 40, 8};
    std::vector<std::int32_t> copies(40);
    balance::choose_copies(cost, 64, copies);
    expect(std::accumulate(copies.begin(), copies.end(), 0) == 64, "copies fill the slots");
    std::int64_t greatest = 0;
    for (std::int64_t e = 0; e < 40; ++e) greatest = std::max(greatest, cost(e, copies[static_cast<std::size_t>(e)]));
    for (std::int64_t e = 0; e < 40; ++e) {
        const std::int64_t held = copies[static_cast<std::size_t>(e)];
        expect(held == 1 || cost(e, held - 1) >= greatest, "no expert got a copy it did not need");
    }
    bool refused = false;
    try {
        balance::choose_copies(cost, 39, copies);
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    expect(refused, "fewer slots than experts are refused");
}

}  // namespace

int main() {
    copies_go_to_the_costliest();
    if (failures == 0) std::printf("all good\n");
    return failures == 0 ? 0 : 1;
}

// Balance of experts over ranks: where replicas live and who gets which tokens. Everything is in integers, so that
// every rank that computes a placement or a split from the same counts gets the same one, to the bit; no function reads
// a clock or draws without a seed.
#pragma once

#include <cstdint>
#include <span>

namespace fourlane::balance {

// What one replica of each expert costs when the expert has c = 1 .. most replicas, [experts][most]; not increasing in c.
struct CostView {
    const std::int64_t* data;
    std::int64_t experts;
    std::int64_t most;

    std::int64_t operator()(std::int64_t expert, std::int64_t copies) const { return data[expert * most + copies - 1]; }
};

// Give each expert one replica and each of the other slots to the expert whose replicas cost most, the lowest of equals.
// No other counts have a lower greatest cost of a replica. Throws std::invalid_argument if there are fewer slots than
// experts or more than `most` for each.
void choose_copies(CostView cost, std::int64_t slots, std::span<std::int32_t> copies_E);

}  // namespace fourlane::balance

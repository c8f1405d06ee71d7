// Design a layer's placement for batch-level splitting: which experts share which ranks, so that batches whose
// popularity leans from the mean can be levelled by splitting (token_split.hpp).
//
// Loads of batches are floats, worked on one by one in a fixed order with IEEE additions, products, quotients and square
// roots only: every machine finds the same placement, to the bit. Whether it is better is decided in integers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fourlane/balance.hpp"

namespace fourlane::balance {

// Batches of one layer, in a unit of which the mean rank has the same in each of them.
struct Batches {
    std::int32_t count = 0;
    std::int32_t experts = 0;
    std::vector<std::int32_t> load_BE;

    std::span<const std::int32_t> batch(std::int32_t b) const {
        const auto width = static_cast<std::size_t>(experts);
        return std::span(load_BE).subspan(static_cast<std::size_t>(b) * width, width);
    }
};

struct Leaning {
    double sd = 0;          // of the shift of log-popularity that a batch has as a whole
    double pairs = 0;       // (token, expert) pairs in a batch of all ranks; 0: without the noise of sampling
    std::int32_t count = 0;  // batches to draw
};

// Draw batches around windows_WE, [windows, experts], each window in turn.
Batches draw_batches(std::span<const double> windows_WE, std::int32_t experts, std::int32_t ranks,
                     const Leaning& leaning, std::uint64_t seed);

// What a design must keep to.
struct DesignLimits {
    std::int32_t ranks = 1;
    std::int32_t unit_ranks = 1;    // replicas of an expert are on different units of so many ranks (1: ranks; more: nodes)
    std::int32_t domain_ranks = 1;  // an expert stays within its domain of so many ranks (all ranks: anywhere)
    double equal_split = 1.0;       // the costliest rank with equal shares: at most so many times that of the start
    std::span<const std::int32_t> previous_P;  // a placement of the same ranks that moves are counted from, or empty
    std::int64_t moves = 0;                    // (rank, expert) pairs not in `previous_P`, at most
    std::int64_t steps = 0;                    // exchanges tried
    std::uint64_t seed = 0;
};

// Improve slot_P (the expert in each slot, -1 where empty) in place: exchange replicas of two ranks, or turn one into a
// replica of another expert, where that lowers the mean over the batches of the fullest rank after splitting. Kept only
// if it is better for these batches and for `others`, which the search does not see. Returns false where all stays.
bool design_for_splitting(std::span<std::int32_t> slot_P, CostView cost, const Batches& batches, const Batches& others,
                          const DesignLimits& limits);

// The mean over batches of the fullest rank after splitting, in units of the mean rank.
double mean_split_balance(std::span<const std::int32_t> slot_P, std::int32_t ranks, const Batches& batches);

}  // namespace fourlane::balance

// Balance of experts over ranks: where replicas live and who gets which tokens. Everything is in integers, so that
// every rank that computes a placement or a split from the same counts gets the same one, to the bit; no function reads
// a clock or draws without a seed.
#pragma once

#include <cstdint>
#include <span>

namespace fourlane::balance {

// Costs are below 2^40 each. What one replica of each expert costs when the expert has c = 1 .. most replicas, [experts][most]; not increasing in c.
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

// What becomes of slots beyond one for each expert where no second replica of any is better than those found.
enum class Redundancy : std::int32_t {
    optional,  // they stay empty
    filled,    // they hold what harms least, for who knows no empty slots; the better of both ways is taken
    wanted,    // second replicas are kept: who splits batches over them gains by more than equal shares show
};

// One layer to be placed: slots are those of the ranks in turn, `slots_per_rank` each.
struct PlacementTask {
    CostView cost;
    std::int32_t ranks;
    std::int32_t slots_per_rank;
    std::int32_t ranks_per_unit = 1;  // replicas of an expert are in different units: ranks, or nodes of several
    std::int64_t good_enough = 0;     // the greatest rank's cost at which the search may stop
    std::int64_t steps = 0;           // the work it may do: candidates weighed
    std::uint64_t seed = 0;
    std::span<const std::int32_t> previous_P = {};  // where experts were (-1: empty), of as many slots; or nothing
    std::int32_t moves = -1;                        // most experts that ranks may receive; -1: as many as it takes
    std::int64_t hardly = 0;                        // the previous one stays if another is better by so many 2^-20 or less
    Redundancy redundancy = Redundancy::optional;
};

// Find a placement whose costliest rank costs little; write the expert in each slot (-1: empty); return what that rank
// costs. With a previous one: that itself if the one found is hardly better; otherwise, with a limit of moves, the
// previous one mended as far as they go, and without, the one found with ranks and slots named so that as much as may be
// stays where it was. Throws std::invalid_argument if experts do not fit.
std::int64_t place(const PlacementTask& task, std::span<std::int32_t> expert_P);

// Return a load that the fullest rank has in every placement, an expert's load being shared equally by its replicas.
std::int64_t lower_bound(std::span<const std::int64_t> load_E, std::int64_t ranks, std::int64_t slots_per_rank);

}  // namespace fourlane::balance

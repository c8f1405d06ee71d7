// Counts of replicas for ranks of two slots each.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fourlane/balance.hpp"
#include "random.hpp"

namespace fourlane::balance {

// With two slots a rank the best packing of given replicas is known: the costliest with the cheapest, the second with the
// last but one, and so on. What is left to search are the counts. They change in pairs, one expert gaining what another
// loses, drawn at random, hot ones more often; judged is the sum of what pairs cost above a target just below the best
// there was, and a change for the worse is taken too while it is small, less and less so (threshold accepting).
// Source: Dueck and Scheuer, Threshold accepting, J. Comput. Phys. 90 (1990).
class PairCounts {
public:
    PairCounts(CostView cost, std::int64_t slots, std::span<std::int32_t> copies_E, std::uint64_t seed);

    // Improve the counts with so many draws, or until no pair costs more than is good enough.
    void improve(std::int64_t good_enough, std::int64_t draws);

    // Change the counts until no pair costs more than `most`, with so many draws; then back towards others while that
    // holds. Tell whether it does.
    bool come_near(std::int64_t most, std::span<const std::int32_t> other_E, std::int64_t draws);

private:
    using Cost = std::int64_t;

    bool draw(Cost limit);
    void sort_values();
    Cost costliest() const;
    Cost excess(const std::vector<Cost>& values_P) const;
    bool change(std::int32_t gaining, std::int32_t losing, Cost limit);
    void recount(std::int32_t expert, std::int32_t copies);

    CostView cost_;
    std::size_t slots_;
    std::span<std::int32_t> copies_E_;
    Random draws_;
    std::vector<std::int32_t> hottest_E_;  // experts, the costliest first
    Cost target_ = 0, excess_ = 0;
    std::vector<Cost> values_P_, tried_P_;  // what replicas cost, the costliest first
};

}  // namespace fourlane::balance

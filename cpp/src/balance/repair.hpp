// Come from a previous placement to a better one without moving more than needs be.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fourlane/balance.hpp"
#include "search.hpp"

namespace fourlane::balance {

// Name ranks (within units) and slots of a placement anew so that as much as may be stays where it was.
void rename_for(const PlacementTask& task, std::span<std::int32_t> expert_P);

// Put what a rank held before into the slot where it was.
void keep_slots(const PlacementTask& task, std::span<std::int32_t> expert_P);

// Mend the previous placement within the task's moves, knowing one found from nothing; return what its costliest rank costs.
std::int64_t repair(const PlacementTask& task, std::span<const std::int32_t> fresh_P, std::span<std::int32_t> expert_P);

// Ranks of two slots, for given counts of replicas: find partners for what must move.
class PairRepair {
public:
    PairRepair(const PlacementTask& task, std::span<const std::int32_t> copies_E);

    // Write a placement none of whose ranks costs more than `most`, most replicas being where they were; tell whether
    // there is one.
    bool within(std::int64_t most, std::span<std::int32_t> expert_P);

private:
    using Cost = std::int64_t;

    Cost value(std::int32_t expert) const { return expert < 0 ? 0 : value_E_[static_cast<std::size_t>(expert)]; }
    Cost load(std::int32_t rank) const {
        return value(table_P_[static_cast<std::size_t>(2 * rank)]) + value(table_P_[static_cast<std::size_t>(2 * rank + 1)]);
    }
    void drop_surplus();
    void drop_overload(Cost most);
    std::vector<std::int32_t> homeless() const;
    bool settle(std::int32_t expert, Cost most);
    bool oust(std::int32_t expert, Cost most, std::int32_t& ousted);
    bool may_hold(std::int32_t rank, std::int32_t expert) const;

    const PlacementTask& task_;
    Origin origin_;
    std::span<const std::int32_t> copies_E_;
    std::vector<Cost> value_E_;
    std::vector<std::int32_t> table_P_;
};

}  // namespace fourlane::balance

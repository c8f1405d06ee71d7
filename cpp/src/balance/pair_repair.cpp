// Ranks of two slots, for given counts of replicas: find partners for what must move.
#include <algorithm>
#include <numeric>
#include <set>
#include <tuple>
#include <utility>

#include "repair.hpp"

namespace fourlane::balance {

PairRepair::PairRepair(const PlacementTask& task, std::span<const std::int32_t> copies_E)
    : task_(task), origin_(task), copies_E_(copies_E), value_E_(copies_E.size()) {
    for (std::size_t expert = 0; expert < copies_E.size(); ++expert) {
        value_E_[expert] = task.cost(static_cast<std::int64_t>(expert), copies_E[expert]);
    }
}

// Take replicas beyond an expert's count from the costliest ranks that hold it.
void PairRepair::drop_surplus() {
    std::vector<std::int32_t> held_E(copies_E_.size());
    for (const std::int32_t expert : table_P_) {
        if (expert >= 0) ++held_E[static_cast<std::size_t>(expert)];
    }
    for (std::size_t expert = 0; expert < copies_E_.size(); ++expert) {
        for (; held_E[expert] > copies_E_[expert]; --held_E[expert]) {
            std::int32_t costliest = -1;
            Cost most = -1;
            for (std::int32_t slot = 0; slot < 2 * task_.ranks; ++slot) {
                if (table_P_[static_cast<std::size_t>(slot)] != static_cast<std::int32_t>(expert)) continue;
                if (load(slot / 2) <= most) continue;
                most = load(slot / 2);
                costliest = slot;
            }
            table_P_[static_cast<std::size_t>(costliest)] = -1;
        }
    }
}

// Take the cheaper replica from every rank that costs too much, or both if one is too much.
void PairRepair::drop_overload(Cost most) {
    for (std::int32_t rank = 0; rank < task_.ranks; ++rank) {
        std::int32_t& a = table_P_[static_cast<std::size_t>(2 * rank)];
        std::int32_t& b = table_P_[static_cast<std::size_t>(2 * rank + 1)];
        if (load(rank) > most) (value(a) < value(b) ? a : b) = -1;
    }
}

// The experts that lack replicas, once for each, the costliest first.
std::vector<std::int32_t> PairRepair::homeless() const {
    std::vector<std::int32_t> lacking_E(copies_E_.begin(), copies_E_.end());
    for (const std::int32_t expert : table_P_) {
        if (expert >= 0) --lacking_E[static_cast<std::size_t>(expert)];
    }
    std::vector<std::int32_t> experts;
    for (std::size_t expert = 0; expert < lacking_E.size(); ++expert) {
        experts.insert(experts.end(), static_cast<std::size_t>(lacking_E[expert]), static_cast<std::int32_t>(expert));
    }
    std::stable_sort(experts.begin(), experts.end(), [this](std::int32_t a, std::int32_t b) { return value(a) > value(b); });
    return experts;
}

bool PairRepair::may_hold(std::int32_t rank, std::int32_t expert) const {
    const std::int32_t unit = task_.ranks_per_unit, first = rank / unit * unit * 2;
    const auto begin = table_P_.begin() + first;
    return std::find(begin, begin + 2 * unit, expert) == begin + 2 * unit;
}

// Put a replica into a free slot: of a rank that held it before, otherwise where it leaves least room.
bool PairRepair::settle(std::int32_t expert, Cost most) {
    std::int32_t best = -1;
    std::pair<bool, Cost> fullest{false, -1};
    for (std::int32_t slot = 0; slot < 2 * task_.ranks; ++slot) {
        if (table_P_[static_cast<std::size_t>(slot)] >= 0) continue;
        const Cost after = load(slot / 2) + value(expert);
        const std::pair key{origin_.received(slot / 2, expert) == 0, after};
        if (after > most || key <= fullest || !may_hold(slot / 2, expert)) continue;
        fullest = key;
        best = slot;
    }
    if (best < 0) return false;
    table_P_[static_cast<std::size_t>(best)] = expert;
    return true;
}

// Put a replica in the place of a cheaper one: one that fits a free slot if there is any, one that
// moved anyway if there is any; of these the costliest, or the cheapest if none fits.
bool PairRepair::oust(std::int32_t expert, Cost most, std::int32_t& ousted) {
    Cost room = 0;
    for (std::int32_t slot = 0; slot < 2 * task_.ranks; ++slot) {
        if (table_P_[static_cast<std::size_t>(slot)] < 0) room = std::max(room, most - load(slot / 2));
    }
    std::int32_t best = -1;
    std::tuple<bool, bool, Cost> best_key;
    for (std::int32_t slot = 0; slot < 2 * task_.ranks; ++slot) {
        const std::int32_t there = table_P_[static_cast<std::size_t>(slot)];
        if (there < 0 || value(there) >= value(expert)) continue;
        if (load(slot / 2) - value(there) + value(expert) > most || !may_hold(slot / 2, expert)) continue;
        const bool fits = value(there) <= room;
        const std::tuple key{fits, origin_.received(slot / 2, there) == 1, fits ? value(there) : -value(there)};
        if (best >= 0 && key <= best_key) continue;
        best_key = key;
        best = slot;
    }
    if (best < 0) return false;
    ousted = table_P_[static_cast<std::size_t>(best)];
    table_P_[static_cast<std::size_t>(best)] = expert;
    return true;
}

bool PairRepair::within(std::int64_t most, std::span<std::int32_t> expert_P) {
    table_P_.assign(task_.previous_P.begin(), task_.previous_P.end());
    drop_surplus();
    drop_overload(most);
    const auto costlier = [this](std::int32_t a, std::int32_t b) { return std::pair{-value(a), a} < std::pair{-value(b), b}; };
    std::multiset<std::int32_t, decltype(costlier)> waiting(costlier);
    for (const std::int32_t expert : homeless()) waiting.insert(expert);
    for (std::int32_t left = 4 * task_.ranks; !waiting.empty(); --left) {
        if (left == 0) return false;
        const std::int32_t expert = *waiting.begin();
        waiting.erase(waiting.begin());
        if (settle(expert, most)) continue;
        std::int32_t ousted = -1;
        if (!oust(expert, most, ousted)) return false;
        waiting.insert(ousted);
    }
    std::copy(table_P_.begin(), table_P_.end(), expert_P.begin());
    return true;
}

}  // namespace fourlane::balance

// How many replicas each expert gets.
#include <algorithm>
#include <queue>
#include <stdexcept>
#include <utility>

#include "fourlane/balance.hpp"

namespace fourlane::balance {

void choose_copies(CostView cost, std::int64_t slots, std::span<std::int32_t> copies_E) {
    if (slots < cost.experts) throw std::invalid_argument("slots: expected at least one for each expert");
    if (slots > cost.experts * cost.most) throw std::invalid_argument("slots: expected no more than all experts may have");
    std::fill(copies_E.begin(), copies_E.end(), 1);
    std::priority_queue<std::pair<std::int64_t, std::int64_t>> costliest;  // (cost of a replica, -expert)
    const auto push = [&](std::int64_t expert) {
        const std::int64_t copies = copies_E[static_cast<std::size_t>(expert)];
        if (copies < cost.most) costliest.emplace(cost(expert, copies), -expert);
    };
    for (std::int64_t expert = 0; expert < cost.experts; ++expert) push(expert);
    for (std::int64_t left = slots - cost.experts; left > 0; --left) {
        const std::int64_t expert = -costliest.top().second;
        costliest.pop();
        ++copies_E[static_cast<std::size_t>(expert)];
        push(expert);
    }
}

}  // namespace fourlane::balance

// Counts of replicas for ranks of two slots each.
#include "pair_counts.hpp"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

namespace fourlane::balance {

namespace {

constexpr std::int64_t below_best = 2048;   // a target is below the best by this part of it
constexpr std::int64_t worse = 256;             // a change may be worse by this part of it at first

}  // namespace

PairCounts::PairCounts(CostView cost, std::int64_t slots, std::span<std::int32_t> copies_E, std::uint64_t seed)
    : cost_(cost), slots_(static_cast<std::size_t>(slots)), copies_E_(copies_E), draws_(seed), hottest_E_(copies_E.size()) {
    std::iota(hottest_E_.begin(), hottest_E_.end(), 0);
    std::stable_sort(hottest_E_.begin(), hottest_E_.end(),
                     [&cost](std::int32_t a, std::int32_t b) { return cost(a, 1) > cost(b, 1); });
}

void PairCounts::improve(std::int64_t good_enough, std::int64_t draws) {
    sort_values();
    std::vector<std::int32_t> best_E(copies_E_.begin(), copies_E_.end());
    const auto aim_below = [this](Cost best) {
        target_ = best - best / below_best - 1;
        excess_ = excess(values_P_);
    };
    Cost best = costliest();
    aim_below(best);
    for (std::int64_t left = draws; left > 0 && best > good_enough; --left) {
        if (!draw(excess_ + best / worse * left / draws) || excess_ > 0) continue;
        best = costliest();
        best_E.assign(copies_E_.begin(), copies_E_.end());
        aim_below(best);
    }
    std::copy(best_E.begin(), best_E.end(), copies_E_.begin());
}

bool PairCounts::come_near(std::int64_t most, std::span<const std::int32_t> other_E, std::int64_t draws) {
    sort_values();
    target_ = most;
    excess_ = excess(values_P_);
    for (std::int64_t left = draws; left > 0 && excess_ > 0; --left) draw(excess_);
    if (excess_ > 0) return false;
    const auto experts = static_cast<std::int32_t>(copies_E_.size());
    for (std::int32_t losing = 0; losing < experts; ++losing) {
        for (std::int32_t gaining = 0; gaining < experts; ++gaining) {
            if (copies_E_[static_cast<std::size_t>(losing)] <= other_E[static_cast<std::size_t>(losing)]) break;
            if (copies_E_[static_cast<std::size_t>(gaining)] < other_E[static_cast<std::size_t>(gaining)]) change(gaining, losing, 0);
        }
    }
    return true;
}

// Change the counts of two experts drawn, the hotter the likelier, if the excess is then no more than a limit.
bool PairCounts::draw(Cost limit) {
    const auto experts = static_cast<std::int32_t>(copies_E_.size());
    const std::int32_t losing = hottest_E_[static_cast<std::size_t>(draws_.below(draws_.below(experts) + 1))];
    const std::int32_t gaining = hottest_E_[static_cast<std::size_t>(draws_.below(draws_.below(experts) + 1))];
    return losing != gaining && change(gaining, losing, limit);
}

void PairCounts::sort_values() {
    values_P_.clear();
    for (std::size_t expert = 0; expert < copies_E_.size(); ++expert) {
        const Cost value = cost_(static_cast<std::int64_t>(expert), copies_E_[expert]);
        values_P_.insert(values_P_.end(), static_cast<std::size_t>(copies_E_[expert]), value);
    }
    std::sort(values_P_.begin(), values_P_.end(), std::greater<>());
    values_P_.resize(slots_, 0);
}

PairCounts::Cost PairCounts::costliest() const {
    Cost most = 0;
    for (std::size_t i = 0; i < slots_ / 2; ++i) most = std::max(most, values_P_[i] + values_P_[slots_ - 1 - i]);
    return most;
}

PairCounts::Cost PairCounts::excess(const std::vector<Cost>& values_P) const {
    Cost sum = 0;
    for (std::size_t i = 0; i < slots_ / 2; ++i) {
        sum += std::max<Cost>(values_P[i] + values_P[slots_ - 1 - i] - target_, 0);
    }
    return sum;
}

// Let one expert gain a replica and another lose one if the excess is then no more than a limit.
bool PairCounts::change(std::int32_t gaining, std::int32_t losing, Cost limit) {
    const std::int32_t more = copies_E_[static_cast<std::size_t>(gaining)] + 1;
    const std::int32_t fewer = copies_E_[static_cast<std::size_t>(losing)] - 1;
    if (fewer == 0 || more > cost_.most || cost_(losing, fewer) - target_ > limit) return false;
    tried_P_ = values_P_;
    recount(gaining, more);
    recount(losing, fewer);
    const Cost after = excess(tried_P_);
    if (after > limit) return false;
    excess_ = after;
    std::swap(values_P_, tried_P_);
    copies_E_[static_cast<std::size_t>(gaining)] = more;
    copies_E_[static_cast<std::size_t>(losing)] = fewer;
    return true;
}

// Give an expert another count in the sorted values tried.
void PairCounts::recount(std::int32_t expert, std::int32_t copies) {
    const std::int32_t held = copies_E_[static_cast<std::size_t>(expert)];
    const Cost value = cost_(expert, held), now = cost_(expert, copies);
    const auto old = std::lower_bound(tried_P_.begin(), tried_P_.end(), value, std::greater<>());
    tried_P_.erase(old, old + held);
    const auto place = std::lower_bound(tried_P_.begin(), tried_P_.end(), now, std::greater<>());
    tried_P_.insert(place, static_cast<std::size_t>(copies), now);
}

}  // namespace fourlane::balance

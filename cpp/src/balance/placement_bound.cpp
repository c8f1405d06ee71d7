// A load of the fullest rank that no placement can go below, with an expert's load shared equally by its replicas.
//
// Weigh every replica by a function u of what it bears, such that what fits on a rank (at most `width` replicas that bear
// at most T together) never weighs more than U. Then T is out of reach if experts cannot choose their counts, within the
// slots there are, so that all replicas weigh at most ranks * U. With y < T / 2, two functions are used:
//   counting: replicas of at least T - y weigh k, others above y weigh 1, those up to y nothing; U = k, the most above
//             y that fit. (Beside one of at least T - y nothing above y fits.)
//   measuring: replicas of at least T - y weigh T, others above y what they bear, those up to y nothing; U = T.
// The least weight for counts within the slots is bounded from below by filling in the order of weight saved for each
// further slot, fractions allowed (a knapsack's linear relaxation).
// Source: dual feasible functions; Fekete and Schepers, New classes of fast lower bounds for bin packing, 2001.
#include <algorithm>
#include <cstddef>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "fourlane/balance.hpp"
#include "pair_bound.hpp"

namespace fourlane::balance {

namespace {

using Load = std::int64_t;
__extension__ using Wide = __int128;  // products of a weight and a number of slots

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// One way for an expert to go on: so many more slots, so much less weight.
struct Step {
    std::int64_t slots;
    Load saved;
};

class Bound {
public:
    Bound(std::span<const Load> load_E, std::int64_t ranks, std::int64_t width)
        : load_E_(load_E), ranks_(ranks), width_(width) {}

    Load greatest() {
        Load bound = std::max(mean(), by_counts());
        if (width_ == 1) return bound;
        std::vector<Load> cuts;
        for (const Load load : load_E_) {
            if (load < bound / 2) cuts.push_back(load);
        }
        std::sort(cuts.begin(), cuts.end());
        cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
        for (const Load cut : cuts) bound = raised(bound, cut);
        return bound;
    }

private:
    // The whole load over the ranks, rounded up.
    Load mean() const {
        Load sum = 0;
        for (const Load load : load_E_) sum += load;
        return divide_up(sum, ranks_);
    }

    // The least that the greatest replica bears.
    Load by_counts() const {
        Load low = 0, high = *std::max_element(load_E_.begin(), load_E_.end());
        while (low < high) {
            const Load middle = low + (high - low) / 2;
            if (slots_within(middle) <= ranks_ * width_) high = middle;
            else low = middle + 1;
        }
        return low;
    }

    std::int64_t slots_within(Load most) const {
        std::int64_t slots = 0;
        for (const Load load : load_E_) slots += load == 0 ? 1 : most == 0 ? ranks_ * width_ + 1 : divide_up(load, most);
        return slots;
    }

    // The bound, or a greater one that `cut` proves.
    Load raised(Load bound, Load cut) {
        if (!out_of_reach(bound, cut)) return bound;
        Load low = bound, high = bound + bound / 8 + 2;
        while (out_of_reach(high, cut)) {
            low = high;
            high += high / 4;
        }
        while (high - low > std::max<Load>(low >> 20, 1)) {
            const Load middle = low + (high - low) / 2;
            (out_of_reach(middle, cut) ? low : high) = middle;
        }
        return low + 1;
    }

    bool out_of_reach(Load most, Load cut) {
        if (2 * cut >= most) return false;
        const std::int64_t together = cut == 0 ? width_ : std::min(width_, (most - 1) / cut);
        return weighs_more(most, cut, ranks_ * together, together, [](std::int64_t copies, Load) { return copies; }) ||
               weighs_more(most, cut, ranks_ * most, most, [](std::int64_t, Load load) { return load; });
    }

    template <typename Weight>
    bool weighs_more(Load most, Load cut, Load room, Load big, Weight weight) {
        std::int64_t left = ranks_ * width_;
        Load total = 0;
        steps_.clear();
        for (const Load load : load_E_) {
            const std::int64_t least = load == 0 ? 1 : divide_up(load, most);
            left -= least;
            if (load <= cut * least) continue;
            const bool is_big = load >= (most - cut) * least;
            const Load now = is_big ? big * least : weight(least, load);
            total += now;
            const std::int64_t none = cut == 0 ? ranks_ + 1 : divide_up(load, cut);
            const std::int64_t middle = load / (most - cut) + 1;
            add_steps(least, now, is_big ? middle : least, is_big ? weight(middle, load) : now, none);
        }
        if (left < 0) return true;
        std::sort(steps_.begin(), steps_.end(), [](const Step& a, const Step& b) {
            return Wide{a.saved} * b.slots > Wide{b.saved} * a.slots;
        });
        for (const Step& step : steps_) {
            if (step.slots <= left) {
                left -= step.slots;
                total -= step.saved;
                continue;
            }
            total -= static_cast<Load>(Wide{step.saved} * left / step.slots);
            break;
        }
        return total > room;
    }

    // The lower convex hull of an expert's choices: as few as may be, none of them big, all of them light. One with more
    // replicas than there are ranks is none.
    void add_steps(std::int64_t least, Load now, std::int64_t middle, Load then, std::int64_t none) {
        const bool may_lighten = none <= ranks_;
        if (may_lighten && (middle == least || middle >= none || then >= now ||
                            Wide{now - then} * (none - least) <= Wide{now} * (middle - least))) {
            steps_.push_back({none - least, now});
            return;
        }
        if (middle == least || middle > ranks_ || then >= now) return;
        steps_.push_back({middle - least, now - then});
        if (may_lighten) steps_.push_back({none - middle, then});
    }

    std::span<const Load> load_E_;
    std::int64_t ranks_, width_;
    std::vector<Step> steps_;
};

}  // namespace

std::int64_t lower_bound(std::span<const std::int64_t> load_E, std::int64_t ranks, std::int64_t slots_per_rank) {
    if (load_E.empty() || ranks < 1 || slots_per_rank < 1) throw std::invalid_argument("lower_bound: expected experts, ranks and slots");
    if (static_cast<std::int64_t>(load_E.size()) > ranks * slots_per_rank) {
        throw std::invalid_argument("slots: expected at least one for each expert");
    }
    // Loads of replicas are fractions: the bound is just below what is proven in whole numbers.
    const Load bound = Bound(load_E, ranks, slots_per_rank).greatest() - 1;
    const Load sum = std::accumulate(load_E.begin(), load_E.end(), Load{0});
    if (slots_per_rank != 2 || sum == 0) return bound;
    const double mean = static_cast<double>(sum) / static_cast<double>(ranks);
    return std::max(bound, static_cast<Load>(PairBound(load_E, ranks).raised(static_cast<double>(bound) / mean) * mean));
}

}  // namespace fourlane::balance

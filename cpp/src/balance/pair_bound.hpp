// A bound for ranks of two slots each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace fourlane::balance {

// With two slots a rank, the greatest rank bears no more than T only if for every x > T / 2 there are enough partners:
// replicas of at least x, plus those above T - x, are no more than there are slots. Experts choose their counts so that
// this holds for all x at once and all replicas fit. Multipliers for these conditions and for the slots prove that they
// cannot: they are sought by subgradients with Polyak's step (Introduction to Optimization, 1987). Any multipliers prove
// what they prove, so that the arithmetic may be in floating point, with a margin.
class PairBound {
public:
    PairBound(std::span<const std::int64_t> load_E, std::int64_t ranks);

    // Raise a bound on the greatest rank's load, in units of the mean rank's.
    double raised(double bound);

private:
    // A count an expert may choose: its replicas are at least the first `reached` of the thresholds, and above T less all
    // from `above` on.
    struct Choice {
        double copies;
        std::int32_t reached, above;
    };

    bool out_of_reach(double most);
    void list_thresholds(double most);
    void list_choices(double most);
    double value_and_slope();

    std::vector<double> load_E_;
    double ranks_;
    std::vector<double> x_X_, weight_X_, slope_X_, upto_X_;
    double slot_weight_ = 0, slot_slope_ = 0;
    std::vector<Choice> choices_;
    std::vector<std::size_t> first_E1_;
};

}  // namespace fourlane::balance

// A bound for ranks of two slots each.
#include "pair_bound.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace fourlane::balance {

namespace {

constexpr double margin = 1e-9;
constexpr int further = 6;      // counts beyond the fewest that are told apart
constexpr int rounds = 300;     // subgradients tried before a load is taken to be in reach
constexpr double aim = 0.5;     // how far beyond proof a step aims, in replicas

}  // namespace

PairBound::PairBound(std::span<const std::int64_t> load_E, std::int64_t ranks) : ranks_(static_cast<double>(ranks)) {
    double sum = 0;
    for (const std::int64_t load : load_E) sum += static_cast<double>(load);
    for (const std::int64_t load : load_E) load_E_.push_back(static_cast<double>(load) * ranks_ / sum);
}

double PairBound::raised(double bound) {
    double low = bound, high = bound * 1.0625;
    if (!out_of_reach(low)) return bound;
    while (out_of_reach(high)) {
        low = high;
        high *= 1.0625;
    }
    while (high - low > low / 4096) {
        const double middle = (low + high) / 2;
        (out_of_reach(middle) ? low : high) = middle;
    }
    return low;
}

// Every load at which the conditions may change, for the two fewest counts of each expert.
void PairBound::list_thresholds(double most) {
    x_X_.clear();
    for (const double load : load_E_) {
        const double least = std::max(std::ceil(load / most - margin), 1.0);
        for (double copies = least; copies < least + 2; ++copies) {
            const double value = load / copies;
            const double x = value > most / 2 ? value : most - value;
            if (x > most / 2 && x <= most) x_X_.push_back(x);
        }
    }
    std::sort(x_X_.begin(), x_X_.end());
    x_X_.erase(std::unique(x_X_.begin(), x_X_.end()), x_X_.end());
}

void PairBound::list_choices(double most) {
    choices_.clear();
    first_E1_.assign(1, 0);
    const auto end = static_cast<std::int32_t>(x_X_.size());
    const auto upto = [this](double value) {
        return static_cast<std::int32_t>(std::upper_bound(x_X_.begin(), x_X_.end(), value) - x_X_.begin());
    };
    for (const double load : load_E_) {
        double copies = std::max(std::ceil(load / most - margin), 1.0);
        const double exact = copies + further;
        while (copies <= ranks_) {
            // Several counts beyond those are taken as one: as many slots as the fewest, as little load as with the most.
            const double next = copies < exact ? copies + 1 : std::ceil(copies * 1.125);
            const double value = load / (next - 1);
            const std::int32_t above = upto(most - value + margin);
            choices_.push_back({copies, upto(value), above});
            if (above == end) break;  // more copies only cost more slots
            copies = next;
        }
        first_E1_.push_back(choices_.size());
    }
}

// What the multipliers prove (more than nothing: out of reach), and how that changes with each of them.
double PairBound::value_and_slope() {
    const std::size_t size = x_X_.size();
    upto_X_.resize(size + 1);
    upto_X_[0] = 0;
    for (std::size_t x = 0; x < size; ++x) upto_X_[x + 1] = upto_X_[x] + weight_X_[x];
    const double all = upto_X_[size];
    slope_X_.assign(size + 1, 0);
    const double slots = 2 * ranks_;
    double value = -slots * (slot_weight_ + all);
    slot_slope_ = -slots;
    for (std::size_t expert = 0; expert + 1 < first_E1_.size(); ++expert) {
        double least = INFINITY;
        const Choice* chosen = nullptr;
        for (std::size_t i = first_E1_[expert]; i < first_E1_[expert + 1]; ++i) {
            const Choice& choice = choices_[i];
            const double weight = slot_weight_ + upto_X_[static_cast<std::size_t>(choice.reached)] + all -
                                  upto_X_[static_cast<std::size_t>(choice.above)];
            if (choice.copies * weight >= least) continue;
            least = choice.copies * weight;
            chosen = &choice;
        }
        value += least;
        slot_slope_ += chosen->copies;
        // Replicas count once for thresholds before `reached`, once for those from `above` on: differences, summed below.
        slope_X_[0] += chosen->copies;
        slope_X_[static_cast<std::size_t>(chosen->reached)] -= chosen->copies;
        slope_X_[static_cast<std::size_t>(chosen->above)] += chosen->copies;
    }
    slope_X_[0] -= slots;
    std::partial_sum(slope_X_.begin(), slope_X_.end(), slope_X_.begin());
    return value;
}

bool PairBound::out_of_reach(double most) {
    list_thresholds(most);
    list_choices(most);
    const std::size_t size = x_X_.size();
    if (size == 0) return false;
    weight_X_.assign(size, 0.5 / static_cast<double>(size));
    slot_weight_ = 0.5;
    for (int round = 0; round < rounds; ++round) {
        const double value = value_and_slope();
        if (value > margin * ranks_) return true;
        // Weights add up to 1: a step along the slope, stretched by each weight.
        double mean = slot_weight_ * slot_slope_;
        for (std::size_t x = 0; x < size; ++x) mean += weight_X_[x] * slope_X_[x];
        double square = slot_weight_ * (slot_slope_ - mean) * (slot_slope_ - mean);
        for (std::size_t x = 0; x < size; ++x) square += weight_X_[x] * (slope_X_[x] - mean) * (slope_X_[x] - mean);
        if (square < margin) return false;
        const double step = (aim - value) / square;
        const auto stretched = [step, mean](double weight, double slope) {
            return weight * std::clamp(1 + step * (slope - mean), 0.1, 10.0);
        };
        slot_weight_ = stretched(slot_weight_, slot_slope_);
        double sum = slot_weight_;
        for (std::size_t x = 0; x < size; ++x) {
            weight_X_[x] = stretched(weight_X_[x], slope_X_[x]);
            sum += weight_X_[x];
        }
        slot_weight_ /= sum;
        for (double& weight : weight_X_) weight /= sum;
    }
    return false;
}

}  // namespace fourlane::balance

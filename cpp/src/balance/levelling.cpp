#include "levelling.hpp"

#include <algorithm>
#include <numeric>

namespace fourlane::balance {
namespace {

constexpr std::int32_t kRoot = -1;

std::int64_t ceil_of(std::int64_t total, std::int64_t parts) { return (total + parts - 1) / parts; }

std::size_t at(std::int32_t index) { return static_cast<std::size_t>(index); }

}  // namespace

Levelling::Levelling(const ReplicasView& replicas)
    : replicas_(replicas),
      expert_of_(replicas.rank.size()),
      held_start_(at(replicas.ranks) + 1),
      quota_(replicas.rank.size()),
      load_(at(replicas.ranks)),
      base_(at(replicas.ranks)),
      from_replica_(at(replicas.ranks)),
      to_replica_(at(replicas.ranks)),
      seen_rank_(at(replicas.ranks)),
      seen_expert_(at(replicas.experts())) {
    std::int32_t most = 0;
    for (std::int32_t e = 0; e < replicas.experts(); ++e) {
        const std::int32_t copies = replicas.start[at(e + 1)] - replicas.start[at(e)];
        most = std::max(most, copies);
        for (std::int32_t i = replicas.start[at(e)]; i < replicas.start[at(e + 1)]; ++i) {
            expert_of_[at(i)] = e;
            if (copies > 1) ++held_start_[at(replicas.rank[at(i)]) + 1];
        }
        if (copies > 1) replicated_.push_back(e);
    }
    std::partial_sum(held_start_.begin(), held_start_.end(), held_start_.begin());
    held_.resize(at(held_start_.back()));
    std::vector<std::int32_t> next(held_start_.begin(), held_start_.end() - 1);
    for (const std::int32_t e : replicated_) {
        for (std::int32_t i = replicas.start[at(e)]; i < replicas.start[at(e + 1)]; ++i) {
            held_[at(next[at(replicas.rank[at(i)])]++)] = i;
        }
    }
    by_load_.resize(at(most));
    reached_.reserve(at(replicas.ranks));
}

void Levelling::begin(std::span<const std::int64_t> total_E) {
    std::fill(load_.begin(), load_.end(), 0);
    std::fill(quota_.begin(), quota_.end(), 0);
    for (std::int32_t e = 0; e < replicas_.experts(); ++e) {
        const std::int32_t first = replicas_.start[at(e)];
        if (replicas_.start[at(e + 1)] - first != 1) continue;
        quota_[at(first)] = total_E[at(e)];
        load_[at(replicas_.rank[at(first)])] += total_E[at(e)];
    }
    base_ = load_;
    order_ = replicated_;
    std::sort(order_.begin(), order_.end(), [&](std::int32_t a, std::int32_t b) {
        return total_E[at(a)] != total_E[at(b)] ? total_E[at(a)] > total_E[at(b)] : a < b;
    });
}

void Levelling::sweep(std::span<const std::int64_t> total_E, int sweeps) {
    begin(total_E);
    bool changed = true;
    for (int turn = 0; turn < sweeps && changed; ++turn) {
        changed = false;
        for (const std::int32_t e : order_) changed |= level(e, total_E[at(e)]);
    }
}

bool Levelling::level_pair(std::int32_t first, std::int64_t total) {
    std::int64_t& one = load_[at(replicas_.rank[at(first)])];
    std::int64_t& other = load_[at(replicas_.rank[at(first + 1)])];
    const std::int64_t gap = (other - quota_[at(first + 1)]) - (one - quota_[at(first)]);
    const std::int64_t share = gap >= total ? total : gap <= -total ? 0 : (total + gap + 1) / 2;
    const std::int64_t change = share - quota_[at(first)];
    const bool first_time = quota_[at(first)] + quota_[at(first + 1)] != total;
    one += change;
    other += total - share - quota_[at(first + 1)];
    quota_[at(first)] = share;
    quota_[at(first + 1)] = total - share;
    return first_time || change != 0;
}

// Fill the ranks of an expert's replicas like vessels: the emptiest first, until all that got something stand level.
bool Levelling::level(std::int32_t expert, std::int64_t total) {
    const std::int32_t first = replicas_.start[at(expert)];
    const std::int32_t copies = replicas_.start[at(expert + 1)] - first;
    if (copies == 2) return level_pair(first, total);
    const auto load_of = [&](std::int32_t i) -> std::int64_t& { return load_[at(replicas_.rank[at(i)])]; };
    for (std::int32_t i = first; i < first + copies; ++i) load_of(i) -= quota_[at(i)];
    for (std::int32_t j = 0; j < copies; ++j) {  // insertion sort: few, and nearly in order of slots
        std::int32_t place = j;
        for (; place > 0 && load_of(by_load_[at(place - 1)]) > load_of(first + j); --place) {
            by_load_[at(place)] = by_load_[at(place - 1)];
        }
        by_load_[at(place)] = first + j;
    }
    std::int64_t sum = total + load_of(by_load_[0]);
    std::int32_t filled = 1;
    for (; filled < copies && sum > load_of(by_load_[at(filled)]) * filled; ++filled) sum += load_of(by_load_[at(filled)]);
    const std::int64_t height = sum / filled;
    const std::int64_t left = sum % filled;
    bool changed = false;
    for (std::int32_t j = 0; j < copies; ++j) {
        const std::int32_t i = by_load_[at(j)];
        const std::int64_t share = j < filled ? height + (j < left ? 1 : 0) - load_of(i) : 0;
        changed |= share != quota_[at(i)];
        quota_[at(i)] = share;
        load_of(i) += share;
    }
    return changed;
}

double Levelling::settle() {
    const std::int64_t total = std::accumulate(load_.begin(), load_.end(), std::int64_t{0});
    const std::int64_t fixed = *std::max_element(base_.begin(), base_.end());
    double bound = std::max(static_cast<double>(total) / replicas_.ranks, static_cast<double>(fixed));
    std::int64_t target = std::max(ceil_of(total, replicas_.ranks), fixed);
    while (true) {
        while (move_excess(target)) {}
        if (*std::max_element(load_.begin(), load_.end()) <= target) return bound;
        // Nothing flows out of the ranks reached: the experts that load them have no replica elsewhere. All of them
        // hold the target or more, some more, so no split leaves a smaller maximum than their mean.
        std::int64_t confined = 0;
        for (const std::int32_t rank : reached_) confined += load_[at(rank)];
        bound = static_cast<double>(confined) / static_cast<double>(reached_.size());
        target = ceil_of(confined, static_cast<std::int64_t>(reached_.size()));
    }
}

// One search from all ranks above the target, and a move to each rank below it that was reached. False where nothing
// moved: then the ranks reached hold the target or more.
bool Levelling::move_excess(std::int64_t target) {
    search(target);
    bool moved = false;
    for (const std::int32_t rank : reached_) {
        if (load_[at(rank)] < target) moved |= move_to(rank, target);
    }
    return moved;
}

void Levelling::search(std::int64_t target) {
    std::fill(seen_rank_.begin(), seen_rank_.end(), 0);
    std::fill(seen_expert_.begin(), seen_expert_.end(), 0);
    reached_.clear();
    for (std::int32_t rank = 0; rank < replicas_.ranks; ++rank) {
        if (load_[at(rank)] <= target) continue;
        seen_rank_[at(rank)] = 1;
        from_replica_[at(rank)] = kRoot;
        reached_.push_back(rank);
    }
    for (std::size_t next = 0; next < reached_.size(); ++next) {
        const std::int32_t rank = reached_[next];
        for (std::int32_t h = held_start_[at(rank)]; h < held_start_[at(rank + 1)]; ++h) {
            const std::int32_t held = held_[at(h)];
            const std::int32_t expert = expert_of_[at(held)];
            if (quota_[at(held)] == 0 || seen_expert_[at(expert)]) continue;
            seen_expert_[at(expert)] = 1;
            for (std::int32_t i = replicas_.start[at(expert)]; i < replicas_.start[at(expert + 1)]; ++i) {
                const std::int32_t other = replicas_.rank[at(i)];
                if (seen_rank_[at(other)]) continue;
                seen_rank_[at(other)] = 1;
                from_replica_[at(other)] = held;
                to_replica_[at(other)] = i;
                reached_.push_back(other);
            }
        }
    }
}

// Move what can be moved along the way to `sink`; earlier moves of the same search may have used it up.
bool Levelling::move_to(std::int32_t sink, std::int64_t target) {
    std::int64_t amount = target - load_[at(sink)];
    std::int32_t rank = sink;
    for (; from_replica_[at(rank)] != kRoot; rank = replicas_.rank[at(from_replica_[at(rank)])]) {
        amount = std::min(amount, quota_[at(from_replica_[at(rank)])]);
    }
    amount = std::min(amount, load_[at(rank)] - target);
    if (amount <= 0) return false;
    load_[at(rank)] -= amount;
    load_[at(sink)] += amount;
    for (rank = sink; from_replica_[at(rank)] != kRoot; rank = replicas_.rank[at(from_replica_[at(rank)])]) {
        quota_[at(from_replica_[at(rank)])] -= amount;
        quota_[at(to_replica_[at(rank)])] += amount;
    }
    return true;
}

}  // namespace fourlane::balance

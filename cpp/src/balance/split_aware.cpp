#include "fourlane/split_aware.hpp"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "fourlane/token_split.hpp"
#include "levelling.hpp"
#include "random.hpp"
#include "split_block.hpp"
#include "split_layout.hpp"

namespace fourlane::balance {
namespace {

constexpr std::int32_t kEmpty = SplitLayout::kEmpty;
constexpr int kFirstSweeps = 8;  // to level the batches at the start
constexpr int kExactSweeps = 4;  // before the exact levelling that decides in the end

std::size_t at(std::int32_t index) { return static_cast<std::size_t>(index); }

// A change of two slots on two ranks: what was in them, and what will be.
struct Exchange {
    std::int32_t slot, other;
    std::int32_t old_expert, old_other;
    std::int32_t new_expert, new_other;

    bool changes_counts() const { return new_expert != old_other || new_other != old_expert; }
};

// What an exchange must not break, apart from the layout itself.
class Rules {
public:
    Rules(const SplitLayout& layout, CostView cost, const DesignLimits& limits)
        : layout_(layout), cost_(cost), limits_(limits), equal_(at(layout.ranks())) {
        equal_shares(equal_);
        limit_ = static_cast<std::int64_t>(static_cast<double>(*std::max_element(equal_.begin(), equal_.end())) *
                                           limits.equal_split);
        if (!limits.previous_P.empty()) count_moves();
    }

    // Whether an expert may come to a rank.
    bool free_of(std::int32_t rank, std::int32_t expert) const {
        if (expert == kEmpty) return true;
        for (const std::int32_t slot : layout_.slots_of(expert)) {
            if (layout_.rank_of(slot) / limits_.unit_ranks == rank / limits_.unit_ranks) return false;
        }
        return true;
    }

    // Whether an expert may come to a rank while its replica on another one goes.
    bool may_move(std::int32_t from, std::int32_t to, std::int32_t expert) const {
        return from / limits_.unit_ranks == to / limits_.unit_ranks || free_of(to, expert);
    }

    // Whether an exchange, which is not made yet, keeps the limits of equal shares and moves.
    bool allow(const Exchange& exchange) {
        const bool kept = exchange.changes_counts() ? allow_change(exchange) : allow_swap(exchange);
        if (!kept || before_.empty()) return kept;
        trial_moves_ = moves_ + moved(exchange.slot, exchange.new_expert) - moved(exchange.slot, exchange.old_expert) +
                       moved(exchange.other, exchange.new_other) - moved(exchange.other, exchange.old_other);
        return trial_moves_ <= std::max(limits_.moves, moves_);
    }

    // Take over what the last `allow` has worked out.
    void keep() {
        std::swap(equal_, trial_equal_);
        moves_ = trial_moves_;
    }

private:
    std::int64_t share(std::int32_t expert, std::int32_t more = 0) const {
        return expert == kEmpty ? 0 : cost_(expert, layout_.copies(expert) + more);
    }

    std::int64_t& trial_equal(std::int32_t slot) { return trial_equal_[at(layout_.rank_of(slot))]; }

    bool allow_swap(const Exchange& exchange) {
        const std::int64_t more = share(exchange.new_expert) - share(exchange.old_expert);
        const std::int32_t fuller = more > 0 ? exchange.slot : exchange.other;
        if (equal_[at(layout_.rank_of(fuller))] + std::abs(more) > limit_) return false;
        trial_equal_ = equal_;
        trial_equal(exchange.slot) += more;
        trial_equal(exchange.other) -= more;
        return true;
    }

    // One slot gets one more replica of an expert, in place of one of another expert or of nothing.
    bool allow_change(const Exchange& exchange) {
        const bool first = exchange.new_expert != exchange.old_expert;
        const std::int32_t changed = first ? exchange.slot : exchange.other;
        const std::int32_t more = first ? exchange.new_expert : exchange.new_other;
        const std::int32_t fewer = first ? exchange.old_expert : exchange.old_other;
        trial_equal_ = equal_;
        for (const std::int32_t slot : layout_.slots_of(more)) trial_equal(slot) += share(more, 1) - share(more);
        trial_equal(changed) += share(more, 1) - share(fewer);
        if (trial_equal(changed) > limit_) return false;
        if (fewer == kEmpty) return true;
        const std::int64_t rise = share(fewer, -1) - share(fewer);
        for (const std::int32_t slot : layout_.slots_of(fewer)) {
            if (slot != changed && (trial_equal(slot) += rise) > limit_) return false;
        }
        return true;
    }

    void equal_shares(std::vector<std::int64_t>& equal) const {
        std::fill(equal.begin(), equal.end(), 0);
        for (std::int32_t p = 0; p < layout_.slots(); ++p) equal[at(layout_.rank_of(p))] += share(layout_.expert(p));
    }

    void count_moves() {
        before_.resize(at(layout_.ranks()) * at(layout_.experts()));
        const std::size_t held = limits_.previous_P.size() / at(layout_.ranks());
        for (std::size_t p = 0; p < limits_.previous_P.size(); ++p) {
            const std::int32_t expert = limits_.previous_P[p];
            if (expert != kEmpty) before_[p / held * at(layout_.experts()) + at(expert)] = 1;
        }
        for (std::int32_t p = 0; p < layout_.slots(); ++p) moves_ += moved(p, layout_.expert(p));
    }

    std::int64_t moved(std::int32_t slot, std::int32_t expert) const {
        if (expert == kEmpty) return 0;
        return before_[at(layout_.rank_of(slot)) * at(layout_.experts()) + at(expert)] ? 0 : 1;
    }

    const SplitLayout& layout_;
    CostView cost_;
    const DesignLimits& limits_;
    std::int64_t limit_ = 0, moves_ = 0, trial_moves_ = 0;
    std::vector<std::int64_t> equal_, trial_equal_;
    std::vector<char> before_;  // [ranks, experts] whether the previous placement had it there
};

// Hill climbing: each step draws an exchange that may relieve a batch's fullest rank, and keeps it if the mean over all
// batches of the fullest rank falls. Batches are looked at block by block, and no further once there is no gain.
class SplitSearch {
public:
    SplitSearch(std::span<const std::int32_t> slot_P, CostView cost, const Batches& batches, const DesignLimits& limits)
        : layout_(slot_P, limits.ranks, static_cast<std::int32_t>(cost.experts), static_cast<std::int32_t>(cost.most)),
          rules_(layout_, cost, limits),
          leveller_(layout_),
          domain_ranks_(limits.domain_ranks),
          random_(limits.seed),
          by_load_(at(layout_.experts())) {
        fill_blocks(batches);
        std::iota(by_load_.begin(), by_load_.end(), 0);
        std::stable_sort(by_load_.begin(), by_load_.end(),
                         [&](std::int32_t a, std::int32_t b) { return cost(a, 1) > cost(b, 1); });
        collect_replicated();
        for (std::size_t block = 0; block < blocks_.size(); ++block) {
            for (std::int32_t e = 0; e < layout_.experts(); ++e) leveller_.level(e, total(block, e), blocks_[block]);
            sweep(block, blocks_[block], kFirstSweeps);
        }
    }

    void run(std::int64_t steps) {
        if (replicated_.empty()) return;
        for (std::int64_t step = 0; step < steps; ++step) try_one();
    }

    std::span<const std::int32_t> slot_P() const { return layout_.slot_P(); }

private:
    const Lanes& total(std::size_t block, std::int32_t expert) const {
        return total_[block * at(layout_.experts()) + at(expert)];
    }

    // Lanes beyond the last batch repeat the first ones.
    void fill_blocks(const Batches& batches) {
        const std::size_t count = (at(batches.count) + kLanes - 1) / kLanes;
        total_.resize(count * at(layout_.experts()));
        blocks_.resize(count);
        for (std::size_t block = 0; block < count; ++block) {
            blocks_[block].quota_P.resize(at(layout_.slots()));
            blocks_[block].load_G.resize(at(layout_.ranks()));
            for (std::size_t lane = 0; lane < kLanes; ++lane) {
                const auto batch = static_cast<std::int32_t>((block * kLanes + lane) % at(batches.count));
                const std::span<const std::int32_t> loads = batches.batch(batch);
                for (std::size_t e = 0; e < loads.size(); ++e) {
                    total_[block * loads.size() + e][lane] = static_cast<float>(loads[e]);
                }
            }
        }
        trial_ = blocks_;
    }

    void collect_replicated() {
        replicated_.clear();
        for (const std::int32_t e : by_load_) {
            if (layout_.copies(e) > 1) replicated_.push_back(e);
        }
    }

    void sweep(std::size_t block, SplitBlock& split, int sweeps) {
        for (int turn = 0; turn < sweeps; ++turn) {
            for (const std::int32_t e : replicated_) leveller_.level(e, total(block, e), split);
        }
        leveller_.find_worst(split);
    }

    // One of the ranks within a 256th of a batch's fullest.
    std::int32_t draw_full_rank(const SplitBlock& split, std::size_t lane) {
        const float enough = split.worst[lane] * (255.0F / 256.0F);
        std::int32_t drawn = 0;
        std::int32_t seen = 0;
        for (std::int32_t g = 0; g < layout_.ranks(); ++g) {
            if (split.load_G[at(g)][lane] >= enough && random_.below(++seen) == 0) drawn = g;
        }
        return drawn;
    }

    bool draw(std::size_t block, Exchange& exchange) {
        const std::size_t lane = static_cast<std::size_t>(random_.below(static_cast<std::int32_t>(kLanes)));
        const SplitBlock& split = blocks_[block];
        const std::int32_t full = draw_full_rank(split, lane);
        const std::int32_t partner = full / domain_ranks_ * domain_ranks_ + random_.below(domain_ranks_);
        if (split.load_G[at(partner)][lane] >= split.load_G[at(full)][lane]) return false;
        exchange.slot = full * layout_.held() + random_.below(layout_.held());
        exchange.other = partner * layout_.held() + random_.below(layout_.held());
        const std::int32_t mine = exchange.old_expert = exchange.new_other = layout_.expert(exchange.slot);
        const std::int32_t theirs = exchange.old_other = exchange.new_expert = layout_.expert(exchange.other);
        if (mine == theirs) return false;
        switch (random_.below(4)) {
            case 0:  // the partner gives a replica up for one more of the full rank's expert
                exchange.new_expert = mine;
                return mine != kEmpty && layout_.copies(mine) < layout_.most() && rules_.free_of(partner, mine) &&
                       (theirs == kEmpty || layout_.copies(theirs) > 1);
            case 1:  // the full rank gives a replica up for one more of the partner's expert
                exchange.new_other = theirs;
                return theirs != kEmpty && layout_.copies(theirs) < layout_.most() && rules_.free_of(full, theirs) &&
                       (mine == kEmpty || layout_.copies(mine) > 1);
            default: return rules_.may_move(full, partner, mine) && rules_.may_move(partner, full, theirs);
        }
    }

    void put(const Exchange& exchange, std::int32_t expert, std::int32_t other) {
        layout_.put(exchange.slot, kEmpty);  // so that an expert never has more replicas than before or after
        layout_.put(exchange.other, other);
        layout_.put(exchange.slot, expert);
        if (exchange.changes_counts()) collect_replicated();
    }

    void try_one() {
        const std::size_t first = static_cast<std::size_t>(random_.below(static_cast<std::int32_t>(blocks_.size())));
        Exchange exchange{};
        if (!draw(first, exchange) || !rules_.allow(exchange)) return;
        put(exchange, exchange.new_expert, exchange.new_other);
        if (improves(exchange, first)) {
            std::swap(blocks_, trial_);
            rules_.keep();
        } else {
            put(exchange, exchange.old_expert, exchange.old_other);
        }
    }

    bool improves(const Exchange& exchange, std::size_t first) {
        float gain = 0.0F;
        for (std::size_t turn = 0; turn < blocks_.size(); ++turn) {
            const std::size_t block = (first + turn) % blocks_.size();
            resplit(exchange, block);
            for (std::size_t i = 0; i < kLanes; ++i) gain += blocks_[block].worst[i] - trial_[block].worst[i];
            if (gain <= 0.0F) return false;
        }
        return true;
    }

    // Batches' split after an exchange, from the one before: what was in the two slots is shared out anew, then all level.
    void resplit(const Exchange& exchange, std::size_t block) {
        SplitBlock& split = trial_[block];
        std::copy(blocks_[block].quota_P.begin(), blocks_[block].quota_P.end(), split.quota_P.begin());
        std::copy(blocks_[block].load_G.begin(), blocks_[block].load_G.end(), split.load_G.begin());
        leveller_.take_out(exchange.slot, split);
        leveller_.take_out(exchange.other, split);
        for (const std::int32_t e : {exchange.old_expert, exchange.old_other}) {
            if (e != kEmpty) leveller_.level(e, total(block, e), split);
        }
        sweep(block, split, 1);
    }

    SplitLayout layout_;
    Rules rules_;
    BlockLeveller leveller_;
    std::int32_t domain_ranks_;
    Random random_;
    std::vector<std::int32_t> by_load_, replicated_;  // all experts, and those with several replicas, heaviest first
    std::vector<Lanes> total_;                        // [blocks, experts]
    std::vector<SplitBlock> blocks_, trial_;
};

}  // namespace

double mean_split_balance(std::span<const std::int32_t> slot_P, std::int32_t ranks, const Batches& batches) {
    const SplitLayout layout(slot_P, ranks, batches.experts, ranks);
    std::vector<std::int32_t> start{0}, slot, rank;
    for (std::int32_t e = 0; e < batches.experts; ++e) {
        for (const std::int32_t p : layout.slots_of(e)) {
            slot.push_back(p);
            rank.push_back(layout.rank_of(p));
        }
        start.push_back(static_cast<std::int32_t>(slot.size()));
    }
    Levelling levelling(ReplicasView{start, slot, rank, ranks, layout.slots()});
    double sum = 0;
    for (std::int32_t b = 0; b < batches.count; ++b) {
        const std::vector<std::int64_t> total(batches.batch(b).begin(), batches.batch(b).end());
        levelling.sweep(total, kExactSweeps);
        levelling.settle();
        const std::int64_t all = std::accumulate(total.begin(), total.end(), std::int64_t{0});
        const std::int64_t worst = *std::max_element(levelling.load_G().begin(), levelling.load_G().end());
        sum += all > 0 ? static_cast<double>(worst) * ranks / static_cast<double>(all) : 1.0;
    }
    return batches.count > 0 ? sum / batches.count : 1.0;
}

bool design_for_splitting(std::span<std::int32_t> slot_P, CostView cost, const Batches& batches, const Batches& others,
                          const DesignLimits& limits) {
    if (batches.count == 0) return false;
    SplitSearch search(slot_P, cost, batches, limits);
    search.run(limits.steps);
    for (const Batches* seen : {&batches, &others}) {
        const double before = mean_split_balance(slot_P, limits.ranks, *seen);
        if (mean_split_balance(search.slot_P(), limits.ranks, *seen) >= before) return false;
    }
    std::copy(search.slot_P().begin(), search.slot_P().end(), slot_P.begin());
    return true;
}

}  // namespace fourlane::balance

// Tests of splitting, and of placements designed for it, without Python, so that sanitizers see every path
// (scripts/sanitize). What is right is tested in tests/unit/policy and tests/property; here results are held against
// plain loops.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "fourlane/split_aware.hpp"
#include "fourlane/token_split.hpp"

namespace {

namespace balance = fourlane::balance;

int failures = 0;

void expect(bool condition, const char* what) {
    if (condition) return;
    ++failures;
    std::printf("FAILED: %s\n", what);
}

// A random layer: every expert somewhere, replicas on different ranks, some slots empty.
struct Layer {
    std::int32_t ranks, held, experts;
    std::vector<std::int32_t> slot_P;

    Layer(std::int32_t ranks_, std::int32_t held_, std::int32_t experts_, std::mt19937& draw)
        : ranks(ranks_), held(held_), experts(experts_), slot_P(static_cast<std::size_t>(ranks_ * held_), -1) {
        std::int32_t next = 0;
        for (std::size_t p = 0; next < experts; p = (p + static_cast<std::size_t>(held)) % (slot_P.size() + 1) % slot_P.size()) {
            while (slot_P[p] != -1) p = (p + 1) % slot_P.size();
            slot_P[p] = next++;
        }
        for (std::size_t p = 0; p < slot_P.size(); ++p) {
            const auto expert = static_cast<std::int32_t>(draw() % static_cast<unsigned>(experts));
            if (slot_P[p] == -1 && !on_rank(p, expert) && draw() % 8 != 0) slot_P[p] = expert;
        }
    }

    bool on_rank(std::size_t slot, std::int32_t expert) const {
        const auto first = slot_P.begin() + static_cast<std::ptrdiff_t>(slot / static_cast<std::size_t>(held)) * held;
        return std::find(first, first + held, expert) != first + held;
    }
};

struct Tables {
    std::vector<std::int32_t> start{0}, slot, rank;
    balance::ReplicasView view;

    explicit Tables(const Layer& layer) {
        for (std::int32_t e = 0; e < layer.experts; ++e) {
            for (std::size_t p = 0; p < layer.slot_P.size(); ++p) {
                if (layer.slot_P[p] != e) continue;
                slot.push_back(static_cast<std::int32_t>(p));
                rank.push_back(static_cast<std::int32_t>(p) / layer.held);
            }
            start.push_back(static_cast<std::int32_t>(slot.size()));
        }
        view = {start, slot, rank, layer.ranks, layer.ranks * layer.held};
    }
};

template <typename Count>
std::vector<Count> random_counts(const Layer& layer, unsigned most, std::mt19937& draw) {
    std::vector<Count> counts(static_cast<std::size_t>(layer.ranks * layer.experts));
    for (Count& count : counts) count = static_cast<Count>(draw() % most * (draw() % 3));
    return counts;
}

// Whether each rank gave just its counts to its experts' slots.
template <typename Count>
bool conserved(const Layer& layer, const std::vector<Count>& counts, const std::vector<std::int32_t>& quota_GP) {
    std::vector<std::int64_t> given(counts.size());
    for (std::size_t i = 0; i < quota_GP.size(); ++i) {
        const std::int32_t expert = layer.slot_P[i % layer.slot_P.size()];
        if (expert == -1 ? quota_GP[i] != 0 : quota_GP[i] < 0) return false;
        const std::size_t rank = i / layer.slot_P.size();
        if (expert != -1) given[rank * static_cast<std::size_t>(layer.experts) + static_cast<std::size_t>(expert)] += quota_GP[i];
    }
    return std::equal(given.begin(), given.end(), counts.begin());
}

template <typename Count>
void split(const Layer& layer, std::int32_t nodes, unsigned most, std::mt19937& draw) {
    const Tables tables(layer);
    const std::vector<Count> counts = random_counts<Count>(layer, most, draw);
    const balance::CountsView<Count> view{counts.data(), layer.ranks, layer.experts};
    std::vector<std::int32_t> quota(static_cast<std::size_t>(layer.ranks) * layer.slot_P.size());
    std::vector<std::int64_t> tokens(static_cast<std::size_t>(layer.ranks));
    const double bound = balance::split_tokens<Count>(view, tables.view, nodes, quota, tokens);
    const std::int64_t greatest = *std::max_element(tokens.begin(), tokens.end());
    expect(conserved(layer, counts, quota), "a split keeps every token");
    expect(static_cast<double>(greatest) == std::ceil(bound), "the fullest rank is at the bound");
    const double again = balance::split_equally<Count>(view, tables.view, quota, tokens);
    expect(conserved(layer, counts, quota) && again == bound, "equal shares keep every token and have the same bound");
    expect(*std::max_element(tokens.begin(), tokens.end()) >= greatest, "equal shares are no better");
    for (std::int32_t rank = 0; rank < layer.ranks; ++rank) {
        const std::span<const Count> row{counts.data() + rank * layer.experts, static_cast<std::size_t>(layer.experts)};
        const std::span<std::int32_t> to{quota.data() + static_cast<std::size_t>(rank) * layer.slot_P.size(), layer.slot_P.size()};
        expect(balance::split_local_tokens<Count>(row, tables.view, rank, nodes, to), "counts are good");
    }
    expect(conserved(layer, counts, quota), "local splits keep every token");
}

void splits_of_random_layers_keep_tokens_and_meet_their_bound() {
    std::mt19937 draw(1);
    for (int turn = 0; turn < 300; ++turn) {
        const auto ranks = static_cast<std::int32_t>(1 + draw() % 9);
        const auto experts = static_cast<std::int32_t>(1 + draw() % 30);
        const auto held = static_cast<std::int32_t>((experts + ranks - 1) / ranks + static_cast<std::int32_t>(draw() % 4));
        const Layer layer(ranks, held, experts, draw);
        const std::int32_t nodes = ranks % 3 == 0 ? 3 : ranks % 2 == 0 ? 2 : 1;
        const unsigned most = turn % 10 == 0 ? 1 : turn % 2 == 0 ? 40 : 1'000'000;
        split<std::int64_t>(layer, nodes, most, draw);
        split<std::int32_t>(layer, nodes, most, draw);
    }
}

void bad_counts_are_told() {
    std::mt19937 draw(2);
    const Layer layer(2, 3, 4, draw);
    const Tables tables(layer);
    std::vector<std::int32_t> quota(12);
    std::vector<std::int64_t> tokens(2);
    for (const std::int64_t bad : {std::int64_t{-1}, std::int64_t{1} << 31, std::numeric_limits<std::int64_t>::min()}) {
        std::vector<std::int64_t> counts(8);
        counts[5] = bad;
        const balance::CountsView<std::int64_t> view{counts.data(), 2, 4};
        expect(balance::split_tokens(view, tables.view, 1, quota, tokens) == balance::kBadCounts, "a bad count");
        expect(balance::split_equally(view, tables.view, quota, tokens) == balance::kBadCounts, "a bad count");
        const std::span<const std::int64_t> row{counts.data() + 4, 4};
        expect(!balance::split_local_tokens(row, tables.view, 1, 1, std::span(quota).first(6)), "a bad count");
    }
}

// Whether a table has every expert, and none twice in so many ranks.
bool legal(const std::vector<std::int32_t>& slot_P, std::int32_t experts, std::size_t unit_slots) {
    std::set<std::int32_t> held;
    std::set<std::pair<std::size_t, std::int32_t>> pairs;
    for (std::size_t p = 0; p < slot_P.size(); ++p) {
        if (slot_P[p] == -1) continue;
        held.insert(slot_P[p]);
        if (!pairs.emplace(p / unit_slots, slot_P[p]).second) return false;
    }
    return held.size() == static_cast<std::size_t>(experts);
}

void designs_are_legal_and_no_worse() {
    std::mt19937 draw(3);
    std::lognormal_distribution<double> loads(10, 1);
    int designed = 0;
    for (int turn = 0; turn < 60; ++turn) {
        const auto ranks = static_cast<std::int32_t>(1 + draw() % 12);
        const auto experts = static_cast<std::int32_t>(1 + draw() % 40);
        const auto held = (experts + ranks - 1) / ranks + static_cast<std::int32_t>(draw() % 3);
        const Layer layer(ranks, held, experts, draw);
        std::vector<double> window(static_cast<std::size_t>(2 * experts));
        for (double& load : window) load = turn % 20 == 0 ? 0.0 : loads(draw);
        std::vector<std::int64_t> cost;
        for (std::int32_t e = 0; e < experts; ++e) {
            for (std::int32_t c = 1; c <= ranks; ++c) cost.push_back(static_cast<std::int64_t>(window[static_cast<std::size_t>(e)]) / c);
        }
        const balance::Leaning leaning{0.3, turn % 2 == 0 ? 1000.0 * ranks : 0.0, 1 + turn % 20};
        const balance::Batches seen = balance::draw_batches(window, experts, ranks, leaning, 1);
        const balance::Batches others = balance::draw_batches(window, experts, ranks, leaning, 2);
        balance::DesignLimits limits;
        limits.ranks = limits.domain_ranks = ranks;
        limits.equal_split = 1.05;
        limits.steps = 500;
        if (turn % 3 == 0) {
            limits.previous_P = layer.slot_P;
            limits.moves = turn % 7;
        }
        std::vector<std::int32_t> slot_P = layer.slot_P;
        designed += balance::design_for_splitting(slot_P, {cost.data(), experts, ranks}, seen, others, limits) ? 1 : 0;
        expect(legal(slot_P, experts, static_cast<std::size_t>(held)), "a design is legal");
        expect(balance::mean_split_balance(slot_P, ranks, seen) <= balance::mean_split_balance(layer.slot_P, ranks, seen),
               "a design is no worse than its start");
    }
    expect(designed > 10, "some layers are designed anew");
}

}  // namespace

int main() {
    splits_of_random_layers_keep_tokens_and_meet_their_bound();
    bad_counts_are_told();
    designs_are_legal_and_no_worse();
    if (failures == 0) std::printf("all good\n");
    return failures == 0 ? 0 : 1;
}

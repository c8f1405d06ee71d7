#include "fourlane/token_split.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "levelling.hpp"

namespace fourlane::balance {
namespace {

constexpr int kSweeps = 4;
constexpr int kLocalSweeps = 12;  // every rank's shares must come near the least squares, whose sum is that of the sums

std::size_t at(std::int32_t index) { return static_cast<std::size_t>(index); }

// Sum the columns; false where a count is negative or above 32 bits.
template <typename Count>
bool sum_columns(CountsView<Count> counts, std::vector<std::int64_t>& total_E) {
    const std::size_t experts = at(counts.experts);
    std::int64_t* total = total_E.data();
    std::int64_t bits = 0;
    const Count* row = counts.data;
    for (std::int32_t g = 0; g < counts.ranks; ++g, row += experts) {
        for (std::size_t e = 0; e < experts; ++e) {
            bits |= row[e];
            total[e] += row[e];
        }
    }
    return (bits & ~std::int64_t{std::numeric_limits<std::int32_t>::max()}) == 0;
}

// Who sends to whom, once it is known what each replica takes: ranks keep their own first, then nodes theirs, and the
// rest goes in order of ranks and slots.
template <typename Count>
class Transport {
public:
    Transport(CountsView<Count> counts, const ReplicasView& replicas, const Levelling& levelling,
              std::span<std::int32_t> quota_GP)
        : counts_(counts),
          replicas_(replicas),
          replicated_(levelling.replicated()),
          wanted_(levelling.quota_R().begin(), levelling.quota_R().end()),
          quota_(quota_GP.data()),
          left_(at(counts.ranks) * replicated_.size()) {}

    void run(std::int32_t nodes) {
        fill_rows();
        within_ranks();
        if (nodes > 1) within_nodes(counts_.ranks / nodes);
        across();
    }

private:
    // Tokens of experts with one replica go there; of the others they are set aside in left_.
    void fill_rows() {
        const std::size_t experts = at(counts_.experts);
        const std::size_t slots = at(replicas_.slots);
        std::vector<std::int32_t> column(slots, counts_.experts);  // a slot's expert; for others the zero behind the row
        for (std::int32_t e = 0; e < counts_.experts; ++e) {
            const std::int32_t first = replicas_.start[at(e)];
            if (replicas_.start[at(e + 1)] - first == 1) column[at(replicas_.slot[at(first)])] = e;
        }
        std::vector<std::int32_t> row(experts + 1);
        const Count* from = counts_.data;
        std::int32_t* to = quota_;
        std::int32_t* left = left_.data();
        for (std::int32_t g = 0; g < counts_.ranks; ++g, from += experts, to += slots) {
            for (std::size_t e = 0; e < experts; ++e) row[e] = static_cast<std::int32_t>(from[e]);
            for (std::size_t p = 0; p < slots; ++p) to[p] = row[at(column[p])];
            for (const std::int32_t e : replicated_) *left++ = row[at(e)];
        }
    }

    void give(std::int32_t rank, std::size_t k, std::int32_t replica) {
        std::int32_t& left = left_[at(rank) * replicated_.size() + k];
        const auto amount = static_cast<std::int32_t>(std::min<std::int64_t>(left, wanted_[at(replica)]));
        left -= amount;
        wanted_[at(replica)] -= amount;
        quota_[at(rank) * at(replicas_.slots) + at(replicas_.slot[at(replica)])] += amount;
    }

    void within_ranks() {
        for (std::size_t k = 0; k < replicated_.size(); ++k) {
            const std::int32_t e = replicated_[k];
            for (std::int32_t i = replicas_.start[at(e)]; i < replicas_.start[at(e + 1)]; ++i) {
                give(replicas_.rank[at(i)], k, i);
            }
        }
    }

    void within_nodes(std::int32_t node_ranks) {
        for (std::size_t k = 0; k < replicated_.size(); ++k) {
            const std::int32_t e = replicated_[k];
            for (std::int32_t i = replicas_.start[at(e)]; i < replicas_.start[at(e + 1)]; ++i) {
                const std::int32_t first = replicas_.rank[at(i)] / node_ranks * node_ranks;
                for (std::int32_t g = first; g < first + node_ranks && wanted_[at(i)] > 0; ++g) give(g, k, i);
            }
        }
    }

    void across() {
        std::vector<std::int32_t> next(replicated_.size());
        for (std::size_t k = 0; k < next.size(); ++k) next[k] = replicas_.start[at(replicated_[k])];
        const std::int32_t* left = left_.data();
        for (std::int32_t g = 0; g < counts_.ranks; ++g) {
            for (std::size_t k = 0; k < next.size(); ++k, ++left) {
                while (*left > 0) {
                    give(g, k, next[k]);
                    if (*left > 0) ++next[k];
                }
            }
        }
    }

    CountsView<Count> counts_;
    const ReplicasView& replicas_;
    std::span<const std::int32_t> replicated_;
    std::vector<std::int64_t> wanted_;  // [held] what a replica can still take
    std::int32_t* quota_;
    std::vector<std::int32_t> left_;  // [ranks, replicated] tokens not yet given to a replica
};

// The shares of one rank, in units of which a token has 1 << shift: what Transport does, in expectation.
class LocalShares {
public:
    LocalShares(const ReplicasView& replicas, std::int32_t rank, std::int32_t nodes)
        : replicas_(replicas), rank_(rank), node_ranks_(replicas.ranks / nodes), nodes_(nodes) {}

    // Of `own` units an expert's replicas first, first + 1.. shall get `share_R` over all ranks alike; write this rank's.
    void work_out(std::int32_t first, std::int32_t last, std::int64_t own, std::span<const std::int64_t> share_R) {
        const std::size_t copies = at(last - first);
        demand_.resize(copies);
        mine_.assign(copies, 0);
        first_ = first;
        left_ = own;
        for (std::size_t j = 0; j < copies; ++j) {
            demand_[j] = share_R[at(first) + j] * replicas_.ranks;
            kept_ = std::min(own, demand_[j]);
            demand_[j] -= kept_;
            if (replica_rank(j) == rank_) {
                mine_[j] = kept_;
                left_ -= kept_;
            }
        }
        if (nodes_ > 1) {
            for (std::size_t j = 0, end = 0; j < copies; j = end) {
                while (end < copies && node_of(end) == node_of(j)) ++end;
                within_node(j, end, own, share_R);
            }
        }
        take(0, copies, left_);
    }

    std::span<const std::int64_t> mine() const { return mine_; }

private:
    std::int32_t replica_rank(std::size_t j) const { return replicas_.rank[at(first_) + j]; }
    std::int32_t node_of(std::size_t j) const { return replica_rank(j) / node_ranks_; }

    static std::int64_t part(std::int64_t whole, std::int64_t numerator, std::int64_t denominator) {
        __extension__ using Wide = __int128;
        return static_cast<std::int64_t>(static_cast<Wide>(whole) * numerator / denominator);
    }

    // Replicas begin..end are those of one node: its ranks' tokens go to them as far as they are wanted there.
    void within_node(std::size_t begin, std::size_t end, std::int64_t own, std::span<const std::int64_t> share_R) {
        std::int64_t supply = own * node_ranks_;
        std::int64_t wanted = 0;
        for (std::size_t j = begin; j < end; ++j) {
            supply -= std::min(own, share_R[at(first_) + j] * replicas_.ranks);
            wanted += demand_[j];
        }
        const std::int64_t flow = std::min(supply, wanted);
        if (flow <= 0) return;
        if (node_of(begin) == rank_ / node_ranks_) {
            const std::int64_t offered = part(left_, flow, supply);
            take(begin, end, offered);
            left_ -= offered;
        }
        for (std::size_t j = begin; j < end; ++j) demand_[j] -= part(demand_[j], flow, wanted);
    }

    // Share an amount over replicas in proportion to what they still want.
    void take(std::size_t begin, std::size_t end, std::int64_t amount) {
        const std::int64_t wanted = std::accumulate(demand_.begin() + static_cast<std::ptrdiff_t>(begin),
                                                    demand_.begin() + static_cast<std::ptrdiff_t>(end), std::int64_t{0});
        if (wanted <= 0) return;
        for (std::size_t j = begin; j < end; ++j) mine_[j] += part(amount, demand_[j], wanted);
    }

    const ReplicasView& replicas_;
    std::int32_t rank_, node_ranks_, nodes_;
    std::int32_t first_ = 0;
    std::int64_t left_ = 0, kept_ = 0;
    std::vector<std::int64_t> demand_, mine_;
};

// Where between two integers a rank rounds up: spread evenly over any run of ranks (golden ratio).
std::int64_t rounding(std::int32_t rank, std::int32_t expert, int shift) {
    const std::uint32_t point = static_cast<std::uint32_t>(rank) * 0x9e3779b9U + static_cast<std::uint32_t>(expert) * 0x85ebca6bU;
    return shift == 0 ? 0 : static_cast<std::int64_t>(point >> (32 - shift));
}

void add_up(std::span<const std::int32_t> quota_GP, const ReplicasView& replicas, std::span<std::int64_t> tokens_G) {
    const std::size_t slots = at(replicas.slots);
    std::vector<std::int64_t> total_P(slots);
    for (std::size_t i = 0; i < quota_GP.size(); i += slots) {
        for (std::size_t p = 0; p < slots; ++p) total_P[p] += quota_GP[i + p];
    }
    const std::size_t held = slots / at(replicas.ranks);
    for (std::size_t g = 0; g < tokens_G.size(); ++g) {
        const auto first = total_P.begin() + static_cast<std::ptrdiff_t>(g * held);
        tokens_G[g] = std::accumulate(first, first + static_cast<std::ptrdiff_t>(held), std::int64_t{0});
    }
}

}  // namespace

template <typename Count>
double split_tokens(CountsView<Count> counts, const ReplicasView& replicas, std::int32_t nodes,
                    std::span<std::int32_t> quota_GP, std::span<std::int64_t> tokens_G) {
    std::vector<std::int64_t> total_E(at(counts.experts));
    if (!sum_columns(counts, total_E)) return kBadCounts;
    Levelling levelling(replicas);
    levelling.sweep(total_E, kSweeps);
    const double bound = levelling.settle();
    Transport<Count>(counts, replicas, levelling, quota_GP).run(nodes);
    std::copy(levelling.load_G().begin(), levelling.load_G().end(), tokens_G.begin());
    return bound;
}

template <typename Count>
double split_equally(CountsView<Count> counts, const ReplicasView& replicas, std::span<std::int32_t> quota_GP,
                     std::span<std::int64_t> tokens_G) {
    std::vector<std::int64_t> total_E(at(counts.experts));
    if (!sum_columns(counts, total_E)) return kBadCounts;
    std::fill(quota_GP.begin(), quota_GP.end(), 0);
    const Count* count = counts.data;
    std::int32_t* quota = quota_GP.data();
    for (std::int32_t g = 0; g < counts.ranks; ++g, count += counts.experts, quota += replicas.slots) {
        for (std::int32_t e = 0; e < counts.experts; ++e) {
            const std::int32_t first = replicas.start[at(e)];
            const std::int32_t copies = replicas.start[at(e + 1)] - first;
            const auto tokens = static_cast<std::int32_t>(count[e]);
            if (copies == 1) {
                quota[replicas.slot[at(first)]] = tokens;
                continue;
            }
            std::int32_t at_replica = (g + e) % copies;
            for (std::int32_t j = 0; j < copies; ++j) {
                quota[replicas.slot[at(first + at_replica)]] = tokens / copies + (j < tokens % copies ? 1 : 0);
                at_replica = at_replica + 1 == copies ? 0 : at_replica + 1;
            }
        }
    }
    add_up(quota_GP, replicas, tokens_G);
    Levelling levelling(replicas);
    levelling.sweep(total_E, kSweeps);
    return levelling.settle();
}

template <typename Count>
bool equal_tokens(CountsView<Count> counts, const ReplicasView& replicas, std::span<std::int64_t> tokens_G) {
    std::vector<std::int64_t> total_E(at(counts.experts));
    if (!sum_columns(counts, total_E)) return false;
    std::fill(tokens_G.begin(), tokens_G.end(), 0);
    for (std::int32_t e = 0; e < counts.experts; ++e) {
        const std::int32_t first = replicas.start[at(e)];
        const std::int32_t copies = replicas.start[at(e + 1)] - first;
        if (copies == 1) {
            tokens_G[at(replicas.rank[at(first)])] += total_E[at(e)];
            continue;
        }
        const Count* count = counts.data + e;
        for (std::int32_t g = 0; g < counts.ranks; ++g, count += counts.experts) {
            const auto tokens = static_cast<std::int32_t>(*count);
            std::int32_t at_replica = (g + e) % copies;
            for (std::int32_t j = 0; j < copies; ++j) {
                tokens_G[at(replicas.rank[at(first + at_replica)])] += tokens / copies + (j < tokens % copies ? 1 : 0);
                at_replica = at_replica + 1 == copies ? 0 : at_replica + 1;
            }
        }
    }
    return true;
}

template <typename Count>
bool split_local_tokens(std::span<const Count> count_E, const ReplicasView& replicas, std::int32_t rank,
                        std::int32_t nodes, std::span<std::int32_t> quota_P) {
    const std::int32_t experts = replicas.experts();
    std::vector<std::int64_t> units_E(at(experts));
    if (!sum_columns(CountsView<Count>{count_E.data(), 1, experts}, units_E)) return false;
    const std::int64_t all = std::accumulate(units_E.begin(), units_E.end(), std::int64_t{0});
    int shift = 16;
    while (shift > 0 && all >> (40 - shift) != 0) --shift;
    for (std::int64_t& units : units_E) units <<= shift;
    Levelling levelling(replicas);
    levelling.sweep(units_E, kLocalSweeps);
    LocalShares shares(replicas, rank, nodes);
    std::fill(quota_P.begin(), quota_P.end(), 0);
    for (std::int32_t e = 0; e < experts; ++e) {
        const std::int32_t first = replicas.start[at(e)];
        const std::int32_t last = replicas.start[at(e + 1)];
        const auto tokens = static_cast<std::int32_t>(count_E[at(e)]);
        std::int32_t given = 0;
        if (tokens > 0 && last - first > 1) {
            shares.work_out(first, last, units_E[at(e)], levelling.quota_R());
            std::int64_t sum = rounding(rank, e, shift);
            for (std::int32_t i = first; i + 1 < last; ++i) {
                sum += shares.mine()[at(i - first)];
                const auto upto = static_cast<std::int32_t>(sum >> shift);
                quota_P[at(replicas.slot[at(i)])] = upto - given;
                given = upto;
            }
        }
        quota_P[at(replicas.slot[at(last - 1)])] = tokens - given;
    }
    return true;
}

#define FOURLANE_SPLITS_OF(Count)                                                                                   \
    template double split_tokens(CountsView<Count>, const ReplicasView&, std::int32_t, std::span<std::int32_t>,     \
                                 std::span<std::int64_t>);                                                          \
    template double split_equally(CountsView<Count>, const ReplicasView&, std::span<std::int32_t>,                  \
                                  std::span<std::int64_t>);                                                         \
    template bool equal_tokens(CountsView<Count>, const ReplicasView&, std::span<std::int64_t>);                    \
    template bool split_local_tokens(std::span<const Count>, const ReplicasView&, std::int32_t, std::int32_t,       \
                                     std::span<std::int32_t>);
FOURLANE_SPLITS_OF(std::int32_t)
FOURLANE_SPLITS_OF(std::int64_t)
#undef FOURLANE_SPLITS_OF

}  // namespace fourlane::balance

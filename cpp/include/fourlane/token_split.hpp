// Split the tokens of one batch over the replicas of their experts, so that the fullest rank gets as few as possible.
//
// All in integers and ordered by index: every rank that is given the same counts finds the same split.
#pragma once

#include <cstdint>
#include <span>

namespace fourlane::balance {

// One layer's replicas, expert by expert: those of expert e are start[e] up to start[e + 1], in slot order.
struct ReplicasView {
    std::span<const std::int32_t> start;  // [E + 1]
    std::span<const std::int32_t> slot;   // [held slots]
    std::span<const std::int32_t> rank;   // [held slots]
    std::int32_t ranks = 1;
    std::int32_t slots = 1;  // held or empty

    std::int32_t experts() const { return static_cast<std::int32_t>(start.size()) - 1; }
};

// Tokens that ranks (rows) have for experts (columns), 32 or 64 bits wide.
template <typename Count>
struct CountsView {
    const Count* data;
    std::int32_t ranks;
    std::int32_t experts;
};

// What `split_tokens` returns for counts that are negative or do not fit 32 bits; nothing else is written then.
inline constexpr double kBadCounts = -1.0;

// Write how many tokens of each rank go to each slot, quota_GP, and how many each rank computes, tokens_G. Returns a
// proven lower bound: no split of these counts has a smaller maximum, not even one in fractions of tokens; this one's
// maximum is the bound rounded up. Of the splits with the same totals this one crosses the fewest ranks, and of those
// the fewest of the `nodes` of equally many ranks.
template <typename Count>
double split_tokens(CountsView<Count> counts, const ReplicasView& replicas, std::int32_t nodes,
                    std::span<std::int32_t> quota_GP, std::span<std::int64_t> tokens_G);

// The same where each rank spreads its tokens evenly over an expert's replicas, whatever the others do. Tokens left
// over begin at another replica on each rank.
template <typename Count>
double split_equally(CountsView<Count> counts, const ReplicasView& replicas, std::span<std::int32_t> quota_GP,
                     std::span<std::int64_t> tokens_G);

// Write tokens_G as `split_equally` would, and nothing else; false for counts it would not take.
template <typename Count>
bool equal_tokens(CountsView<Count> counts, const ReplicasView& replicas, std::span<std::int64_t> tokens_G);

// Write how many of one rank's own tokens go to each slot, quota_P, as if every other rank had tokens like its own.
// Shares that are no integers are rounded up on some ranks and down on others, so that together they come true.
// False for counts that are negative or do not fit 32 bits; nothing is written then.
template <typename Count>
bool split_local_tokens(std::span<const Count> count_E, const ReplicasView& replicas, std::int32_t rank,
                        std::int32_t nodes, std::span<std::int32_t> quota_P);

}  // namespace fourlane::balance

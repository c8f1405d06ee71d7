// Level the ranks of one layer: how much of each expert's load each of its replicas takes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fourlane/token_split.hpp"

namespace fourlane::balance {

// The replica graph of one layer, and room to work in. Ranks are its nodes; an expert with several replicas joins
// their ranks, and load can flow between them.
class Levelling {
public:
    explicit Levelling(const ReplicasView& replicas);

    // Share out total_E: quota_R to each replica, which makes load_G. Hottest expert first, each levels its ranks;
    // every sweep over them is closer to the least squares, which have the least maximum too.
    void sweep(std::span<const std::int64_t> total_E, int sweeps);

    // Move load along the graph until the maximum is the least there is. Returns its bound, which may be a fraction.
    double settle();

    std::span<const std::int64_t> quota_R() const { return quota_; }
    std::span<const std::int64_t> load_G() const { return load_; }
    std::span<const std::int32_t> replicated() const { return replicated_; }

private:
    void begin(std::span<const std::int64_t> total_E);
    bool level(std::int32_t expert, std::int64_t total);
    bool level_pair(std::int32_t first, std::int64_t total);
    bool move_excess(std::int64_t target);
    void search(std::int64_t target);
    bool move_to(std::int32_t sink, std::int64_t target);

    ReplicasView replicas_;
    std::vector<std::int32_t> replicated_;           // experts with several replicas
    std::vector<std::int32_t> expert_of_;            // [held] the expert of a replica
    std::vector<std::int32_t> held_start_, held_;    // CSR: each rank's replicas of replicated experts
    std::vector<std::int64_t> quota_, load_, base_;  // [held], [ranks], [ranks] load that cannot move
    std::vector<std::int32_t> order_;                // replicated experts, hottest first
    std::vector<std::int32_t> by_load_;              // room for one expert's replicas
    // The forest of the last search: where each rank was reached from, ranks in the order they were reached.
    std::vector<std::int32_t> from_replica_, to_replica_, reached_;
    std::vector<char> seen_rank_, seen_expert_;
};

}  // namespace fourlane::balance

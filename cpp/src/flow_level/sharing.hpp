// Max-min fair rates by filling links up, the tightest first.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "network.hpp"

namespace fourlane::flow_level {

// A place is a queue of a link. Its flows that are not held down elsewhere share it in proportion to what would arrive
// of them, their weights: they get its level times that. While other places are settled a level only rises, so that the
// lowest is final.
class Sharing {
public:
    explicit Sharing(const Network& network);

    // Work out the rates of flows that are under way; those of all others are 0. Acknowledgements take from links what
    // they need at the rates found before; where flows are new, those are found first.
    void settle(std::span<const std::uint32_t> under_way);

    const std::vector<double>& rate() const { return rate_; }
    const std::vector<std::uint32_t>& bottleneck() const { return bottleneck_; }  // [F], link

    // Return what flows of these amounts put on each place, [links, Q], with or without their acknowledgements.
    std::vector<double> load(std::span<const double> amount, bool with_acks) const;

private:
    struct Candidate {
        double level;
        std::uint32_t place;
        bool operator>(const Candidate& other) const {
            return level != other.level ? level > other.level : place > other.place;
        }
    };

    void index();
    void start(std::span<const std::uint32_t> under_way);
    void go_round(std::span<const std::uint32_t> under_way);
    void bound();
    bool several_weighted() const;
    void weigh(std::span<const std::uint32_t> under_way);
    void acknowledge();
    void settle_once(std::span<const std::uint32_t> under_way);
    void fill(std::uint32_t queues);
    void freeze(std::uint32_t place, double level);
    void freeze_flow(std::uint32_t flow, std::uint32_t link, double level);
    void flush();
    double level(std::uint32_t place) const;
    bool wanting(std::uint32_t place) const;
    double granted(std::uint32_t link, std::uint32_t queue) const;
    double weighted(std::uint32_t link, std::uint32_t queue, double left) const;
    double weight_of(std::uint32_t queue) const;
    double limit(std::uint32_t link, std::uint32_t queue) const;
    std::uint32_t place_of(std::uint32_t link, std::uint32_t queue) const { return link * queues_ + queue; }

    const Network& net_;
    std::uint32_t queues_;
    std::uint32_t strict_ = 0;             // bit by queue
    bool alone_ = false;                   // weighted queues take no notice of each other
    bool mixed_ = false;                   // some flows go round others
    Rows<Part> spreads_;                   // the network's, with shares of the present
    std::vector<double> most_;             // of a link, by queue
    Rows<std::uint32_t> flows_of_place_;   // by their own links
    Rows<std::uint32_t> bundles_of_place_;
    Rows<std::uint32_t> flows_of_bundle_;  // a bundle: the flows of one spread in one queue
    std::vector<std::uint32_t> bundle_;    // of each flow, or kNone
    std::vector<std::uint32_t> bundle_spread_, bundle_queue_;

    std::vector<double> most_rate_;        // [F], the rate of a flow if there were no other weighted queue
    std::vector<double> bound_;            // [places], what its flows can use at the most; empty: as much as there is
    std::vector<double> left_;             // [links], bytes a second beside acknowledgements
    std::vector<double> rate_;
    std::vector<std::uint32_t> bottleneck_;
    std::vector<std::uint8_t> open_;       // [F], under way and not yet held down
    std::vector<double> weight_;           // [F], bytes a second that would arrive; 0: not under way
    std::vector<double> demand_;           // [places], what open flows take at level 1
    std::vector<double> wanted_;           // [places], `demand_` at first
    std::vector<double> used_;             // [places], by flows held down
    std::vector<double> frozen_weight_, frozen_rate_, frozen_bound_;  // [bundles], not yet told to their links
    std::vector<std::uint32_t> touched_;
};

}  // namespace fourlane::flow_level

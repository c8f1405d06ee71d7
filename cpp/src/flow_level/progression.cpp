#include "progression.hpp"

#include <algorithm>
#include <limits>

namespace fourlane::flow_level {

namespace {

constexpr double kPs = 1e-12;
constexpr double kNever = std::numeric_limits<double>::infinity();

}  // namespace

Progression::Progression(const Network& network, double tolerance)
    : net_(network), sharing_(network), tolerance_(tolerance), left_(network.wire), not_before_(network.flows(), 0.0),
      started_(network.flows(), -1.0), delivered_(network.flows(), -1.0), finished_(network.flows(), -1.0) {
    set_up_starts();
}

void Progression::set_up_starts() {
    const FabricScenario& in = net_.scenario();
    waits_for_.assign(net_.flows(), 0);
    for (const std::int32_t later : in.flow_after) ++waits_for_[static_cast<std::size_t>(later)];
    const fabric::Column<std::int64_t> start(in.flow_start), delay(in.flow_delay);
    for (std::uint32_t f = 0; f < net_.flows(); ++f) {
        not_before_[f] = static_cast<double>(start[f]) * kPs;
        if (waits_for_[f] == 0) starts_.emplace(not_before_[f] + static_cast<double>(delay[f]) * kPs, f);
    }
}

bool Progression::advance() {
    begin_due();
    while (under_way_.empty() && !starts_.empty()) {
        now_ = std::max(now_, starts_.top().first);
        begin_due();
    }
    if (under_way_.empty()) return true;
    ++rounds_;
    sharing_.settle(under_way_);
    const double until = horizon();
    if (until == kNever) return true;
    run_until(until);
    return under_way_.empty() && starts_.empty();
}

void Progression::begin_due() {
    while (!starts_.empty() && starts_.top().first <= now_) {
        const auto [when, flow] = starts_.top();
        starts_.pop();
        begin(flow, when);
    }
}

void Progression::begin(std::uint32_t flow, double when) {
    started_[flow] = when;
    if (net_.is_gate(flow)) {
        deliver(flow, when);
        finished_[flow] = when;
        return;
    }
    under_way_.push_back(flow);
}

// Let those start that waited for a flow.
void Progression::deliver(std::uint32_t flow, double when) {
    const FabricScenario& in = net_.scenario();
    delivered_[flow] = when;
    ++done_;
    if (in.flow_after_first.size() < 2) return;
    const fabric::Column<std::int64_t> delay(in.flow_delay);
    const auto first = static_cast<std::size_t>(in.flow_after_first[flow]);
    const auto end = static_cast<std::size_t>(in.flow_after_first[flow + 1]);
    for (std::size_t i = first; i < end; ++i) {
        const auto later = static_cast<std::uint32_t>(in.flow_after[i]);
        not_before_[later] = std::max(not_before_[later], when);
        if (--waits_for_[later] > 0) continue;
        starts_.emplace(not_before_[later] + static_cast<double>(delay[later]) * kPs, later);
    }
}

// Until when rates hold: to the next end or beginning of a flow, or as long as the tolerance allows.
double Progression::horizon() const {
    double first = starts_.empty() ? kNever : starts_.top().first;
    double shortest = kNever;
    for (const std::uint32_t f : under_way_) {
        if (sharing_.rate()[f] <= 0) continue;
        const double end = now_ + left_[f] / sharing_.rate()[f];
        first = std::min(first, end);
        shortest = std::min(shortest, end - started_[f]);
    }
    return shortest == kNever ? first : std::max(first, now_ + tolerance_ * shortest);
}

void Progression::run_until(double until) {
    const double began = now_;
    now_ = until;
    std::size_t kept = 0;
    for (const std::uint32_t f : under_way_) {
        const double rate = sharing_.rate()[f];
        const double end = rate > 0 ? began + left_[f] / rate : kNever;
        if (end > until) {
            left_[f] -= rate * (until - began);
            under_way_[kept++] = f;
            continue;
        }
        left_[f] = 0;
        const auto source = static_cast<std::size_t>(net_.scenario().flow_src_port[f]);
        const double sent_after = static_cast<double>(net_.scenario().port_tx_latency[source]) * kPs;
        const double delivered = end + sent_after + net_.there[f];
        finished_[f] = delivered + net_.back[f];
        deliver(f, delivered);
    }
    under_way_.resize(kept);
}

FlowTimes Progression::times() const {
    std::vector<double> sent(net_.wire);
    for (std::size_t f = 0; f < sent.size(); ++f) sent[f] -= left_[f];
    return {started_, delivered_, finished_, net_.on_ports(sharing_.load(sent, true), std::max(now_, kPs)), rounds_, now_};
}

}  // namespace fourlane::flow_level

// Congestion control: DCQCN's rates, and hosts that clear their senders one after the other.
//
// The order of operations on doubles is that of the reference, and fused multiply-add is off: same bits everywhere.
#include <algorithm>

#include "core.hpp"
#include "receiving.hpp"
#include "sending.hpp"

namespace fourlane::fabric {

namespace {

constexpr double kAlphaGone = 1e-9;

}  // namespace

// A flow's limiter, from when it is first cut.
RateLimiter& Core::limiter(std::uint32_t number, const Flow& flow) {
    auto& own = detail(number).limiter;
    if (own == nullptr) {
        own = std::make_unique<RateLimiter>();
        own->line = 8e12 * 65536.0 / static_cast<double>(ports_[flow.source].pace_q16);
        own->rate = own->target = own->line;
        own->alpha = in_.dcqcn.alpha0;
    }
    return *own;
}

// Set when the next packet may go, and count this one.
void Core::pace(Detail& own, Bytes wire, Time now) {
    own.pace_next = now;
    if (own.limiter == nullptr || !own.limiter->limited()) return;
    RateLimiter& limits = *own.limiter;
    own.pace_next = now + Time{static_cast<std::int64_t>(static_cast<double>(wire.count) * 8e12 / limits.rate)};
    limits.bytes += wire.count;
    while (limits.limited() && limits.bytes >= in_.dcqcn.byte_counter) {
        limits.bytes -= in_.dcqcn.byte_counter;
        ++limits.byte_count;
        increase(limits);
    }
}

// Let alpha fall once for every whole period since it last changed.
void Core::fade(RateLimiter& limits, Time now) const {
    if (limits.alpha_time < Time{}) return;
    std::int64_t periods = (now - limits.alpha_time).ps / in_.dcqcn.alpha_period;
    limits.alpha_time += {periods * in_.dcqcn.alpha_period};
    if (in_.dcqcn.g == 0) return;
    for (; periods > 0 && limits.alpha >= kAlphaGone; --periods) limits.alpha *= 1.0 - in_.dcqcn.g;
}

// React to a CNP; false where the gate still holds.
bool Core::cut(RateLimiter& limits, Time now) const {
    const FabricDcqcn& p = in_.dcqcn;
    if (limits.last_decrease >= Time{} && (now - limits.last_decrease).ps < p.decrease_gate) return false;
    fade(limits, now);
    if (p.clamp != 0 || limits.timer_count > 0) limits.target = limits.rate;
    double factor = 1.0 - limits.alpha / 2.0;
    const double least = 1.0 - p.max_decrease;
    factor = std::max(factor, least);
    limits.rate = limits.rate * factor;
    limits.rate = std::min(std::max(limits.rate, p.min_rate), limits.line);
    limits.alpha = (1.0 - p.g) * limits.alpha + p.g;
    limits.alpha_time = limits.last_decrease = now;
    limits.timer_count = limits.byte_count = limits.bytes = 0;
    return true;
}

// Raise the rate half way to the target, and the target by the stage that the counters have reached.
void Core::increase(RateLimiter& limits) const {
    const FabricDcqcn& p = in_.dcqcn;
    const std::int64_t behind = std::min(limits.timer_count, limits.byte_count);
    if (behind > p.fast_rounds) {
        limits.target = limits.target + static_cast<double>(behind - p.fast_rounds) * p.rate_hai;
    } else if (std::max(limits.timer_count, limits.byte_count) > p.fast_rounds) {
        limits.target = limits.target + p.rate_ai;
    }
    limits.target = std::min(limits.target, limits.line);
    limits.rate = (limits.target + limits.rate) / 2.0;
}

void Core::notified(std::uint32_t number, const Flow& flow, Time now) {
    if (classes_[flow.traffic_class].congestion != Congestion::dcqcn) return;
    if (cut(limiter(number, flow), now)) arm_timer(number, detail(number), now);
}

void Core::rate_timer(std::uint32_t number, Time now) {
    Detail& own = detail(number);
    ++own.limiter->timer_count;
    increase(*own.limiter);
    arm_timer(number, own, now);
}

// Let the timer run again, as long as there is a rate to raise.
void Core::arm_timer(std::uint32_t number, Detail& own, Time now) {
    own.timer_at = {-1};
    if (!own.limiter->limited()) return;
    own.timer_at = now + Time{in_.dcqcn.timer};
    events_.push(own.timer_at, EventKind::cc_timer, number);
}

void Core::pace_over(std::uint32_t number, Time now) {
    detail(number).pace_at = {-1};
    refresh_and_kick(number, flows_[number], now);
}

// Clear a sender if its receiver has a slot of the class free; else let it wait in line.
void Core::request(std::uint32_t number, const Flow& flow, Time now) {
    Clearance& line = clearance(flow);
    if (line.granted < classes_[flow.traffic_class].slots) {
        ++line.granted;
        send_control(flow, number, PacketKind::cts, 0, now);
    } else {
        line.requests.push_back(number);
    }
}

// Pass a delivered flow's slot on to the first in line.
void Core::clear_next(const Flow& flow, Time now) {
    Clearance& line = clearance(flow);
    --line.granted;
    if (line.first_request == line.requests.size()) return;
    const std::uint32_t next = line.requests[line.first_request++];
    request(next, flows_[next], now);
}

}  // namespace fourlane::fabric

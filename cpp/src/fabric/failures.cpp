// Links that fail, pauses, the watchdog that ends pauses which never end, and samples.
#include "core.hpp"
#include "receiving.hpp"
#include "sending.hpp"
#include "switching.hpp"

namespace fourlane::fabric {

void Core::enter_epoch(std::uint32_t epoch, Time now) {
    routes_.enter(epoch);
    const auto up = in_.epoch_port_up.subspan(epoch * ports_.size(), ports_.size());
    std::vector<std::uint32_t> failed, repaired;
    for (std::uint32_t p = 0; p < ports_.size(); ++p) {
        if (ports_[p].up && up[p] == 0) failed.push_back(p);
        if (!ports_[p].up && up[p] != 0) repaired.push_back(p);
        ports_[p].up = up[p] != 0;
    }
    for (const std::uint32_t port : failed) lose(port, now);
    for (const std::uint32_t port : repaired) kick(port, now);
}

// Lose what is on a failed port's cable and, at a switch, in its queues.
void Core::lose(std::uint32_t number, Time now) {
    Port& port = ports_[number];
    while (port.flight_head != kNone) {
        const std::uint32_t id = port.flight_head;
        port.flight_head = packets_[id].next;
        drop(id, number);
    }
    if (port.at_host) return;
    for (unsigned q = 0; q < queue_count_; ++q) drop_queued(number, q, now);
}

void Core::drop_queued(std::uint32_t number, unsigned queue, Time now) {
    while (queue_at(number, queue).head != kNone) {
        const std::uint32_t id = take(number, ports_[number], queue);
        release(packets_[id], number, now);
        drop(id, number);
    }
}

// Let a PFC frame take effect.
void Core::pause(std::uint32_t event, Time now) {
    const std::uint32_t number = event >> 4;
    const unsigned q = event >> 1 & 7;
    Port& port = ports_[number];
    QueueCounters& counters = counters_at(number, q);
    const auto bit = static_cast<std::uint8_t>(1U << q);
    const bool paused = (port.paused & bit) != 0;
    const bool storm = (port.storm & bit) != 0;
    if ((event & 1) != 0 && !paused) {
        port.paused |= bit;
        counters.paused_since = now;
        if (!look_at_.empty() && !port.at_host && !storm) watch(number, q, now + Time{in_.watchdog_detection});
    } else if ((event & 1) == 0 && paused) {
        port.paused &= static_cast<std::uint8_t>(~bit);
        counters.paused += now - counters.paused_since;
        if (!look_at_.empty() && !storm) look_at_[number * queue_count_ + q] = {-1};
        kick(number, now);
    }
}

// Look at a queue again at a time.
void Core::watch(std::uint32_t port, unsigned queue, Time when) {
    look_at_[port * queue_count_ + queue] = when;
    events_.push(when, EventKind::watchdog, port * 8 + queue);
}

// Begin a storm, let it go on while the queue is paused, or end it.
void Core::look(std::uint32_t event, Time now) {
    const std::uint32_t number = event >> 3;
    const unsigned q = event & 7;
    Port& port = ports_[number];
    const auto bit = static_cast<std::uint8_t>(1U << q);
    const bool begins = (port.storm & bit) == 0;
    look_at_[number * queue_count_ + q] = {-1};
    if (!begins && (port.paused & bit) == 0) {
        port.storm &= static_cast<std::uint8_t>(~bit);
        return;
    }
    port.storm |= bit;
    watch(number, q, now + Time{in_.watchdog_restoration != 0 ? in_.watchdog_restoration : in_.watchdog_detection});
    if (!begins) return;
    in_.watchdog_drop != 0 ? drop_queued(number, q, now) : kick(number, now);
}

void Core::sample(Time now) {
    sample_time_.push_back(now.ps);
    for (const std::int32_t one : in_.sample_ports) {
        const auto port = static_cast<std::uint32_t>(one);
        std::int64_t sent = 0;
        for (unsigned q = 0; q < queue_count_; ++q) sent += queue_at(port, q).sent_bytes;
        sample_tx_.push_back(sent);
        sample_depth_.push_back(depth_[port].now);
    }
    if (!events_.empty()) events_.push(now + Time{in_.sample_interval}, EventKind::sample, 0);
}

}  // namespace fourlane::fabric

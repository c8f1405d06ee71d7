// A packet-level simulator of a lossless network: hosts, switches, queues, buffers, pauses, routing, transports.
//
// The rules are those of src/fourlane/twin/fabric/reference.py, event for event; what the arrays mean is said in
// compiled.py. A simulation reads the caller's arrays where they lie and changes none. It has no globals: any number
// of simulations may run at once, each in one thread at a time. Nothing here depends on the machine, except that
// memory may run out.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace fourlane {

// The parameters of DCQCN; times in ps, rates in bit/s.
struct FabricDcqcn {
    double g = 0;
    double alpha0 = 1;
    std::int64_t alpha_period = 1;
    std::int64_t cnp_interval = 0;
    std::int64_t decrease_gate = 0;
    double max_decrease = 1;
    std::int64_t timer = 1;
    std::int64_t byte_counter = 1;
    std::int64_t fast_rounds = 0;
    double rate_ai = 0;
    double rate_hai = 0;
    double min_rate = 1;
    std::int64_t clamp = 0;
};

// A scenario, in views of arrays that must outlive the simulation. Names and dimensions are those of compiled.py; the
// arrays of F flows marked * there may have one element.
struct FabricScenario {
    template <typename T>
    using View = std::span<const T>;

    View<std::uint8_t> node_kind, node_tier, node_cut_through;
    View<std::int64_t> node_latency, node_shared;
    View<std::int32_t> node_first_port, leaf_index, switch_index;
    View<std::int32_t> port_node, port_peer;
    View<std::int64_t> port_ps_q16, port_prop, port_headroom, port_tx_latency, port_rx_latency, port_message_gap;
    View<std::int64_t> epoch_time;
    View<std::uint8_t> epoch_port_up;  // [X, P]
    View<std::int32_t> route_table;
    View<std::int64_t> route_first;  // [T, S * Lf + 1]
    View<std::int32_t> route_ports;
    View<std::int64_t> queue_weight, queue_cap_q16, queue_alpha_q16, queue_reserved, queue_kmin, queue_kmax;
    View<std::int64_t> queue_pmax_q32;
    View<std::uint8_t> queue_lossless, queue_service;
    View<std::uint8_t> class_queue, class_ack_queue, class_cnp_queue, class_routing, class_transport, class_cc;
    View<std::uint8_t> class_trim, class_ecn;
    View<std::int64_t> class_window, class_rto;
    View<std::int32_t> class_ack_every, class_cts_slots;
    View<std::int32_t> flow_src_port, flow_dst_port;
    View<std::int64_t> flow_size, flow_message, flow_start, flow_delay, flow_after_first;
    View<std::uint8_t> flow_class;
    View<std::uint32_t> flow_hash, flow_back_hash, flow_pin;
    View<std::int32_t> flow_after;
    View<std::uint32_t> tier_seed;
    View<std::int32_t> sample_ports;

    std::int64_t mtu = 0, header = 0, ack_wire = 0, trim_wire = 0, trim_queue = 0;
    std::uint64_t seed = 0;
    std::int64_t flowlet_gap = 0, flowlet_entries = 1;
    std::int64_t ar_quantum = 1, ar_levels = 1, ar_staleness = 0;
    std::int64_t pfc_response = 0, xon_offset = 0;
    std::int64_t watchdog_detection = 0, watchdog_restoration = 0, watchdog_drop = 0;
    std::int64_t sample_interval = 0, max_events = 0, max_time = 0;
    FabricDcqcn dcqcn;
};

// What a simulation has found so far. Arrays are [F], [C, kFabricBuckets], [P, Q], [P], [K] and [K, sample ports].
struct FabricResult {
    std::string status;  // "running", "done", "stuck", "time" or "budget"
    std::int64_t time = 0, events = 0, flows_done = 0;
    std::int64_t data_hops = 0, data_packets_sent = 0, data_packets_delivered = 0, data_packets_dropped = 0;
    std::int64_t delivered_payload = 0;
    std::int64_t wire_bytes_sent = 0, wire_bytes_delivered = 0, wire_bytes_dropped = 0, wire_bytes_queued = 0;
    std::vector<std::int64_t> flow_started, flow_delivered, flow_finish;
    std::vector<std::uint32_t> flow_retransmitted, flow_reorder;
    std::vector<std::int64_t> latency_counts;
    std::vector<std::int64_t> port_tx_bytes, port_tx_packets, port_drops, port_marks, port_trims, port_pauses;
    std::vector<std::int64_t> port_paused_ps, port_depth, port_max_depth;
    std::vector<std::uint8_t> port_paused;  // [P], a bit for each queue
    std::vector<std::int64_t> sample_time, sample_tx, sample_depth;
};

// Latency buckets: below 128 ps one each, then 64 a doubling.
inline constexpr std::size_t kFabricBuckets = 64 * 58;

struct FabricProgress {
    std::int64_t time;
    std::int64_t flows_done;
    std::int64_t events;
    std::int64_t delivered_payload;
};

namespace fabric {
class Core;
}

class FabricSimulation {
public:
    // Throws std::invalid_argument, naming the array, where the scenario is not sound.
    explicit FabricSimulation(const FabricScenario& scenario);
    ~FabricSimulation();
    FabricSimulation(FabricSimulation&&) noexcept;
    FabricSimulation& operator=(FabricSimulation&&) noexcept;

    // Work off up to so many events; true once the simulation has ended.
    bool advance(std::int64_t events);

    FabricProgress progress() const;

    // What is known so far. Once the simulation has ended it is made without copying the flows' arrays, and kept.
    std::shared_ptr<const FabricResult> result();

private:
    std::unique_ptr<fabric::Core> core_;
};

}  // namespace fourlane

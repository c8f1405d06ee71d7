// The arrays of a compiled scenario, read from a dict where they lie.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "fourlane/fabric.hpp"

namespace fourlane_bindings {

namespace nb = nanobind;
using fourlane::FabricScenario;

template <typename T>
using Array = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;

// Reads values by name out of a dict; `held` keeps the arrays alive.
class Reader {
public:
    Reader(const nb::dict& given, std::vector<nb::object>& held) : given_(given), held_(held) {}

    template <typename T>
    Reader& array(const char* name, std::span<const T>& to) {
        const nb::object value = get(name);
        Array<T> found;
        if (!nb::try_cast<Array<T>>(value, found, false)) {
            throw nb::type_error((std::string(name) + ": expected a C-contiguous array of " + type<T>()).c_str());
        }
        to = {found.data(), found.size()};
        held_.push_back(value);
        return *this;
    }

    template <typename T>
    Reader& value(const char* name, T& to) {
        const nb::object found = get(name);
        if (!nb::try_cast<T>(found, to)) throw nb::type_error((std::string(name) + ": expected a number in range").c_str());
        return *this;
    }

private:
    nb::object get(const char* name) const {
        if (!given_.contains(name)) throw nb::key_error((std::string(name) + ": missing from the scenario").c_str());
        return given_[name];
    }

    template <typename T>
    static const char* type() {
        if constexpr (sizeof(T) == 1) return "uint8";
        if constexpr (sizeof(T) == 8) return "int64";
        return std::is_signed_v<T> ? "int32" : "uint32";
    }

    const nb::dict& given_;
    std::vector<nb::object>& held_;
};

inline void read_network(Reader& read, FabricScenario& to) {
    read.array("node_kind", to.node_kind).array("node_tier", to.node_tier).array("node_latency", to.node_latency);
    read.array("node_cut_through", to.node_cut_through).array("node_shared", to.node_shared);
    read.array("node_first_port", to.node_first_port).array("leaf_index", to.leaf_index);
    read.array("switch_index", to.switch_index).array("port_node", to.port_node).array("port_peer", to.port_peer);
    read.array("port_ps_q16", to.port_ps_q16).array("port_prop", to.port_prop).array("port_headroom", to.port_headroom);
    read.array("port_tx_latency", to.port_tx_latency).array("port_rx_latency", to.port_rx_latency);
    read.array("port_message_gap", to.port_message_gap).array("epoch_time", to.epoch_time);
    read.array("epoch_port_up", to.epoch_port_up).array("route_table", to.route_table);
    read.array("route_first", to.route_first).array("route_ports", to.route_ports).array("tier_seed", to.tier_seed);
    read.array("sample_ports", to.sample_ports);
}

inline void read_lanes(Reader& read, FabricScenario& to) {
    read.array("queue_weight", to.queue_weight).array("queue_cap_q16", to.queue_cap_q16);
    read.array("queue_alpha_q16", to.queue_alpha_q16).array("queue_reserved", to.queue_reserved);
    read.array("queue_lossless", to.queue_lossless).array("queue_kmin", to.queue_kmin).array("queue_kmax", to.queue_kmax);
    read.array("queue_pmax_q32", to.queue_pmax_q32).array("queue_service", to.queue_service);
    read.array("class_queue", to.class_queue).array("class_ack_queue", to.class_ack_queue);
    read.array("class_cnp_queue", to.class_cnp_queue).array("class_routing", to.class_routing);
    read.array("class_transport", to.class_transport).array("class_cc", to.class_cc);
    read.array("class_window", to.class_window).array("class_rto", to.class_rto);
    read.array("class_ack_every", to.class_ack_every).array("class_trim", to.class_trim).array("class_ecn", to.class_ecn);
    read.array("class_cts_slots", to.class_cts_slots);
}

inline void read_flows(Reader& read, FabricScenario& to) {
    read.array("flow_src_port", to.flow_src_port).array("flow_dst_port", to.flow_dst_port);
    read.array("flow_size", to.flow_size).array("flow_message", to.flow_message).array("flow_class", to.flow_class);
    read.array("flow_start", to.flow_start).array("flow_delay", to.flow_delay).array("flow_hash", to.flow_hash);
    read.array("flow_back_hash", to.flow_back_hash).array("flow_pin", to.flow_pin);
    read.array("flow_after_first", to.flow_after_first).array("flow_after", to.flow_after);
}

inline void read_scalars(Reader& read, FabricScenario& to) {
    read.value("mtu", to.mtu).value("header", to.header).value("ack_wire", to.ack_wire).value("trim_wire", to.trim_wire);
    read.value("trim_queue", to.trim_queue).value("seed", to.seed).value("flowlet_gap", to.flowlet_gap);
    read.value("flowlet_entries", to.flowlet_entries).value("ar_quantum", to.ar_quantum).value("ar_levels", to.ar_levels);
    read.value("ar_staleness", to.ar_staleness).value("pfc_response", to.pfc_response).value("xon_offset", to.xon_offset);
    read.value("watchdog_detection", to.watchdog_detection).value("watchdog_restoration", to.watchdog_restoration);
    read.value("watchdog_drop", to.watchdog_drop).value("sample_interval", to.sample_interval);
    read.value("max_events", to.max_events).value("max_time", to.max_time);
    fourlane::FabricDcqcn& dcqcn = to.dcqcn;
    read.value("dcqcn_g", dcqcn.g).value("dcqcn_alpha0", dcqcn.alpha0).value("dcqcn_alpha_period", dcqcn.alpha_period);
    read.value("dcqcn_cnp_interval", dcqcn.cnp_interval).value("dcqcn_decrease_gate", dcqcn.decrease_gate);
    read.value("dcqcn_max_decrease", dcqcn.max_decrease).value("dcqcn_timer", dcqcn.timer);
    read.value("dcqcn_byte_counter", dcqcn.byte_counter).value("dcqcn_fast_rounds", dcqcn.fast_rounds);
    read.value("dcqcn_rate_ai", dcqcn.rate_ai).value("dcqcn_rate_hai", dcqcn.rate_hai);
    read.value("dcqcn_min_rate", dcqcn.min_rate).value("dcqcn_clamp", dcqcn.clamp);
}

inline FabricScenario read_scenario(const nb::dict& arrays, std::vector<nb::object>& held) {
    FabricScenario scenario;
    Reader read(arrays, held);
    read_network(read, scenario);
    read_lanes(read, scenario);
    read_flows(read, scenario);
    read_scalars(read, scenario);
    return scenario;
}

}  // namespace fourlane_bindings

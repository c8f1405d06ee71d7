// Python's view of the network simulator: a scenario from a dict of arrays, its results as arrays that own what they show.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "fabric_arrays.hpp"
#include "fourlane/fabric.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using fourlane::FabricProgress;
using fourlane::FabricResult;
using fourlane::FabricScenario;

// A simulation and the arrays it reads.
class Simulation {
public:
    explicit Simulation(const nb::dict& arrays) {
        const FabricScenario scenario = fourlane_bindings::read_scenario(arrays, held_);
        const nb::gil_scoped_release released;
        simulation_ = std::make_unique<fourlane::FabricSimulation>(scenario);
        shape_ = {scenario.port_node.size(), scenario.queue_weight.size(), scenario.class_queue.size(),
                  scenario.sample_ports.size()};
    }

    bool advance(std::int64_t events) {
        const nb::gil_scoped_release released;
        return simulation_->advance(events);
    }

    std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t> progress() const {
        const FabricProgress now = simulation_->progress();
        return {now.time, now.flows_done, now.events, now.delivered_payload};
    }

    nb::dict result();

private:
    struct Shape {
        std::size_t ports = 0, queues = 0, classes = 0, samples = 0;
    };

    std::vector<nb::object> held_;
    std::unique_ptr<fourlane::FabricSimulation> simulation_;
    Shape shape_;
};

// Arrays over a result's vectors, which live as long as any of the arrays.
class Writer {
public:
    Writer(nb::dict& to, std::shared_ptr<const FabricResult> found) : to_(to) {
        owner_ = nb::capsule(new std::shared_ptr<const FabricResult>(std::move(found)), [](void* held) noexcept {
            delete static_cast<std::shared_ptr<const FabricResult>*>(held);
        });
    }

    template <typename T>
    void array(const char* name, const std::vector<T>& values, std::initializer_list<std::size_t> shape = {}) {
        const std::vector<std::size_t> dims = shape.size() == 0 ? std::vector{values.size()} : std::vector(shape);
        to_[name] = nb::ndarray<nb::numpy, const T>(values.data(), dims.size(), dims.data(), owner_).cast();
    }

private:
    nb::dict& to_;
    nb::capsule owner_;
};

void write_scalars(nb::dict& to, const FabricResult& found) {
    to["status"] = nb::str(found.status.c_str());
    to["time"] = found.time;
    to["events"] = found.events;
    to["flows_done"] = found.flows_done;
    to["data_hops"] = found.data_hops;
    to["data_packets_sent"] = found.data_packets_sent;
    to["data_packets_delivered"] = found.data_packets_delivered;
    to["data_packets_dropped"] = found.data_packets_dropped;
    to["delivered_payload"] = found.delivered_payload;
    to["wire_bytes_sent"] = found.wire_bytes_sent;
    to["wire_bytes_delivered"] = found.wire_bytes_delivered;
    to["wire_bytes_dropped"] = found.wire_bytes_dropped;
    to["wire_bytes_queued"] = found.wire_bytes_queued;
}

nb::dict Simulation::result() {
    const std::shared_ptr<const FabricResult> held = simulation_->result();
    const FabricResult& found = *held;
    nb::dict to;
    write_scalars(to, found);
    Writer write(to, held);
    write.array("flow_started", found.flow_started);
    write.array("flow_delivered", found.flow_delivered);
    write.array("flow_finish", found.flow_finish);
    write.array("flow_retransmitted", found.flow_retransmitted);
    write.array("flow_reorder", found.flow_reorder);
    write.array("latency_counts", found.latency_counts, {shape_.classes, fourlane::kFabricBuckets});
    write.array("port_tx_bytes", found.port_tx_bytes, {shape_.ports, shape_.queues});
    write.array("port_tx_packets", found.port_tx_packets, {shape_.ports, shape_.queues});
    write.array("port_drops", found.port_drops, {shape_.ports, shape_.queues});
    write.array("port_marks", found.port_marks, {shape_.ports, shape_.queues});
    write.array("port_trims", found.port_trims, {shape_.ports, shape_.queues});
    write.array("port_pauses", found.port_pauses, {shape_.ports, shape_.queues});
    write.array("port_paused_ps", found.port_paused_ps, {shape_.ports, shape_.queues});
    write.array("port_depth", found.port_depth, {shape_.ports, shape_.queues});
    write.array("port_paused", found.port_paused);
    write.array("port_max_depth", found.port_max_depth);
    write.array("sample_time", found.sample_time);
    write.array("sample_tx", found.sample_tx, {found.sample_time.size(), shape_.samples});
    write.array("sample_depth", found.sample_depth, {found.sample_time.size(), shape_.samples});
    return to;
}

}  // namespace

void bind_fabric(nb::module_& module) {
    nb::class_<Simulation>(module, "FabricSimulation",
                           "A packet simulation of a compiled scenario, whose arrays are read where they lie.")
        .def(nb::init<const nb::dict&>(), "arrays"_a)
        .def("advance", &Simulation::advance, "max_events"_a,
             "Work off up to so many events; return whether the simulation has ended. The GIL is released.")
        .def("progress", &Simulation::progress, "Return (time in ps, flows finished, events, payload delivered).")
        .def("result", &Simulation::result, "Return everything counted so far, by name.");
}

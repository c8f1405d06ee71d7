// Python's view of networks at flow level: a scenario from a dict of arrays, rates and times as arrays of their own.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fabric_arrays.hpp"
#include "fourlane/flow_level.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <typename T>
nb::object owned(std::vector<T>&& values, std::size_t columns = 0) {
    auto* held = new std::vector<T>(std::move(values));
    const nb::capsule owner(held, [](void* kept) noexcept { delete static_cast<std::vector<T>*>(kept); });
    const std::size_t flat[] = {held->size()};
    const std::size_t table[] = {columns == 0 ? 0 : held->size() / columns, columns};
    return columns == 0 ? nb::ndarray<nb::numpy, T>(held->data(), 1, flat, owner).cast()
                        : nb::ndarray<nb::numpy, T>(held->data(), 2, table, owner).cast();
}

// Flows and the arrays they are read from.
class Flows {
public:
    Flows(const nb::dict& arrays, std::size_t epoch, double tolerance)
        : scenario_(fourlane_bindings::read_scenario(arrays, held_)) {
        if (epoch >= scenario_.epoch_time.size()) throw nb::index_error("epoch: the scenario has fewer");
        if (!(tolerance >= 0 && tolerance <= 1)) throw nb::value_error("tolerance: expected 0 to 1");
        const nb::gil_scoped_release released;
        level_ = std::make_unique<fourlane::FlowLevel>(scenario_, epoch, tolerance);
    }

    nb::dict rates(const nb::ndarray<const std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>& flows) const {
        const std::span<const std::uint32_t> chosen{flows.data(), flows.size()};
        const std::size_t count = scenario_.flow_src_port.size();
        if (std::ranges::any_of(chosen, [count](std::uint32_t f) { return f >= count; })) {
            throw nb::index_error("flows: expected flows of the scenario");
        }
        fourlane::FlowRates found;
        {
            const nb::gil_scoped_release released;
            found = level_->rates(chosen);
        }
        nb::dict to;
        to["rate"] = owned(std::move(found.rate));
        to["bottleneck"] = owned(std::move(found.bottleneck));
        to["port_rate"] = owned(std::move(found.port_rate), queues());
        return to;
    }

    bool advance() {
        const nb::gil_scoped_release released;
        return level_->advance();
    }

    std::int64_t flows_done() const { return level_->flows_done(); }

    nb::dict times() const {
        fourlane::FlowTimes found = level_->times();
        nb::dict to;
        to["started"] = owned(std::move(found.started));
        to["delivered"] = owned(std::move(found.delivered));
        to["finished"] = owned(std::move(found.finished));
        to["port_bytes"] = owned(std::move(found.port_bytes), queues());
        to["rounds"] = found.rounds;
        to["now"] = found.now;
        return to;
    }

private:
    std::size_t queues() const { return scenario_.queue_weight.size(); }

    std::vector<nb::object> held_;
    fourlane::FabricScenario scenario_;
    std::unique_ptr<fourlane::FlowLevel> level_;
};

}  // namespace

void bind_flow_level(nb::module_& module) {
    nb::class_<Flows>(module, "FlowLevel", "Max-min fair rates of a compiled scenario's flows, and their times.")
        .def(nb::init<const nb::dict&, std::size_t, double>(), "arrays"_a, "epoch"_a, "tolerance"_a)
        .def("rates", &Flows::rates, "flows"_a.noconvert(),
             "Return the rates of these flows at once, in bytes a second. The GIL is released.")
        .def("advance", &Flows::advance, "Go on to the next change of rates; true at the end. The GIL is released.")
        .def("flows_done", &Flows::flows_done, "Return how many flows have been delivered.")
        .def("times", &Flows::times, "Return what is known so far, in seconds and bytes, by name.");
}

// The exchange through shared memory, as Python sees it.
#include "fourlane/shared_exchange.hpp"
#include "fourlane/token_rows.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using fourlane::RowRoutes;
using fourlane::SharedExchange;
using fourlane::SharedPeer;
using fourlane::SharedReport;
using fourlane::SharedSegment;

using ConstBytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstByteRows = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ByteRows = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstFloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatRows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
    if (!condition) throw nb::value_error(message);
}

std::span<const std::int64_t> span_of(const Numbers& numbers) { return {numbers.data(), numbers.shape(0)}; }

std::span<const std::byte> bytes_of(const ConstBytes& bytes) {
    return {reinterpret_cast<const std::byte*>(bytes.data()), bytes.shape(0)};
}

std::chrono::nanoseconds nanoseconds_of(double seconds) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(seconds));
}

// None where all came, else (end, peers).
nb::object verdict(const SharedReport& report) {
    if (report.end == fourlane::SharedEnd::done) return nb::none();
    return nb::make_tuple(static_cast<int>(report.end), report.peers);
}

template <typename Call>
nb::object released(const Call& call) {
    SharedReport report;
    {
        const nb::gil_scoped_release release;
        report = call();
    }
    return verdict(report);
}

// Whoever passes this reads and writes nothing outside the buffers. Returns the rows.
std::size_t check(const SharedExchange& exchange, const RowRoutes& routes) {
    require(routes.slots_per_rank >= 1 && routes.quota_P.size() == exchange.ranks() * routes.slots_per_rank &&
                routes.first_P.size() == routes.quota_P.size(),
            "quota_P, first_P: expected a number for each slot of each rank");
    std::size_t rows = 0;
    for (std::size_t slot = 0; slot < routes.quota_P.size(); ++slot) {
        const std::int64_t quota = routes.quota_P[slot], first = routes.first_P[slot];
        const std::size_t room = exchange.segment(slot / routes.slots_per_rank).shape().buffer_bytes;
        const auto most = static_cast<std::int64_t>(routes.row_bytes == 0 ? INT64_MAX : room / routes.row_bytes);
        require(quota >= 0 && first >= 0 && quota <= most && first <= most - quota, "quota_P, first_P: no room for so many rows");
        rows += static_cast<std::size_t>(quota);
    }
    return rows;
}

RowRoutes routes_of(const Numbers& quota_P, const Numbers& first_P, std::size_t slots_per_rank, std::size_t row_bytes) {
    return {span_of(quota_P), span_of(first_P), slots_per_rank, row_bytes};
}

std::shared_ptr<SharedExchange> make_exchange(int rank, std::vector<std::shared_ptr<SharedSegment>> segments,
                                              const std::vector<int>& sockets, const std::vector<int>& processes) {
    require(sockets.size() == segments.size() && processes.size() == segments.size(), "expected one of each for each rank");
    std::vector<SharedPeer> peers;
    for (std::size_t peer = 0; peer < sockets.size(); ++peer) peers.push_back({sockets[peer], processes[peer]});
    return std::make_shared<SharedExchange>(rank, std::move(segments), std::move(peers), SharedExchange::Waiting{});
}

std::uint64_t give(SharedExchange& exchange, std::uint32_t kind, const ConstBytes& mine) {
    return exchange.give(kind, bytes_of(mine));
}

nb::object collect(SharedExchange& exchange, std::uint64_t operation, std::uint32_t kind, const Bytes& everybody, double patience) {
    require(everybody.shape(0) % exchange.ranks() == 0, "everybody: expected as many bytes of each rank");
    const std::span<std::byte> into(reinterpret_cast<std::byte*>(everybody.data()), everybody.shape(0));
    return released([&] { return exchange.collect(operation, kind, into, nanoseconds_of(patience)); });
}

void send_rows(SharedExchange& exchange, std::uint64_t dispatch, const ConstByteRows& x, const Numbers& rows,
               const Numbers& quota_P, const Numbers& first_P, std::size_t slots_per_rank) {
    const RowRoutes routes = routes_of(quota_P, first_P, slots_per_rank, x.shape(1));
    require(check(exchange, routes) == rows.shape(0), "rows: expected as many as quota_P says");
    for (const std::int64_t row : span_of(rows)) {
        require(row >= 0 && row < static_cast<std::int64_t>(x.shape(0)), "rows: no such row of x");
    }
    const nb::gil_scoped_release release;
    exchange.send_rows(dispatch, reinterpret_cast<const std::byte*>(x.data()), span_of(rows), routes);
}

nb::object await_rows(SharedExchange& exchange, std::uint64_t dispatch, const Numbers& rows_G, double patience) {
    require(rows_G.shape(0) == exchange.ranks(), "rows_G: expected a number for each rank");
    return released([&] { return exchange.await_rows(dispatch, span_of(rows_G), nanoseconds_of(patience)); });
}

void give_outputs(SharedExchange& exchange, std::uint64_t dispatch, const ConstBytes& y) {
    const auto& own = exchange.segment(static_cast<std::size_t>(exchange.rank()));
    require(y.shape(0) <= own.shape().buffer_bytes, "y: more than there is room for");
    const nb::gil_scoped_release release;
    exchange.give_outputs(dispatch, bytes_of(y));
}

nb::object await_outputs(SharedExchange& exchange, std::uint64_t dispatch, const Numbers& quota_P, const Numbers& first_P,
                         std::size_t slots_per_rank, double patience) {
    const RowRoutes routes = routes_of(quota_P, first_P, slots_per_rank, 0);
    check(exchange, routes);
    return released([&] { return exchange.await_outputs(dispatch, routes, nanoseconds_of(patience)); });
}

void sum_outputs(SharedExchange& exchange, std::uint64_t dispatch, const Numbers& order, const Numbers& quota_P,
                 const Numbers& first_P, std::size_t slots_per_rank, const ConstFloatRows& weights, const FloatRows& out) {
    const RowRoutes routes = routes_of(quota_P, first_P, slots_per_rank, out.shape(1) * sizeof(float));
    require(weights.shape(1) >= 1 && weights.shape(0) == out.shape(0), "weights: expected [tokens, K]");
    require(check(exchange, routes) == order.shape(0) && order.shape(0) == weights.size(), "order: expected a pair for each row");
    for (const std::int64_t pair : span_of(order)) {
        require(pair >= 0 && pair < static_cast<std::int64_t>(order.shape(0)), "order: no such pair");
    }
    const auto tokens = static_cast<std::int64_t>(out.shape(0));
    const nb::gil_scoped_release release;
    exchange.sum_outputs(dispatch, routes, span_of(order), {weights.data(), tokens, static_cast<std::int64_t>(weights.shape(1))},
                         {out.data(), tokens, static_cast<std::int64_t>(out.shape(1))}, fourlane::best_instruction_set());
}

void copy_outputs(SharedExchange& exchange, std::uint64_t dispatch, const Numbers& quota_P, const Numbers& first_P,
                  std::size_t slots_per_rank, const ByteRows& out) {
    const RowRoutes routes = routes_of(quota_P, first_P, slots_per_rank, out.shape(1));
    require(check(exchange, routes) == out.shape(0), "out: expected as many rows as quota_P says");
    const nb::gil_scoped_release release;
    exchange.copy_outputs(dispatch, routes, reinterpret_cast<std::byte*>(out.data()));
}

nb::object all_to_all(SharedExchange& exchange, const ConstByteRows& blocks, double patience) {
    const auto& own = exchange.segment(static_cast<std::size_t>(exchange.rank()));
    require(blocks.shape(0) == exchange.ranks(), "blocks: expected one for each rank");
    require(blocks.shape(1) <= own.shape().buffer_bytes / exchange.ranks(), "blocks: more bytes than there is room for");
    return released([&] {
        return exchange.all_to_all(reinterpret_cast<const std::byte*>(blocks.data()), blocks.shape(1), nanoseconds_of(patience));
    });
}

using NumberRows = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableNumbers = nb::ndarray<std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void lay_out_rows(const NumberRows& quota, std::size_t rank, const MutableNumbers& first, const MutableNumbers& rows,
                  const MutableNumbers& offset) {
    const std::size_t ranks = quota.shape(0), slots = quota.shape(1);
    require(rank < ranks && slots % ranks == 0, "quota_GP: expected as many slots on every rank");
    require(first.shape(0) == slots && rows.shape(0) == ranks && offset.shape(0) == slots / ranks + 1,
            "first_P, rows_G, offset_S1: expected [slots], [ranks], [slots a rank + 1]");
    fourlane::lay_out_rows({quota.data(), quota.size()}, ranks, rank, {first.data(), rows.data(), offset.data()});
}

using View = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>;

// A buffer as an array that keeps the memory mapped for as long as it lives.
View view_of(const std::shared_ptr<SharedSegment>& segment, std::byte* buffer) {
    auto* held = new std::shared_ptr<SharedSegment>(segment);
    const nb::capsule owner(held, [](void* data) noexcept { delete static_cast<std::shared_ptr<SharedSegment>*>(data); });
    return {reinterpret_cast<std::uint8_t*>(buffer), {segment->shape().buffer_bytes}, owner};
}

}  // namespace

void bind_shared_exchange(nb::module_& module) {
    module.def("lay_out_rows", &lay_out_rows, "quota_GP"_a.noconvert(), "rank"_a, "first_P"_a.noconvert(),
               "rows_G"_a.noconvert(), "offset_S1"_a.noconvert(),
               "Write where a rank's rows lie among those of all ranks, and how many it gets from each.");
    nb::class_<SharedSegment>(module, "SharedSegment", "What one rank shares with the others of its host: a memfd, mapped.")
        .def_static(
            "make",
            [](std::uint32_t ranks, std::uint64_t gather_bytes, std::uint64_t buffer_bytes) {
                return SharedSegment::make({ranks, gather_bytes, buffer_bytes});
            },
            "ranks"_a, "gather_bytes"_a, "buffer_bytes"_a, "Make an empty one; RuntimeError if it cannot be had.")
        .def_static("map", &SharedSegment::map, "descriptor"_a, "ranks"_a,
                    "Map another rank's; RuntimeError if it is none for so many ranks or cannot be mapped.")
        .def_prop_ro("descriptor", &SharedSegment::descriptor, "Of one made here, to hand over; -1 when closed.")
        .def("close_descriptor", &SharedSegment::close_descriptor, "Close it; the memory stays mapped.")
        .def("received", [](const std::shared_ptr<SharedSegment>& s, std::uint64_t n) { return view_of(s, s->received(n)); },
             "dispatch"_a, "Return the buffer into which the others write the rows of a dispatch.")
        .def("output", [](const std::shared_ptr<SharedSegment>& s, std::uint64_t n) { return view_of(s, s->output(n)); },
             "dispatch"_a, "Return the buffer from which the others read the outputs of a dispatch.")
        .def("parts", [](const std::shared_ptr<SharedSegment>& s, std::uint64_t n) { return view_of(s, s->parts(n)); },
             "operation"_a, "Return the buffer into which the others write their parts of a plain all-to-all.");

    nb::class_<SharedExchange>(module, "SharedExchange", "Rows between the ranks of one host, through their segments.")
        .def(nb::new_(&make_exchange), "rank"_a, "segments"_a, "sockets"_a, "processes"_a)
        .def("give", &give, "kind"_a, "mine"_a.noconvert(), "Give bytes to all ranks; return the operation's number.")
        .def("collect", &collect, "operation"_a, "kind"_a, "everybody"_a.noconvert(), "patience_s"_a,
             "Wait for what all gave; return None, or (end, peers).")
        .def("send_rows", &send_rows, "dispatch"_a, "x"_a.noconvert(), "rows"_a.noconvert(), "quota_P"_a.noconvert(),
             "first_P"_a.noconvert(), "slots_per_rank"_a, "Write rows to their places in the receivers' buffers.")
        .def("await_rows", &await_rows, "dispatch"_a, "rows_G"_a.noconvert(), "patience_s"_a,
             "Wait for the rows of all ranks; return None, or (end, peers).")
        .def("give_outputs", &give_outputs, "dispatch"_a, "y"_a.noconvert(), "Let the others read outputs.")
        .def("await_outputs", &await_outputs, "dispatch"_a, "quota_P"_a.noconvert(), "first_P"_a.noconvert(),
             "slots_per_rank"_a, "patience_s"_a, "Wait for the outputs of this rank's rows; return None, or (end, peers).")
        .def("sum_outputs", &sum_outputs, "dispatch"_a, "order"_a.noconvert(), "quota_P"_a.noconvert(),
             "first_P"_a.noconvert(), "slots_per_rank"_a, "weights"_a.noconvert(), "out"_a.noconvert(),
             "Sum each token's outputs in the order of k.")
        .def("copy_outputs", &copy_outputs, "dispatch"_a, "quota_P"_a.noconvert(), "first_P"_a.noconvert(),
             "slots_per_rank"_a, "out"_a.noconvert(), "Copy the outputs in order of slots.")
        .def("all_to_all", &all_to_all, "blocks"_a.noconvert(), "patience_s"_a,
             "Give each rank its block and wait for theirs; return None, or (end, peers).")
        .def("leave", &SharedExchange::leave, "End a wait under way in another thread; show the others that we are gone.")
        .def_prop_ro("sleeps", &SharedExchange::sleeps, "How often a wait slept.");
}

// Python's view of batch-level splitting. Shapes and types are checked here, the ranges of a placement's tables by who
// made them (policy/placement.py), and counts by the core.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <span>

#include "fourlane/token_split.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

namespace balance = fourlane::balance;
using balance::CountsView;
using balance::ReplicasView;

using Table = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Quotas = nb::ndarray<std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using QuotaRow = nb::ndarray<std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename Count>
using Counts = nb::ndarray<const Count, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename Count>
using CountRow = nb::ndarray<const Count, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
    if (!condition) throw nb::value_error(message);
}

std::int32_t extent(const auto& array, std::size_t dim) { return static_cast<std::int32_t>(array.shape(dim)); }

ReplicasView view(const Table& start, const Table& slot, const Table& rank, std::int32_t ranks, std::int32_t slots) {
    require(start.size() >= 1 && slot.size() == rank.size() && ranks >= 1 && slots % ranks == 0,
            "replicas: expected start [experts + 1], slot and rank [held slots]");
    const ReplicasView replicas{{start.data(), start.size()}, {slot.data(), slot.size()}, {rank.data(), rank.size()}, ranks, slots};
    require(replicas.start.front() == 0 && replicas.start.back() == static_cast<std::int32_t>(slot.size()),
            "start: expected to begin at 0 and end at the held slots");
    for (std::size_t e = 1; e < replicas.start.size(); ++e) {
        require(replicas.start[e - 1] < replicas.start[e], "start: expected a replica of every expert");
    }
    const std::int32_t held = slots / ranks;
    for (std::size_t i = 0; i < slot.size(); ++i) {
        require(replicas.slot[i] >= 0 && replicas.slot[i] < slots && replicas.rank[i] == replicas.slot[i] / held,
                "slot: expected slots in range, each on its rank");
    }
    return replicas;
}

template <typename Count>
CountsView<Count> counts_view(const Counts<Count>& counts, const Table& start, const Quotas& quota, const Tokens& tokens) {
    require(counts.shape(1) + 1 == start.size() && counts.shape(0) == quota.shape(0) && tokens.size() == quota.shape(0),
            "counts, quota, tokens: expected [ranks, experts], [ranks, slots] and [ranks]");
    return {counts.data(), extent(counts, 0), extent(counts, 1)};
}

template <typename Count>
double split_tokens(const Counts<Count>& counts, const Table& start, const Table& slot, const Table& rank,
                    std::int32_t nodes, const Quotas& quota, const Tokens& tokens) {
    const auto given = counts_view<Count>(counts, start, quota, tokens);
    const ReplicasView replicas = view(start, slot, rank, given.ranks, extent(quota, 1));
    require(nodes >= 1 && given.ranks % nodes == 0, "nodes: expected to divide the ranks");
    const nb::gil_scoped_release released;
    return balance::split_tokens(given, replicas, nodes, {quota.data(), quota.size()}, {tokens.data(), tokens.size()});
}

template <typename Count>
double split_equally(const Counts<Count>& counts, const Table& start, const Table& slot, const Table& rank,
                     const Quotas& quota, const Tokens& tokens) {
    const auto given = counts_view<Count>(counts, start, quota, tokens);
    const ReplicasView replicas = view(start, slot, rank, given.ranks, extent(quota, 1));
    const nb::gil_scoped_release released;
    return balance::split_equally(given, replicas, {quota.data(), quota.size()}, {tokens.data(), tokens.size()});
}

template <typename Count>
bool equal_tokens(const Counts<Count>& counts, const Table& start, const Table& slot, const Table& rank,
                  std::int32_t slots, const Tokens& tokens) {
    require(counts.shape(1) + 1 == start.size() && tokens.size() == counts.shape(0),
            "counts, tokens: expected [ranks, experts] and [ranks]");
    require(counts.shape(0) >= 1 && slots % extent(counts, 0) == 0, "slots: expected as many on each rank");
    const ReplicasView replicas = view(start, slot, rank, extent(counts, 0), slots);
    const nb::gil_scoped_release released;
    return balance::equal_tokens<Count>({counts.data(), extent(counts, 0), extent(counts, 1)}, replicas,
                                        {tokens.data(), tokens.size()});
}

template <typename Count>
bool split_local_tokens(const CountRow<Count>& count, const Table& start, const Table& slot, const Table& rank,
                        std::int32_t own, std::int32_t ranks, std::int32_t nodes, const QuotaRow& quota) {
    require(count.size() + 1 == start.size(), "count: expected one for each expert");
    require(ranks >= 1 && extent(quota, 0) % ranks == 0, "quota: expected the same slots on each rank");
    const ReplicasView replicas = view(start, slot, rank, ranks, extent(quota, 0));
    require(nodes >= 1 && ranks % nodes == 0 && own >= 0 && own < ranks, "rank, nodes: out of range");
    const nb::gil_scoped_release released;
    return balance::split_local_tokens<Count>({count.data(), count.size()}, replicas, own, nodes, {quota.data(), quota.size()});
}

template <typename Count>
void bind(nb::module_& module) {
    module.def("split_tokens", split_tokens<Count>, "counts"_a.noconvert(), "start"_a.noconvert(), "slot"_a.noconvert(),
               "rank"_a.noconvert(), "nodes"_a, "quota"_a.noconvert(), "tokens"_a.noconvert());
    module.def("split_equally", split_equally<Count>, "counts"_a.noconvert(), "start"_a.noconvert(),
               "slot"_a.noconvert(), "rank"_a.noconvert(), "quota"_a.noconvert(), "tokens"_a.noconvert());
    module.def("equal_tokens", equal_tokens<Count>, "counts"_a.noconvert(), "start"_a.noconvert(), "slot"_a.noconvert(),
               "rank"_a.noconvert(), "slots"_a, "tokens"_a.noconvert());
    module.def("split_local_tokens", split_local_tokens<Count>, "count"_a.noconvert(), "start"_a.noconvert(),
               "slot"_a.noconvert(), "rank"_a.noconvert(), "own"_a, "ranks"_a, "nodes"_a, "quota"_a.noconvert());
}

}  // namespace

void bind_token_split(nb::module_& module) {
    bind<std::int64_t>(module);
    bind<std::int32_t>(module);
}

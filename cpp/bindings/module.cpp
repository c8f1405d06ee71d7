// Python's view of the native core. Only the files in this directory know nanobind; they check shapes and types, and
// release the GIL, but compute nothing themselves. The balancer of experts is in balance.cpp,
// the simulator of networks in fabric.cpp, the exchange through shared memory in shared_exchange.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "fourlane/crc32c.hpp"
#include "fourlane/float8_rows.hpp"
#include "fourlane/huge_pages.hpp"
#include "fourlane/paged_attention.hpp"
#include "fourlane/panels.hpp"
#include "fourlane/socket_mesh.hpp"
#include "fourlane/token_rows.hpp"

namespace nb = nanobind;
using namespace nb::literals;

void bind_balance(nb::module_& module);
void bind_fabric(nb::module_& module);
void bind_flow_level(nb::module_& module);
void bind_shared_exchange(nb::module_& module);
void bind_split_aware(nb::module_& module);
void bind_token_split(nb::module_& module);

namespace {

using fourlane::InstructionSet;
using fourlane::PackedWeights;
using fourlane::WeightType;

// A C-contiguous buffer of any kind, held while in scope.
class Buffer {
public:
    explicit Buffer(nb::handle object) {
        if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
    }
    ~Buffer() { PyBuffer_Release(&view_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    std::span<const std::byte> bytes() const {
        return {static_cast<const std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
    }

private:
    Py_buffer view_{};
};

using Checksum = std::uint32_t (*)(std::span<const std::byte>, std::uint32_t);

template <Checksum function>
std::uint32_t checksum(nb::handle data, std::uint32_t seed) {
    const Buffer buffer(data);
    const nb::gil_scoped_release released;
    return function(buffer.bytes(), seed);
}

using ConstRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
    if (!condition) throw nb::value_error(message);
}

std::int64_t extent(const auto& array, std::size_t dim) { return static_cast<std::int64_t>(array.shape(dim)); }

WeightType type_of(const Weights& weights) {
    if (weights.dtype() == nb::dtype<float>()) return WeightType::float32;
    require(weights.dtype() == nb::dtype<std::uint16_t>(), "weights: expected float32, or bfloat16 viewed as uint16");
    return WeightType::bfloat16;
}

PackedWeights packed(const Weights& weights) {
    require(weights.ndim() == 4 && weights.shape(3) == fourlane::kPanelColumns,
            "packed weights: expected [slots, panels, depth, 32]");
    return {weights.data(), type_of(weights), extent(weights, 0), extent(weights, 1), extent(weights, 2)};
}

InstructionSet instruction_set(const std::string& name) {
    if (name.empty()) return fourlane::best_instruction_set();
    InstructionSet set = InstructionSet::baseline;
    if (name == "avx2") {
        set = InstructionSet::avx2;
    } else if (name == "avx512") {
        set = InstructionSet::avx512;
    } else {
        require(name == "baseline", "instruction set: expected \"baseline\", \"avx2\" or \"avx512\"");
    }
    require(fourlane::is_supported(set), "instruction set: this CPU does not have it");
    return set;
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names{"baseline"};
    if (fourlane::is_supported(InstructionSet::avx2)) names.emplace_back("avx2");
    if (fourlane::is_supported(InstructionSet::avx512)) names.emplace_back("avx512");
    return names;
}

void pack_panels(const Weights& weight, const Weights& out, std::int64_t slot, std::int64_t first, std::int64_t step) {
    const PackedWeights to = packed(out);
    require(weight.ndim() == 2 && type_of(weight) == to.type, "weight: expected [columns, depth] of the packed type");
    require(extent(weight, 1) == to.depth, "weight: depth differs from the packed one");
    require(slot >= 0 && slot < to.slots && first >= 0 && step >= 1, "pack: slot, first or step out of range");
    const std::int64_t last = first + (fourlane::panels_for(extent(weight, 0)) - 1) * step;
    require(last < to.panels, "pack: more columns than there are panels");
    const std::size_t bytes = fourlane::size_of(to.type) * static_cast<std::size_t>(to.panels * to.depth * fourlane::kPanelColumns);
    auto* base = static_cast<std::byte*>(out.data()) + static_cast<std::size_t>(slot) * bytes;
    const nb::gil_scoped_release released;
    fourlane::pack_panels(weight.data(), to.type, extent(weight, 0), to.depth, base, first, step);
}

void advise_huge_pages(const Weights& array) {
    fourlane::advise_huge_pages(array.data(), array.nbytes());
}

void linear(const ConstRows& x, const Weights& weight, const Rows& out, const std::string& isa) {
    const PackedWeights weights = packed(weight);
    require(weights.slots == 1 && weights.depth == extent(x, 1), "linear: x is not [rows, depth] of the weight");
    require(extent(out, 0) == extent(x, 0) && fourlane::panels_for(extent(out, 1)) == weights.panels,
            "linear: out is not [rows, columns] of x and the weight");
    const InstructionSet set = instruction_set(isa);
    const nb::gil_scoped_release released;
    fourlane::linear({x.data(), extent(x, 0), extent(x, 1)}, weights, {out.data(), extent(out, 0), extent(out, 1)}, set);
}

void check_offsets(const std::vector<std::int64_t>& offsets, std::int64_t slots, std::int64_t rows) {
    require(static_cast<std::int64_t>(offsets.size()) == slots + 1, "offsets: expected slots + 1 of them");
    require(offsets.front() == 0 && offsets.back() == rows, "offsets: expected to begin at 0 and end at the rows of x");
    for (std::size_t i = 1; i < offsets.size(); ++i) require(offsets[i - 1] <= offsets[i], "offsets: expected to ascend");
}

void expert_ffn(const ConstRows& x, const std::vector<std::int64_t>& offsets, const Weights& gate_up_weights,
                const Weights& down_weights, const Rows& out, const std::string& isa) {
    const PackedWeights gate_up = packed(gate_up_weights);
    const PackedWeights down = packed(down_weights);
    require(gate_up.depth == extent(x, 1), "expert_ffn: x is not [rows, depth] of gate_up");
    require(gate_up.slots == down.slots && gate_up.panels == 2 * fourlane::panels_for(down.depth),
            "expert_ffn: gate_up and down do not belong together");
    require(extent(out, 0) == extent(x, 0) && fourlane::panels_for(extent(out, 1)) == down.panels,
            "expert_ffn: out is not [rows, columns] of x and down");
    check_offsets(offsets, gate_up.slots, extent(x, 0));
    const InstructionSet set = instruction_set(isa);
    const nb::gil_scoped_release released;
    fourlane::expert_ffn({x.data(), extent(x, 0), extent(x, 1)}, offsets, gate_up, down,
                         {out.data(), extent(out, 0), extent(out, 1)}, set);
}

using Queries = nb::ndarray<const float, nb::ndim<3>, nb::device::cpu>;
using Pages = nb::ndarray<const float, nb::ndim<5>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using BlockTable = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

std::span<const std::int64_t> span_of(const Numbers& numbers) { return {numbers.data(), numbers.shape(0)}; }

fourlane::QueriesView queries_view(const Queries& queries) {
    const std::int64_t row = extent(queries, 1) * extent(queries, 2);
    const bool apart = queries.stride(0) >= row || queries.shape(0) == 1;
    const bool dense = queries.stride(2) == 1 && queries.stride(1) == extent(queries, 2) && apart;
    require(dense || queries.size() == 0, "queries: expected each token's heads to be contiguous");
    return {queries.data(), extent(queries, 0), extent(queries, 1), queries.stride(0)};
}

fourlane::PagesView pages_view(const Pages& pages) {
    require(pages.shape(0) == 2, "pages: expected [2 (K, V), blocks, block_size, kv heads, head dim]");
    const std::int64_t floats = extent(pages, 1) * extent(pages, 2) * extent(pages, 3) * extent(pages, 4);
    return {pages.data(),     pages.data() + floats, extent(pages, 1), extent(pages, 2),
            extent(pages, 3), extent(pages, 4)};
}

// Whoever passes this reads nothing outside the pages.
void check_sequences(const fourlane::SequencesView& sequences, std::int64_t tokens, const fourlane::PagesView& pages) {
    require(sequences.query_start.size() == sequences.context.size() + 1, "query_start: expected sequences + 1 of them");
    require(sequences.query_start.front() == 0 && sequences.query_start.back() == tokens,
            "query_start: expected to begin at 0 and end at the tokens");
    for (std::size_t s = 0; s < sequences.context.size(); ++s) {
        const std::int64_t queries = sequences.query_start[s + 1] - sequences.query_start[s];
        const std::int64_t context = sequences.context[s];
        require(queries >= 0 && queries <= context, "context: expected at least as many tokens as the sequence has queries");
        const std::int64_t blocks = context / pages.block_size + (context % pages.block_size != 0 ? 1 : 0);
        require(blocks <= sequences.width, "context: expected no more tokens than the block table's width holds");
        const std::int32_t* row = sequences.blocks + static_cast<std::int64_t>(s) * sequences.width;
        for (std::int64_t b = 0; b < blocks; ++b) require(row[b] >= 0 && row[b] < pages.blocks, "block table: no such page");
    }
}

void paged_attention(const Queries& queries_array, const Pages& pages_array, const BlockTable& blocks,
                     const Numbers& query_start, const Numbers& context, float scale, const Rows& out,
                     const std::string& isa) {
    const fourlane::QueriesView queries = queries_view(queries_array);
    const fourlane::PagesView pages = pages_view(pages_array);
    require(pages.block_size >= 1 && pages.kv_heads >= 1 && pages.head_dim >= 1 && queries.heads >= 1,
            "paged_attention: expected block size, heads and head dim of at least 1");
    require(extent(queries_array, 2) == pages.head_dim && queries.heads % pages.kv_heads == 0,
            "paged_attention: queries and pages do not belong together");
    require(extent(out, 0) == queries.tokens && extent(out, 1) == queries.heads * pages.head_dim,
            "paged_attention: out is not [tokens, heads * head dim] of the queries");
    require(extent(blocks, 0) == extent(context, 0), "block table: expected a row for each sequence");
    const fourlane::SequencesView sequences{span_of(query_start), span_of(context), blocks.data(), extent(blocks, 1)};
    check_sequences(sequences, queries.tokens, pages);
    const InstructionSet set = instruction_set(isa);
    const nb::gil_scoped_release released;
    fourlane::paged_attention(queries, pages, sequences, scale, out.data(), set);
}

using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutablePages = nb::ndarray<float, nb::ndim<5>, nb::c_contig, nb::device::cpu>;
using MutableNumbers = nb::ndarray<std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using NumberRows = nb::ndarray<std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstNumberRows = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

fourlane::RowsView rows_view(const ConstRows& rows) { return {rows.data(), extent(rows, 0), extent(rows, 1)}; }

fourlane::MutableRowsView mutable_rows_view(const Rows& rows) { return {rows.data(), extent(rows, 0), extent(rows, 1)}; }

// Tell whether all numbers are in 0 .. end - 1.
bool all_below(std::span<const std::int64_t> numbers, std::int64_t end) {
    return std::all_of(numbers.begin(), numbers.end(), [end](std::int64_t n) { return n >= 0 && n < end; });
}

void rms_norm(const ConstRows& x, const Vector& weight, float eps, const Rows& out, const std::string& isa) {
    require(extent(weight, 0) == extent(x, 1), "rms_norm: expected a weight for each column of x");
    require(extent(out, 0) == extent(x, 0) && extent(out, 1) == extent(x, 1), "rms_norm: out is not of the shape of x");
    const InstructionSet set = instruction_set(isa);
    const nb::gil_scoped_release released;
    fourlane::rms_norm(rows_view(x), weight.data(), eps, mutable_rows_view(out), set);
}

void place_heads(const Rows& qkv, const ConstRows& norm, const ConstRows& cos, const ConstRows& sin, float eps,
                 const Numbers& slots, const MutablePages& pages, const std::string& isa) {
    const std::int64_t tokens = extent(qkv, 0);
    const std::int64_t kv_heads = extent(pages, 3);
    const std::int64_t head_dim = extent(pages, 4);
    require(pages.shape(0) == 2 && head_dim >= 2 && head_dim % 2 == 0, "place_heads: expected pages [2, ..., even head dim]");
    const std::int64_t heads = extent(qkv, 1) / head_dim - 2 * kv_heads;
    require(heads >= 1 && extent(qkv, 1) % head_dim == 0, "place_heads: qkv does not belong to pages");
    const bool normed = extent(norm, 0) > 0;
    require(extent(norm, 1) == head_dim && (!normed || extent(norm, 0) == heads + kv_heads),
            "place_heads: norm is neither [heads + kv heads, head dim] of qkv nor [0, head dim]");
    for (const ConstRows& angle : {cos, sin}) {
        require(extent(angle, 0) == tokens && extent(angle, 1) == head_dim, "place_heads: cos, sin are not [tokens, head dim]");
    }
    const std::int64_t places = extent(pages, 1) * extent(pages, 2);
    require(extent(slots, 0) == tokens && all_below(span_of(slots), places), "slots: expected a place in the pages for each token");
    const InstructionSet set = instruction_set(isa);
    const nb::gil_scoped_release released;
    fourlane::place_heads({qkv.data(), tokens, heads, kv_heads, head_dim}, {normed ? norm.data() : nullptr, cos.data(), sin.data(), eps},
                          span_of(slots), pages.data(), pages.data() + places * kv_heads * head_dim, set);
}

void add_gated(const ConstRows& y, const Vector& gate, const Rows& out, const std::string& isa) {
    require(extent(gate, 0) == extent(y, 0), "add_gated: expected a gate for each row of y");
    require(extent(out, 0) == extent(y, 0) && extent(out, 1) == extent(y, 1), "add_gated: out is not of the shape of y");
    const InstructionSet set = instruction_set(isa);
    const nb::gil_scoped_release released;
    fourlane::add_gated(rows_view(y), gate.data(), mutable_rows_view(out), set);
}

void choose_experts(const ConstRows& logits, bool renormalise, const NumberRows& experts, const Rows& weights,
                    const std::string& isa) {
    const std::int64_t top_k = extent(experts, 1);
    require(top_k >= 1 && top_k <= extent(logits, 1), "experts: expected at least 1 and no more than there are logits");
    require(extent(experts, 0) == extent(logits, 0) && extent(weights, 0) == extent(logits, 0) &&
                extent(weights, 1) == top_k,
            "experts, weights: expected [rows of logits, top k]");
    const InstructionSet set = instruction_set(isa);
    const nb::gil_scoped_release released;
    fourlane::choose_experts(rows_view(logits), top_k, renormalise, experts.data(), weights.data(), set);
}

void sort_by_slot(const ConstNumberRows& experts, const Numbers& slot_of, std::int64_t slots, const MutableNumbers& order,
                  const MutableNumbers& rows, const MutableNumbers& counts) {
    const std::span<const std::int64_t> pairs{experts.data(), experts.size()};
    require(extent(counts, 0) == extent(slot_of, 0), "counts: expected one for each expert");
    require(all_below(pairs, extent(slot_of, 0)), "experts: no such expert");
    require(slots >= 0 && all_below(span_of(slot_of), slots), "slots: no such slot");
    require(order.size() == pairs.size() && rows.size() == pairs.size(), "order, rows: expected one for each pair");
    const nb::gil_scoped_release released;
    fourlane::sort_by_slot(pairs, extent(experts, 1), span_of(slot_of), slots, order.data(), rows.data(),
                           {counts.data(), counts.size()});
}

nb::ndarray<nb::numpy, std::int64_t, nb::ndim<1>> join_ranges(const Numbers& firsts, const Numbers& counts) {
    require(firsts.size() == counts.size(), "counts: expected one for each first");
    std::int64_t total = 0;
    for (const std::int64_t count : span_of(counts)) {
        require(count >= 0, "counts: expected none below 0");
        require(!__builtin_add_overflow(total, count, &total), "counts: they add up to too much");
    }
    auto* out = new std::int64_t[static_cast<std::size_t>(total)];
    const nb::capsule owner(out, [](void* data) noexcept { delete[] static_cast<std::int64_t*>(data); });
    fourlane::join_ranges(span_of(firsts), span_of(counts), out);
    return {out, {static_cast<std::size_t>(total)}, owner};
}

void weighted_sum(const ConstRows& y, const Numbers& order, const ConstRows& weights, const Rows& out,
                  const std::string& isa) {
    require(extent(weights, 1) >= 1 && extent(y, 0) == extent(weights, 0) * extent(weights, 1),
            "weighted_sum: y is not a row for each weight");
    require(extent(order, 0) == extent(y, 0) && all_below(span_of(order), extent(y, 0)), "order: expected a pair for each row");
    require(extent(out, 0) == extent(weights, 0) && extent(out, 1) == extent(y, 1), "weighted_sum: out is not [tokens, columns]");
    const InstructionSet set = instruction_set(isa);
    const nb::gil_scoped_release released;
    fourlane::weighted_sum(rows_view(y), span_of(order), rows_view(weights), mutable_rows_view(out), set);
}

using ByteRows = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstByteRows = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require_packed(const auto& x, const auto& packed) {
    require(extent(packed, 0) == extent(x, 0) && extent(packed, 1) == fourlane::float8_row_bytes(extent(x, 1)),
            "packed: expected [rows, columns + 4 bytes for each 128 columns begun] of x");
}

void pack_float8(const ConstRows& x, const ByteRows& packed, const std::string& isa) {
    require_packed(x, packed);
    const InstructionSet set = instruction_set(isa);
    const nb::gil_scoped_release released;
    fourlane::pack_float8(rows_view(x), reinterpret_cast<std::byte*>(packed.data()), set);
}

void unpack_float8(const ConstByteRows& packed, const Rows& x, const std::string& isa) {
    require_packed(x, packed);
    const InstructionSet set = instruction_set(isa);
    const nb::gil_scoped_release released;
    fourlane::unpack_float8(reinterpret_cast<const std::byte*>(packed.data()), mutable_rows_view(x), set);
}

using ConstBytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Cut an array into consecutive parts, one a peer.
template <typename Byte>
std::vector<std::span<Byte>> parts_of(const auto& array, const std::vector<std::size_t>& sizes, std::size_t peers) {
    require(sizes.size() == peers, "sizes: expected one for each peer");
    std::vector<std::span<Byte>> parts;
    std::span<Byte> rest(reinterpret_cast<Byte*>(array.data()), array.shape(0));
    for (const std::size_t size : sizes) {
        require(size <= rest.size(), "sizes: expected them to add up to the array's");
        parts.push_back(rest.first(size));
        rest = rest.subspan(size);
    }
    require(rest.empty(), "sizes: expected them to add up to the array's");
    return parts;
}

std::uint32_t mesh_exchange(fourlane::SocketMesh& mesh, std::uint16_t kind, const ConstBytes& out,
                            const std::vector<std::size_t>& out_sizes, const Bytes& in,
                            const std::vector<std::size_t>& in_sizes) {
    const auto to = parts_of<const std::byte>(out, out_sizes, mesh.peers());
    const auto from = parts_of<std::byte>(in, in_sizes, mesh.peers());
    const nb::gil_scoped_release released;
    return mesh.post(kind, to, from);
}

std::uint32_t mesh_gather(fourlane::SocketMesh& mesh, std::uint16_t kind, const ConstBytes& mine, const Bytes& all) {
    const std::size_t size = mine.shape(0);
    const std::vector<std::size_t> sizes(mesh.peers(), size);
    const auto from = parts_of<std::byte>(all, sizes, mesh.peers());
    const std::vector<std::span<const std::byte>> to(
        mesh.peers(), {reinterpret_cast<const std::byte*>(mine.data()), size});
    const nb::gil_scoped_release released;
    return mesh.post(kind, to, from);
}

using Suspect = std::tuple<int, std::uint64_t, std::uint64_t, std::uint64_t>;

nb::tuple mesh_wait(fourlane::SocketMesh& mesh, std::uint32_t operation, std::int64_t patience_ms, int wake) {
    fourlane::MeshReport report;
    {
        const nb::gil_scoped_release released;
        report = mesh.wait(operation, std::chrono::milliseconds(patience_ms), wake);
    }
    std::vector<Suspect> suspects;
    for (const auto& one : report.suspects) suspects.emplace_back(one.peer, one.received, one.expected, one.unsent);
    return nb::make_tuple(static_cast<int>(report.end), report.error, suspects, report.waited);
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "Native core of fourlane. Not public: every function has a Python face.";
    module.def("crc32c", &checksum<&fourlane::detail::crc32c_hardware>, "data"_a, "seed"_a = 0U,
               "Return the CRC-32C of a contiguous buffer, continuing `seed`; the GIL is released.");
    module.def("crc32c_table", &checksum<&fourlane::detail::crc32c_table>, "data"_a, "seed"_a = 0U,
               "Return the same by table, as on machines without the instruction (for tests).");
    module.def("instruction_sets", &instruction_sets, "Return the kernel builds this CPU can run, best last.");
    module.def("pack_panels", &pack_panels, "weight"_a.noconvert(), "out"_a.noconvert(), "slot"_a, "first"_a, "step"_a,
               "Pack [columns, depth] into panels first, first + step, ... of out[slot] ([slots, panels, depth, 32]).");
    module.def("advise_huge_pages", &advise_huge_pages, "array"_a.noconvert(),
               "Ask for huge pages behind an array not written yet.");
    module.def("linear", &linear, "x"_a.noconvert(), "weight"_a.noconvert(), "out"_a.noconvert(), "isa"_a = "",
               "Compute out[r] = W x[r]; the GIL is released.");
    module.def("expert_ffn", &expert_ffn, "x"_a.noconvert(), "offsets"_a, "gate_up"_a.noconvert(),
               "down"_a.noconvert(), "out"_a.noconvert(), "isa"_a = "",
               "Compute the gated MLP of each slot's rows; the GIL is released.");
    module.def("paged_attention", &paged_attention, "queries"_a.noconvert(), "pages"_a.noconvert(),
               "blocks"_a.noconvert(), "query_start"_a.noconvert(), "context"_a.noconvert(), "scale"_a,
               "out"_a.noconvert(), "isa"_a = "",
               "Compute causal attention of each sequence's last tokens over its pages; the GIL is released.");
    module.def("rms_norm", &rms_norm, "x"_a.noconvert(), "weight"_a.noconvert(), "eps"_a, "out"_a.noconvert(),
               "isa"_a = "", "Compute out[r] = x[r] / rms(x[r]) * weight; the GIL is released.");
    module.def("place_heads", &place_heads, "qkv"_a.noconvert(), "norm"_a.noconvert(), "cos"_a.noconvert(),
               "sin"_a.noconvert(), "eps"_a, "slots"_a.noconvert(), "pages"_a.noconvert(), "isa"_a = "",
               "Norm and rotate query and key heads in place; write keys and values into pages; the GIL is released.");
    module.def("add_gated", &add_gated, "y"_a.noconvert(), "gate"_a.noconvert(), "out"_a.noconvert(), "isa"_a = "",
               "Add y[r] * sigmoid(gate[r]) to out[r]; the GIL is released.");
    module.def("choose_experts", &choose_experts, "logits"_a.noconvert(), "renormalise"_a, "experts"_a.noconvert(),
               "weights"_a.noconvert(), "isa"_a = "", "Write the greatest logits' places and softmax; the GIL is released.");
    module.def("sort_by_slot", &sort_by_slot, "experts"_a.noconvert(), "slot_of"_a.noconvert(), "slots"_a,
               "order"_a.noconvert(), "rows"_a.noconvert(), "counts"_a.noconvert(),
               "Order (token, k) pairs by slot and count each expert's; the GIL is released.");
    module.def("join_ranges", &join_ranges, "firsts"_a.noconvert(), "counts"_a.noconvert(),
               "Return first, first + 1, ... (count of them) of every pair, one after the other.");
    module.def("weighted_sum", &weighted_sum, "y"_a.noconvert(), "order"_a.noconvert(), "weights"_a.noconvert(),
               "out"_a.noconvert(), "isa"_a = "", "Undo sort_by_slot and sum each token's rows; the GIL is released.");
    module.def("pack_float8", &pack_float8, "x"_a.noconvert(), "packed"_a.noconvert(), "isa"_a = "",
               "Write rows as float8 codes with a scale for each 128 behind them; the GIL is released.");
    module.def("unpack_float8", &unpack_float8, "packed"_a.noconvert(), "x"_a.noconvert(), "isa"_a = "",
               "Write packed rows as float32; the GIL is released.");
    nb::class_<fourlane::SocketMesh>(module, "SocketMesh",
                                     "Messages to and from all peers at once, over connected sockets (-1: oneself).")
        .def(nb::init<std::vector<int>>(), "sockets"_a)
        .def("exchange", &mesh_exchange, "kind"_a, "out"_a.noconvert(), "out_sizes"_a, "in_"_a.noconvert(), "in_sizes"_a,
             "Begin an operation that gives each peer its part of `out`; return its number.")
        .def("gather", &mesh_gather, "kind"_a, "mine"_a.noconvert(), "everybody"_a.noconvert(),
             "Begin an operation that gives all of `mine` to each peer; return its number.")
        .def("wait", &mesh_wait, "operation"_a, "patience_ms"_a, "wake"_a = -1,
             "Move bytes until it is through, or the descriptor `wake` is readable; return (end, errno, [(peer, received, "
             "expected, unsent)], waited_s).")
        .def("interrupt", &fourlane::SocketMesh::interrupt, nb::call_guard<nb::gil_scoped_release>(),
             "From any thread: shut the connections down; waits under way, and later ones, end.")
        .def("settle", &fourlane::SocketMesh::settle, nb::call_guard<nb::gil_scoped_release>(),
             "From another thread, after `interrupt`: return when no socket is in use any more.")
        .def_prop_ro("sleeps", &fourlane::SocketMesh::sleeps, "How often `wait` slept.");
    bind_balance(module);
    bind_fabric(module);
    bind_flow_level(module);
    bind_shared_exchange(module);
    bind_split_aware(module);
    bind_token_split(module);
}

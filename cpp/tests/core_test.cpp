// Tests of the native core without Python, mostly so that sanitizers see every path (scripts/sanitize).
// What is right is tested in tests/unit/native; here results are held against plain loops.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "fourlane/crc32c.hpp"
#include "fourlane/float8_rows.hpp"
#include "fourlane/huge_pages.hpp"
#include "fourlane/paged_attention.hpp"
#include "fourlane/panels.hpp"
#include "fourlane/socket_mesh.hpp"
#include "fourlane/token_rows.hpp"

namespace {

using fourlane::InstructionSet;
using fourlane::PackedWeights;
using fourlane::WeightType;

int failures = 0;

void expect(bool condition, const char* what) {
    if (condition) return;
    ++failures;
    std::printf("FAILED: %s\n", what);
}

std::vector<float> random_floats(std::int64_t count, std::uint32_t seed) {
    std::mt19937 generator(seed);
    std::uniform_real_distribution<float> values(-1, 1);
    std::vector<float> result(static_cast<std::size_t>(count));
    for (float& value : result) value = values(generator);
    return result;
}

void crc_meets_its_check_value_and_agrees_at_every_length_and_offset() {
    std::vector<std::byte> data(60'000);
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 7 + (i >> 8));
    const char* digits = "123456789";
    std::vector<std::byte> check(9);
    std::memcpy(check.data(), digits, 9);
    expect(fourlane::crc32c(check) == fourlane::Crc32c{0xe3069283}, "the CRC of 123456789");
    for (std::size_t size : {0UL, 1UL, 7UL, 8UL, 767UL, 768UL, 769UL, 24'576UL, 24'577UL, 59'990UL}) {
        for (std::size_t offset : {0UL, 1UL, 3UL}) {
            const std::span<const std::byte> part(data.data() + offset, size);
            expect(fourlane::detail::crc32c_hardware(part, 5) == fourlane::detail::crc32c_table(part, 5),
                   "both ways of computing a CRC");
        }
    }
}

// A weight as the kernels see it: the float it stands for, and its packed bytes.
struct Weights {
    std::vector<float> plain;
    std::vector<std::byte> packed;
};

Weights make_weights(std::int64_t columns, std::int64_t depth, WeightType type, std::uint32_t seed) {
    Weights weights{random_floats(columns * depth, seed), {}};
    std::vector<std::uint16_t> halves;
    const void* source = weights.plain.data();
    if (type == WeightType::bfloat16) {
        for (float& value : weights.plain) {
            std::uint32_t bits = 0;
            std::memcpy(&bits, &value, 4);
            halves.push_back(static_cast<std::uint16_t>(bits >> 16));
            bits &= 0xffff0000U;
            std::memcpy(&value, &bits, 4);
        }
        source = halves.data();
    }
    const std::int64_t panels = fourlane::panels_for(columns);
    weights.packed.resize(fourlane::size_of(type) * static_cast<std::size_t>(panels * depth * fourlane::kPanelColumns));
    fourlane::pack_panels(source, type, columns, depth, weights.packed.data(), 0, 1);
    return weights;
}

void linear_equals_a_plain_loop(InstructionSet set, WeightType type, std::int64_t rows, std::int64_t columns,
                                std::int64_t depth) {
    const Weights weights = make_weights(columns, depth, type, 1);
    const std::vector<float> x = random_floats(rows * depth, 2);
    std::vector<float> out(static_cast<std::size_t>(rows * columns), NAN);
    fourlane::linear({x.data(), rows, depth}, {weights.packed.data(), type, 1, fourlane::panels_for(columns), depth},
                     {out.data(), rows, columns}, set);
    bool close = true;
    for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = 0; c < columns; ++c) {
            double sum = 0;
            for (std::int64_t k = 0; k < depth; ++k) {
                sum += static_cast<double>(x[static_cast<std::size_t>(r * depth + k)]) *
                       static_cast<double>(weights.plain[static_cast<std::size_t>(c * depth + k)]);
            }
            close = close && std::abs(sum - static_cast<double>(out[static_cast<std::size_t>(r * columns + c)])) < 1e-4;
        }
    }
    expect(close, "linear against a plain loop");
}

// gate = up = down = identity, so that each row becomes silu(x) * x; slots must leave each other's rows alone.
void expert_ffn_computes_each_row_once(InstructionSet set, std::int64_t size) {
    const std::int64_t panels = fourlane::panels_for(size);
    const std::int64_t slots = 3;
    const std::int64_t panel_floats = size * fourlane::kPanelColumns;
    std::vector<float> identity(static_cast<std::size_t>(size * size));
    for (std::int64_t i = 0; i < size; ++i) identity[static_cast<std::size_t>(i * size + i)] = 1;
    std::vector<float> gate_up(static_cast<std::size_t>(slots * 2 * panels * panel_floats));
    std::vector<float> down(static_cast<std::size_t>(slots * panels * panel_floats));
    for (std::int64_t slot = 0; slot < slots; ++slot) {
        float* pair = gate_up.data() + slot * 2 * panels * panel_floats;
        fourlane::pack_panels(identity.data(), WeightType::float32, size, size, pair, 0, 2);
        fourlane::pack_panels(identity.data(), WeightType::float32, size, size, pair, 1, 2);
        fourlane::pack_panels(identity.data(), WeightType::float32, size, size,
                              down.data() + slot * panels * panel_floats, 0, 1);
    }
    const std::vector<std::int64_t> offsets{0, 1, 1, 120};
    const std::vector<float> x = random_floats(120 * size, 3);
    std::vector<float> out(x.size(), NAN);
    fourlane::expert_ffn({x.data(), 120, size}, offsets, {gate_up.data(), WeightType::float32, slots, 2 * panels, size},
                         {down.data(), WeightType::float32, slots, panels, size}, {out.data(), 120, size}, set);
    bool close = true;
    for (std::size_t i = 0; i < x.size(); ++i) {
        const double value = static_cast<double>(x[i]);
        close = close && std::abs(value * value / (1 + std::exp(-value)) - static_cast<double>(out[i])) < 1e-6;
    }
    expect(close, "expert_ffn with identities");
}

// All values of V equal, so that attention gives them back whatever the weights are; pages lie in reverse order.
void paged_attention_averages_values(InstructionSet set, std::int64_t head_dim, std::int64_t block_size) {
    const std::int64_t context_tokens = 77;
    const std::int64_t blocks = (context_tokens + block_size - 1) / block_size;
    const std::int64_t page_floats = blocks * block_size * 2 * head_dim;
    const std::vector<float> keys = random_floats(page_floats, 4);
    const std::vector<float> values(static_cast<std::size_t>(page_floats), 0.25F);
    const std::vector<float> queries = random_floats(31 * 4 * head_dim, 5);
    std::vector<std::int32_t> table;
    for (std::int64_t row = 0; row < 2; ++row) {
        for (std::int64_t b = blocks; b-- > 0;) table.push_back(static_cast<std::int32_t>(b));
    }
    const std::vector<std::int64_t> query_start{0, 30, 31};
    const std::vector<std::int64_t> context{context_tokens, 1};
    std::vector<float> out(queries.size(), NAN);
    fourlane::paged_attention({queries.data(), 31, 4, 4 * head_dim},
                              {keys.data(), values.data(), blocks, block_size, 2, head_dim},
                              {query_start, context, table.data(), blocks}, 0.2F, out.data(), set);
    bool close = true;
    for (const float value : out) close = close && std::abs(value - 0.25F) < 1e-6F;
    expect(close, "paged attention over equal values");
}

// Rows that went out by slot and come back unchanged sum up to themselves, as the weights sum up to 1.
void rows_come_back_to_their_tokens(InstructionSet set, std::int64_t columns) {
    const std::int64_t tokens = 9;
    const std::int64_t experts = 5;
    const std::int64_t top_k = 3;
    const auto pairs = static_cast<std::size_t>(tokens * top_k);
    const std::vector<float> logits = random_floats(tokens * experts, 6);
    const std::vector<float> x = random_floats(tokens * columns, 7);
    std::vector<std::int64_t> chosen(pairs);
    std::vector<float> weights(pairs);
    fourlane::choose_experts({logits.data(), tokens, experts}, top_k, true, chosen.data(), weights.data(), set);
    const std::vector<std::int64_t> slot_of{6, 0, 3, 1, 2};
    std::vector<std::int64_t> order(pairs);
    std::vector<std::int64_t> rows(pairs);
    std::vector<std::int64_t> counts(static_cast<std::size_t>(experts));
    fourlane::sort_by_slot(chosen, top_k, slot_of, 7, order.data(), rows.data(), counts);
    std::vector<float> sent;
    for (const std::int64_t row : rows) sent.insert(sent.end(), x.begin() + row * columns, x.begin() + (row + 1) * columns);
    std::vector<float> back(x.size(), NAN);
    fourlane::weighted_sum({sent.data(), tokens * top_k, columns}, order, {weights.data(), tokens, top_k},
                           {back.data(), tokens, columns}, set);
    bool close = true;
    for (std::size_t i = 0; i < x.size(); ++i) close = close && std::abs(back[i] - x[i]) < 1e-6F;
    expect(close, "rows come back to their tokens");
}

// Turned by no angle and normed with weights of 1, heads keep their direction and have a mean square of 1.
void heads_are_normed_and_placed(InstructionSet set, std::int64_t head_dim) {
    const std::int64_t tokens = 2;
    std::vector<float> qkv = random_floats(tokens * 5 * head_dim, 8);  // 3 query, 1 key, 1 value heads
    const std::vector<float> ones(static_cast<std::size_t>(4 * head_dim), 1.0F);
    const std::vector<float> zeros(static_cast<std::size_t>(tokens * head_dim), 0.0F);
    const std::vector<std::int64_t> slots{2, 0};
    std::vector<float> keys(static_cast<std::size_t>(3 * head_dim), NAN);
    std::vector<float> values(keys);
    const float eps = 1e-6F;
    std::vector<float> normed(qkv.size());
    fourlane::rms_norm({qkv.data(), tokens * 5, head_dim}, ones.data(), eps, {normed.data(), tokens * 5, head_dim}, set);
    fourlane::place_heads({qkv.data(), tokens, 3, 1, head_dim}, {ones.data(), ones.data(), zeros.data(), eps}, slots,
                          keys.data(), values.data(), set);
    bool equal = true;
    for (std::int64_t i = 0; i < head_dim; ++i) {
        const auto at = [&](std::int64_t row) { return static_cast<std::size_t>(row * head_dim + i); };
        equal = equal && keys[at(2)] == normed[at(3)] && keys[at(0)] == normed[at(8)] && std::isnan(keys[at(1)]);
        equal = equal && values[at(2)] == qkv[at(4)] && values[at(0)] == qkv[at(9)] && qkv[at(0)] == normed[at(0)];
    }
    expect(equal, "heads are normed and placed");
}

// Turned by a quarter without norms, heads' halves change places; gated rows are added.
void heads_are_rotated_and_gated_rows_added(InstructionSet set, std::int64_t head_dim) {
    std::vector<float> qkv = random_floats(3 * head_dim, 9);
    const std::vector<float> before(qkv), cos(static_cast<std::size_t>(head_dim), 0.0F);
    std::vector<float> sin(cos);
    for (std::int64_t i = 0; i < head_dim; ++i) sin[static_cast<std::size_t>(i)] = i < head_dim / 2 ? -1.0F : 1.0F;
    const std::vector<std::int64_t> slots{0};
    std::vector<float> keys(static_cast<std::size_t>(head_dim)), values(keys);
    fourlane::place_heads({qkv.data(), 1, 1, 1, head_dim}, {nullptr, cos.data(), sin.data(), 1e-6F}, slots, keys.data(),
                          values.data(), set);
    bool equal = true;
    for (std::int64_t i = 0; i < head_dim / 2; ++i) {
        const auto at = [&](std::int64_t row, std::int64_t dim) { return static_cast<std::size_t>(row * head_dim + dim); };
        equal = equal && qkv[at(0, i)] == -before[at(0, head_dim / 2 + i)] && qkv[at(0, head_dim / 2 + i)] == before[at(0, i)];
        equal = equal && keys[at(0, i)] == -before[at(1, head_dim / 2 + i)] && values[at(0, i)] == before[at(2, i)];
    }
    expect(equal, "heads without norms are rotated");
    const std::vector<float> gates{0.0F, 90.0F, -90.0F};
    std::vector<float> out(before.size(), 1.0F);
    fourlane::add_gated({before.data(), 3, head_dim}, gates.data(), {out.data(), 3, head_dim}, set);
    bool added = true;
    for (std::int64_t i = 0; i < head_dim; ++i) {
        const auto at = [&](std::int64_t row) { return static_cast<std::size_t>(row * head_dim + i); };
        added = added && out[at(0)] == 1.0F + 0.5F * before[at(0)] && out[at(1)] == 1.0F + before[at(1)] && out[at(2)] == 1.0F;
    }
    expect(added, "rows are added by the sigmoid of their gates");
}

using fourlane::MeshEnd;
using std::chrono::milliseconds;

struct Pair {
    int ends[2] = {-1, -1};
    Pair() { expect(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "a pair of sockets"); }
    ~Pair() {
        for (const int end : ends) {
            if (end >= 0) ::close(end);
        }
    }
};

// One process of two: sends `sizes` operations' worth of its own byte and checks that the peer's came.
void exchange_all(fourlane::SocketMesh& mesh, std::size_t me, const std::vector<std::size_t>& sizes) {
    for (const std::size_t size : sizes) {
        const std::vector<std::byte> out(size + 1, static_cast<std::byte>(me + 1));
        std::vector<std::byte> in(size), own(1);
        std::vector<std::span<const std::byte>> to(2, {out.data(), size});
        std::vector<std::span<std::byte>> from(2, {in.data(), size});
        to[me] = {out.data(), 1}, from[me] = own;
        const std::uint32_t operation = mesh.post(1, to, from);
        expect(mesh.wait(operation, milliseconds(10'000)).end == MeshEnd::done, "an exchange over sockets");
        const bool all = std::all_of(in.begin(), in.end(), [me](std::byte b) { return b == static_cast<std::byte>(2 - me); });
        expect(all && own[0] == out[0], "the peer's bytes");
    }
}

void a_mesh_moves_messages_of_every_size_both_ways() {
    const Pair pair;
    fourlane::SocketMesh first({-1, pair.ends[0]}), second({pair.ends[1], -1});
    const std::vector<std::size_t> sizes{1, 0, 20, 2048, 2049, 0, 32'769, 3'000'000, 5};
    std::thread other([&] { exchange_all(second, 1, sizes); });
    exchange_all(first, 0, sizes);
    other.join();
}

void a_mesh_names_who_holds_it_up() {
    Pair pair;
    fourlane::SocketMesh mesh({-1, pair.ends[0]});
    std::vector<std::byte> in(100);
    const std::vector<std::span<const std::byte>> to(2);
    const std::vector<std::span<std::byte>> from{{}, in};
    const std::uint32_t operation = mesh.post(7, to, from);
    const auto late = mesh.wait(operation, milliseconds(20));
    expect(late.end == MeshEnd::timed_out && late.suspects.size() == 1 && late.suspects[0].peer == 1, "a peer that is late");
    expect(late.suspects[0].received == 0 && late.suspects[0].expected == 100 + fourlane::kMeshHeaderBytes, "its progress");
    const auto wrong = fourlane::mesh_header(7, operation + 1, 100);
    expect(::write(pair.ends[1], wrong.data(), wrong.size()) == static_cast<ssize_t>(wrong.size()), "writing");
    expect(mesh.wait(operation, milliseconds(1000)).end == MeshEnd::unexpected, "a message of another operation");
    fourlane::SocketMesh again({-1, pair.ends[0]});
    again.post(7, to, from);
    ::close(pair.ends[1]);
    pair.ends[1] = -1;
    const auto gone = again.wait(0, milliseconds(1000));
    expect(gone.end == MeshEnd::closed && gone.suspects.size() == 1, "a peer that closed");
}

void a_mesh_ends_its_wait_when_another_thread_leaves() {
    Pair pair;
    fourlane::SocketMesh mesh({-1, pair.ends[0]});
    std::vector<std::byte> in(100);
    const std::vector<std::span<const std::byte>> to(2);
    const std::vector<std::span<std::byte>> from{{}, in};
    const std::uint32_t operation = mesh.post(1, to, from);
    std::thread other([&] {
        std::this_thread::sleep_for(milliseconds(30));
        mesh.interrupt();
        mesh.settle();
        ::close(pair.ends[0]);
        pair.ends[0] = -1;
    });
    const auto end = mesh.wait(operation, milliseconds(10'000));
    expect(end.end == MeshEnd::left && end.suspects.size() == 1, "a wait that another thread ends");
    expect(end.waited[0] == 0 && end.waited[1] > 0.01, "who was waited for");
    other.join();
    mesh.post(1, to, from);  // touches no socket any more
    expect(mesh.wait(operation + 1, milliseconds(10'000)).end == MeshEnd::left, "a wait after leaving");
}

void float8_rows_keep_their_bound(InstructionSet set, std::int64_t columns) {
    const std::int64_t rows = 3;
    const std::vector<float> x = random_floats(rows * columns, 5);
    // Exactly as much room as is needed, and at an odd address: whatever is touched beyond is seen.
    const auto bytes = static_cast<std::size_t>(rows * fourlane::float8_row_bytes(columns));
    std::vector<std::byte> packed(bytes + 1);
    std::vector<float> again(x.size());
    fourlane::pack_float8({x.data(), rows, columns}, packed.data() + 1, set);
    fourlane::unpack_float8(packed.data() + 1, {again.data(), rows, columns}, set);
    for (std::size_t i = 0; i < x.size(); ++i) {
        expect(std::abs(again[i] - x[i]) <= std::max(std::abs(x[i]) / 16, std::ldexp(1.0F, -18)), "a float8 element's bound");
    }
}

}  // namespace

int main() {
    a_mesh_moves_messages_of_every_size_both_ways();
    a_mesh_names_who_holds_it_up();
    a_mesh_ends_its_wait_when_another_thread_leaves();
    crc_meets_its_check_value_and_agrees_at_every_length_and_offset();
    for (const InstructionSet set : {InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512}) {
        if (!fourlane::is_supported(set)) continue;
        for (const WeightType type : {WeightType::float32, WeightType::bfloat16}) {
            for (const std::int64_t rows : {0, 1, 2, 5, 13, 100}) {
                linear_equals_a_plain_loop(set, type, rows, 32, 8);
                linear_equals_a_plain_loop(set, type, rows, 161, 33);
            }
        }
        for (const std::int64_t head_dim : {1, 16, 33, 128}) {
            paged_attention_averages_values(set, head_dim, 16);
            paged_attention_averages_values(set, head_dim, 1);
            paged_attention_averages_values(set, head_dim, 256);
        }
        for (const std::int64_t columns : {1, 16, 37}) {
            rows_come_back_to_their_tokens(set, columns);
            heads_are_normed_and_placed(set, 2 * columns);
            float8_rows_keep_their_bound(set, columns);
            float8_rows_keep_their_bound(set, 128 + columns);
            heads_are_rotated_and_gated_rows_added(set, 2 * columns);
        }
        expert_ffn_computes_each_row_once(set, 1);
        expert_ffn_computes_each_row_once(set, 45);
        expert_ffn_computes_each_row_once(set, 64);
    }
    std::vector<std::byte> pages(3 << 20);
    fourlane::advise_huge_pages(pages.data(), pages.size());
    std::printf(failures == 0 ? "all passed\n" : "%d failed\n", failures);
    return failures == 0 ? 0 : 1;
}

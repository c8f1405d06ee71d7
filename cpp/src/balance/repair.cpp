// Come from a previous placement to a better one without moving more than needs be.
#include "repair.hpp"

#include <algorithm>
#include <tuple>
#include <utility>

#include "layout.hpp"
#include "pair_counts.hpp"

namespace fourlane::balance {

namespace {

std::size_t at(std::int32_t index) { return static_cast<std::size_t>(index); }

std::vector<std::int32_t> counts_of(const PlacementTask& task, std::span<const std::int32_t> expert_P) {
    std::vector<std::int32_t> copies_E(static_cast<std::size_t>(task.cost.experts));
    for (const std::int32_t expert : expert_P) {
        if (expert >= 0) ++copies_E[at(expert)];
    }
    return copies_E;
}

// How many experts each rank of a placement shares with each of the previous one, [new rank][old rank].
std::vector<std::int32_t> overlaps(const PlacementTask& task, std::span<const std::int32_t> expert_P) {
    const Origin origin(task);
    std::vector<std::int32_t> shared(at(task.ranks) * at(task.ranks));
    for (std::int32_t slot = 0; slot < task.ranks * task.slots_per_rank; ++slot) {
        if (expert_P[at(slot)] < 0) continue;
        for (std::int32_t old = 0; old < task.ranks; ++old) {
            shared[at(slot / task.slots_per_rank) * at(task.ranks) + at(old)] += 1 - origin.received(old, expert_P[at(slot)]);
        }
    }
    return shared;
}

// Within a unit of ranks any rank may take any other's name; a unit of one is the whole placement.
std::int32_t region(const PlacementTask& task) { return task.ranks_per_unit == 1 ? task.ranks : task.ranks_per_unit; }

// Give each rank an old name: those that share most first, then exchanges of names that share more.
std::vector<std::int32_t> names(const PlacementTask& task, std::span<const std::int32_t> shared) {
    const std::int32_t size = region(task);
    const auto of = [&](std::int32_t rank, std::int32_t old) { return shared[at(rank) * at(task.ranks) + at(old)]; };
    std::vector<std::int32_t> name(at(task.ranks), -1);
    std::vector<bool> taken(at(task.ranks));
    std::vector<std::tuple<std::int32_t, std::int32_t, std::int32_t>> pairs;
    for (std::int32_t rank = 0; rank < task.ranks; ++rank) {
        for (std::int32_t old = rank / size * size; old < (rank / size + 1) * size; ++old) {
            pairs.emplace_back(-of(rank, old), rank, old);
        }
    }
    std::sort(pairs.begin(), pairs.end());
    for (const auto& [minus, rank, old] : pairs) {
        if (name[at(rank)] >= 0 || taken[at(old)]) continue;
        name[at(rank)] = old;
        taken[at(old)] = true;
    }
    for (bool better = true; better;) {
        better = false;
        for (std::int32_t a = 0; a < task.ranks; ++a) {
            for (std::int32_t b = a + 1; b < (a / size + 1) * size; ++b) {
                if (of(a, name[at(b)]) + of(b, name[at(a)]) <= of(a, name[at(a)]) + of(b, name[at(b)])) continue;
                std::swap(name[at(a)], name[at(b)]);
                better = true;
            }
        }
    }
    return name;
}

// Exchange experts as long as fewer are received for it and no rank costs more than `most`.
void move_back(const PlacementTask& task, const Origin& origin, std::int64_t most, std::span<std::int32_t> expert_P) {
    Layout layout(task);
    layout.load(expert_P);
    const auto received = [&](std::int32_t rank, std::int32_t slot) { return origin.received(rank, layout.expert(slot)); };
    for (bool better = true; better;) {
        better = false;
        for (std::int32_t slot = 0; slot < layout.slots(); ++slot) {
            for (std::int32_t other = 0; other < layout.slots(); ++other) {
                const std::int32_t rank = layout.rank_of(slot), there = layout.rank_of(other);
                if (received(rank, slot) == 0) break;
                if (received(there, slot) + received(rank, other) >= 1 + received(there, other)) continue;
                const Cost more = layout.value(other) - layout.value(slot);
                if (layout.load_of(rank) + more > most || layout.load_of(there) - more > most) continue;
                if (!layout.may_exchange(slot, other)) continue;
                layout.exchange(slot, other);
                better = true;
            }
        }
    }
    layout.store(expert_P);
}

// Two slots a rank: the least cost above the one found from nothing that the moves suffice for, with its counts or with the
// previous ones changed as little as need be.
bool repair_pairs(const PlacementTask& task, std::span<const std::int32_t> fresh_P, std::int64_t fresh, std::int64_t before,
                  std::span<std::int32_t> expert_P) {
    const Origin origin(task);
    const std::vector<std::int32_t> old_E = counts_of(task, task.previous_P), fresh_E = counts_of(task, fresh_P);
    for (std::int64_t part = 1; part <= 24; ++part) {
        const std::int64_t most = fresh + fresh * part * part / 2048;
        if (most >= before) return false;
        for (const bool from_old : {true, false}) {
            std::vector<std::int32_t> copies_E = from_old ? old_E : fresh_E;
            PairCounts counts(task.cost, std::int64_t{task.ranks} * 2, copies_E, task.seed);
            if (!counts.come_near(most, old_E, from_old ? task.steps / 32 : 0)) continue;
            if (!PairRepair(task, copies_E).within(most, expert_P)) continue;
            move_back(task, origin, most, expert_P);
            if (origin.received(expert_P) <= task.moves) return true;
        }
    }
    return false;
}

}  // namespace

void rename_for(const PlacementTask& task, std::span<std::int32_t> expert_P) {
    const std::vector<std::int32_t> name = names(task, overlaps(task, expert_P));
    const std::vector<std::int32_t> given(expert_P.begin(), expert_P.end());
    for (std::int32_t rank = 0; rank < task.ranks; ++rank) {
        std::copy_n(given.begin() + rank * task.slots_per_rank, task.slots_per_rank,
                    expert_P.begin() + name[at(rank)] * task.slots_per_rank);
    }
}

void keep_slots(const PlacementTask& task, std::span<std::int32_t> expert_P) {
    const auto width = at(task.slots_per_rank);
    for (std::size_t first = 0; first < expert_P.size(); first += width) {
        const auto now = expert_P.subspan(first, width);
        const auto before = task.previous_P.subspan(first, width);
        for (std::size_t slot = 0; slot < width; ++slot) {
            if (before[slot] < 0) continue;
            const auto found = std::find(now.begin(), now.end(), before[slot]);
            if (found != now.end()) std::swap(*found, now[slot]);
        }
    }
}

std::int64_t repair(const PlacementTask& task, std::span<const std::int32_t> fresh_P, std::span<std::int32_t> expert_P) {
    const Origin origin(task);
    Layout layout(task);
    layout.load(fresh_P);
    const Cost fresh = layout.greatest();
    layout.load(task.previous_P);
    const Cost before = layout.greatest();
    Search(layout, task.steps, origin, task.moves).descend(task.good_enough);
    if (task.slots_per_rank == 2 && repair_pairs(task, fresh_P, fresh, before, expert_P)) {
        Layout paired(task);
        paired.load(expert_P);
        Search(paired, task.steps, origin, task.moves - origin.received(expert_P)).descend(task.good_enough);
        if (paired.greatest() < layout.greatest()) layout = paired;
    }
    layout.store(expert_P);
    return layout.greatest();
}

}  // namespace fourlane::balance

// Level a few batches over a layout that changes, all at once: what a batch is to `Levelling`, a block of them is here.
//
// Arrays are [slots or ranks or experts][kLanes], a batch in each lane; the loops over lanes become vector instructions.
// Every lane does its operations in the same order whatever the vectors' width, so results do not depend on it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "split_layout.hpp"

namespace fourlane::balance {

inline constexpr std::size_t kLanes = 8;
using Lanes = std::array<float, kLanes>;

struct SplitBlock {
    std::vector<Lanes> quota_P;
    std::vector<Lanes> load_G;
    Lanes worst{};  // each batch's fullest rank
};

class BlockLeveller {
public:
    explicit BlockLeveller(const SplitLayout& layout) : layout_(layout), height_(static_cast<std::size_t>(layout.most())) {}

    // Share an expert's load out over its replicas so that their ranks stand as level as they can.
    void level(std::int32_t expert, const Lanes& total, SplitBlock& block) {
        const std::span<const std::int32_t> slots = layout_.slots_of(expert);
        if (slots.size() == 1) {
            level_one(total, quota(block, slots[0]), load(block, slots[0]));
        } else if (slots.size() == 2) {
            level_pair(total, quota(block, slots[0]), quota(block, slots[1]), load(block, slots[0]), load(block, slots[1]));
        } else if (!slots.empty()) {
            level_many(total, slots, block);
        }
    }

    // Take what a slot has out of its rank.
    void take_out(std::int32_t slot, SplitBlock& block) const {
        Lanes& taken = quota(block, slot);
        Lanes& height = load(block, slot);
        for (std::size_t i = 0; i < kLanes; ++i) height[i] -= taken[i];
        taken.fill(0.0F);
    }

    void find_worst(SplitBlock& block) const {
        Lanes worst = block.load_G[0];
        for (const Lanes& load : block.load_G) {
            for (std::size_t i = 0; i < kLanes; ++i) worst[i] = load[i] > worst[i] ? load[i] : worst[i];
        }
        block.worst = worst;
    }

private:
    static Lanes& quota(SplitBlock& block, std::int32_t slot) { return block.quota_P[static_cast<std::size_t>(slot)]; }
    Lanes& load(SplitBlock& block, std::int32_t slot) const {
        return block.load_G[static_cast<std::size_t>(layout_.rank_of(slot))];
    }

    static void level_one(const Lanes& total, Lanes& quota, Lanes& load) {
        for (std::size_t i = 0; i < kLanes; ++i) load[i] += total[i] - quota[i];
        quota = total;
    }

    static void level_pair(const Lanes& total, Lanes& __restrict quota, Lanes& __restrict other_quota,
                           Lanes& __restrict load, Lanes& __restrict other_load) {
        for (std::size_t i = 0; i < kLanes; ++i) {
            const float height = load[i] - quota[i];
            const float other = other_load[i] - other_quota[i];
            float share = 0.5F * (total[i] + other - height);
            share = share < 0.0F ? 0.0F : share;
            share = share > total[i] ? total[i] : share;
            quota[i] = share;
            other_quota[i] = total[i] - share;
            load[i] = height + share;
            other_load[i] = other + other_quota[i];
        }
    }

    // The water's height from the mean of all vessels down: those that stand above it get nothing and are left out.
    void level_many(const Lanes& total, std::span<const std::int32_t> slots, SplitBlock& block) {
        Lanes water = total;
        for (std::size_t j = 0; j < slots.size(); ++j) {
            const Lanes& own = quota(block, slots[j]);
            const Lanes& all = load(block, slots[j]);
            for (std::size_t i = 0; i < kLanes; ++i) {
                height_[j][i] = all[i] - own[i];
                water[i] += height_[j][i];
            }
        }
        for (std::size_t i = 0; i < kLanes; ++i) water[i] /= static_cast<float>(slots.size());
        for (std::size_t turn = 1; turn < slots.size() && sink(total, slots.size(), water); ++turn) {}
        for (std::size_t j = 0; j < slots.size(); ++j) {
            Lanes& own = quota(block, slots[j]);
            Lanes& all = load(block, slots[j]);
            for (std::size_t i = 0; i < kLanes; ++i) {
                const float share = water[i] - height_[j][i];
                own[i] = share < 0.0F ? 0.0F : share;
                all[i] = height_[j][i] + own[i];
            }
        }
    }

    // Let the water sink to the mean of the vessels below it; false where it stays.
    bool sink(const Lanes& total, std::size_t vessels, Lanes& water) const {
        Lanes sum = total;
        Lanes below{};
        for (std::size_t j = 0; j < vessels; ++j) {
            for (std::size_t i = 0; i < kLanes; ++i) {
                const float wet = height_[j][i] <= water[i] ? 1.0F : 0.0F;
                sum[i] += wet * height_[j][i];
                below[i] += wet;
            }
        }
        float sunk = 0.0F;
        for (std::size_t i = 0; i < kLanes; ++i) {
            const float height = below[i] > 0.0F ? sum[i] / below[i] : water[i];
            sunk += static_cast<float>(water[i] - height > 0.001F);
            water[i] = height;
        }
        return sunk > 0.0F;
    }

    const SplitLayout& layout_;
    std::vector<Lanes> height_;
};

}  // namespace fourlane::balance

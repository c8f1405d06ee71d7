// Pending events in their total order (time, kind, id).
//
// A wheel of buckets, each a few picoseconds wide, holds what is near; a heap holds what is far. A key is one 64-bit
// word: the time's low 30 bits, the kind, the id. That orders keys within a bucket, because a bucket never crosses a
// multiple of 2^30 ps; the bucket's own number gives the rest of the time. Keys of a bucket lie together in chunks of
// one cache line and are sorted only when the wheel comes to them, so that an event costs two or three cache lines
// however many are pending.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "fourlane/huge_pages.hpp"
#include "quantities.hpp"

namespace fourlane::fabric {

enum class EventKind : std::uint32_t { epoch, pause, arrive, start, pace, cc_timer, rto, watchdog, transmit, sample };

struct Event {
    Time time;
    EventKind kind;
    std::uint32_t id;
};

inline constexpr std::uint32_t kEventIds = 1U << 30;  // ids stay below

class EventQueue {
public:
    // `reach`: how far ahead most events are scheduled; `width`: about how far apart events are, both in ps.
    EventQueue(Time reach, Time width) {
        const auto wanted = static_cast<std::uint64_t>(std::max<std::int64_t>(width.ps, 1));
        shift_ = static_cast<unsigned>(std::bit_width(wanted)) - 1;
        const auto span = static_cast<std::uint64_t>(std::clamp<std::int64_t>(reach.ps, 1, kSpan / 2));
        while ((span >> shift_) >= kMostBuckets) ++shift_;
        const std::uint64_t buckets = std::max<std::uint64_t>(std::bit_ceil((span >> shift_) + 1), 64);
        mask_ = buckets - 1;
        head_.assign(buckets, kNoChunk);
        filled_.assign(buckets / 64, 0);
        chunks_.reserve(1024);
    }

    bool empty() const { return next_ == current_.size() && count_ == 0 && far_.empty(); }

    // Must not be earlier than the last event taken.
    [[gnu::always_inline]] void push(Time time, EventKind kind, std::uint32_t id) {
        const auto ps = static_cast<std::uint64_t>(time.ps);
        const std::uint64_t low = (static_cast<std::uint64_t>(kind) << 30) | id;
        const std::uint64_t bucket = ps >> shift_;
        const std::uint64_t ahead = bucket - cursor_;
        if (ahead - 1 < mask_) [[likely]] {
            put(bucket & mask_, (ps << 34) | low);
        } else {
            push_elsewhere(ps, low, static_cast<std::int64_t>(ahead) <= 0);
        }
    }

    static constexpr std::size_t kLookAhead = 24;

    // From now on know so many of the next events, where they are close.
    void know(std::size_t events) { known_ = events; }

    // Only where !empty().
    Event pop() {
        if (current_.size() - next_ <= known_) refill();
        const std::uint64_t key = current_[next_++];
        return {{static_cast<std::int64_t>(base_ | (key >> 34))}, kind_of(key), id_of(key)};
    }

    // Tell `visit` the event that comes `distance` events after the last one taken, if that is known.
    template <typename Visit>
    void look_ahead(std::size_t distance, const Visit& visit) const {
        const std::size_t place = next_ + distance - 1;
        if (place < current_.size()) visit(kind_of(current_[place]), id_of(current_[place]));
    }

private:
    static constexpr std::uint64_t kSpan = 1ULL << 30;  // ps that a key tells apart
    static constexpr std::uint64_t kMostBuckets = 1ULL << 17;
    static constexpr std::uint32_t kNoChunk = ~0U;
    static constexpr std::uint32_t kChunkKeys = 7;
    static constexpr std::size_t kCompact = 64;  // keys taken before their room is used again

    struct alignas(64) Chunk {
        std::uint32_t count;
        std::uint32_t older;  // chunk of the same bucket; or the next free one
        std::uint64_t keys[kChunkKeys];
    };
    struct Far {
        std::uint64_t ps;
        std::uint64_t low;
    };

    static EventKind kind_of(std::uint64_t key) { return static_cast<EventKind>((key >> 30) & 15); }
    static std::uint32_t id_of(std::uint64_t key) { return static_cast<std::uint32_t>(key & (kEventIds - 1)); }

    static bool later(const Far& a, const Far& b) { return a.ps != b.ps ? a.ps > b.ps : a.low > b.low; }

    [[gnu::noinline]] void push_elsewhere(std::uint64_t ps, std::uint64_t low, bool now) {
        if (now) return put_in_current((ps << 34) | low);
        far_.push_back({ps, low});
        std::push_heap(far_.begin(), far_.end(), later);
    }

    [[gnu::always_inline]] void put(std::uint64_t place, std::uint64_t key) {
        ++count_;
        const std::uint32_t chunk = head_[place];
        if (chunk == kNoChunk || chunks_[chunk].count == kChunkKeys) return put_in_new(place, chunk, key);
        Chunk& to = chunks_[chunk];
        to.keys[to.count++] = key;
    }

    [[gnu::noinline]] void put_in_new(std::uint64_t place, std::uint32_t older, std::uint64_t key) {
        if (free_ == kNoChunk) add_chunk();
        const std::uint32_t chunk = free_;
        Chunk& to = chunks_[chunk];
        free_ = to.older;
        filled_[place / 64] |= 1ULL << (place % 64);
        head_[place] = chunk;
        to.count = 1;
        to.older = older;
        to.keys[0] = key;
    }

    [[gnu::noinline]] void add_chunk() {
        free_ = static_cast<std::uint32_t>(chunks_.size());
        chunks_.emplace_back();
        chunks_.back().older = kNoChunk;
    }

    void put_in_current(std::uint64_t key) {
        const auto from = current_.begin() + static_cast<std::ptrdiff_t>(next_);
        if (from == current_.end() || current_.back() < key) {
            current_.push_back(key);
        } else {
            current_.insert(std::lower_bound(from, current_.end(), key), key);
        }
    }

    // Add to the sorted keys what comes next: some bucket where there are none left, and more of those close behind.
    void refill() {
        if (next_ == current_.size()) {
            current_.clear();
            next_ = 0;
            take_bucket(count_ != 0 ? next_filled() : far_.front().ps >> shift_);
        } else if (next_ >= kCompact) {
            current_.erase(current_.begin(), current_.begin() + static_cast<std::ptrdiff_t>(next_));
            next_ = 0;
        }
        while (count_ != 0 && current_.size() - next_ <= known_) {
            const std::uint64_t bucket = next_filled_near();
            if (bucket == 0) break;
            take_bucket(bucket);
        }
    }

    void take_bucket(std::uint64_t bucket) {
        go_to(bucket);
        if (!far_.empty()) fetch_near();
        const std::uint64_t place = bucket & mask_;
        const std::uint32_t newest = head_[place];
        if (newest == kNoChunk) return;  // all of it came from afar
        head_[place] = kNoChunk;
        filled_[place / 64] &= ~(1ULL << (place % 64));
        take_keys(newest);
    }

    void go_to(std::uint64_t bucket) {
        cursor_ = bucket;
        base_ = (bucket << shift_) & ~(kSpan - 1);
    }

    std::uint64_t next_filled() const {
        const std::uint64_t start = (cursor_ + 1) & mask_;
        std::uint64_t word = start / 64;
        std::uint64_t bits = filled_[word] & (~0ULL << (start % 64));
        while (bits == 0) {
            word = (word + 1) & (mask_ / 64);
            bits = filled_[word];
        }
        const std::uint64_t place = word * 64 + static_cast<std::uint64_t>(std::countr_zero(bits));
        return cursor_ + 1 + ((place - start) & mask_);
    }

    // The next bucket with events if it is close and of the same 2^30 ps; else 0.
    std::uint64_t next_filled_near() const {
        const std::uint64_t start = cursor_ + 1;
        const std::uint64_t word = (start & mask_) / 64;
        std::uint64_t bits = filled_[word] >> (start % 64);
        std::uint64_t bucket = start;
        if (bits == 0) {
            bits = filled_[(word + 1) & (mask_ / 64)];
            bucket = (start | 63) + 1;
        }
        if (bits == 0) return 0;
        bucket += static_cast<std::uint64_t>(std::countr_zero(bits));
        const bool same_span = ((bucket << shift_) & ~(kSpan - 1)) == base_;
        return same_span && bucket - cursor_ <= mask_ ? bucket : 0;
    }

    void fetch_near() {
        while (!far_.empty() && (far_.front().ps >> shift_) - cursor_ <= mask_) {
            std::pop_heap(far_.begin(), far_.end(), later);
            const Far event = far_.back();
            far_.pop_back();
            const std::uint64_t bucket = event.ps >> shift_;
            const std::uint64_t key = (event.ps << 34) | event.low;
            bucket == cursor_ ? put_in_current(key) : put(bucket & mask_, key);
        }
    }

    // Add a bucket's keys, oldest first, to the sorted ones. Keys are mostly pushed in order.
    void take_keys(std::uint32_t newest) {
        const std::size_t before = current_.size();
        if (chunks_[newest].older == kNoChunk) return take_chunk(newest, before);
        std::size_t total = before;
        for (std::uint32_t chunk = newest; chunk != kNoChunk; chunk = chunks_[chunk].older) total += chunks_[chunk].count;
        count_ -= total - before;
        current_.resize(total);
        std::size_t end = total;
        for (std::uint32_t chunk = newest; chunk != kNoChunk;) {
            Chunk& from = chunks_[chunk];
            end -= from.count;
            std::copy_n(from.keys, from.count, current_.data() + end);
            const std::uint32_t older = from.older;
            from.older = free_;
            free_ = chunk;
            chunk = older;
        }
        if (total - before <= 24) return insertion_sort(before);
        std::sort(current_.begin() + static_cast<std::ptrdiff_t>(before), current_.end());
    }

    // The usual case: a bucket of one chunk.
    void take_chunk(std::uint32_t chunk, std::size_t before) {
        Chunk& from = chunks_[chunk];
        count_ -= from.count;
        current_.insert(current_.end(), from.keys, from.keys + from.count);
        from.older = free_;
        free_ = chunk;
        insertion_sort(before);
    }

    void insertion_sort(std::size_t from) {
        std::uint64_t* keys = current_.data();
        for (std::size_t i = from + 1; i < current_.size(); ++i) {
            const std::uint64_t key = keys[i];
            std::size_t j = i;
            for (; j > from && keys[j - 1] > key; --j) keys[j] = keys[j - 1];
            keys[j] = key;
        }
    }

    unsigned shift_ = 0;
    std::uint64_t mask_ = 0;      // buckets - 1
    std::uint64_t cursor_ = 0;    // number of the bucket being worked off
    std::uint64_t base_ = 0;      // its time without the low 30 bits
    std::uint64_t count_ = 0;     // keys in the wheel
    std::size_t next_ = 0;        // place in current_
    std::size_t known_ = 0;       // events wanted in current_
    std::vector<std::uint64_t> current_;  // sorted keys of the bucket being worked off
    std::vector<std::uint32_t> head_;     // newest chunk of each bucket
    std::vector<std::uint64_t> filled_;   // a bit for each bucket
    std::uint32_t free_ = kNoChunk;
    HugeVector<Chunk> chunks_;
    std::vector<Far> far_;
};

}  // namespace fourlane::fabric

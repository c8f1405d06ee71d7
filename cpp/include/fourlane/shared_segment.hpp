// The memory of one rank that the other ranks of its host write to and read from.
//
// Anonymous (a memfd): it has no name anywhere, so nothing is left behind whoever dies, and no limit of a mounted
// file system applies. As large as addresses allow and empty: a page takes memory when it is first written, so
// buffers grow without anybody having to map them again. Sealed at its size: no access to it can fault.
//
//     head      what it is; constant
//     flags     a cache line pair each
//     gather    4 slots: what this rank gives to all; written by it, read by the others
//     received  2 buffers: rows for this rank's experts; written by the others
//     output    2 buffers: what became of these rows; written by this rank, read by the others
//     parts     2 buffers: of the plain all-to-all; written by the others
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace fourlane {

inline constexpr std::uint32_t kSegmentVersion = 1;
inline constexpr std::size_t kGatherSlots = 4;
inline constexpr std::size_t kBuffers = 2;

// Counts upwards; whoever sees a value sees what was written before it was set. Two cache lines, as they are fetched.
struct alignas(128) SharedFlag {
    std::atomic<std::uint64_t> value;
    std::atomic<std::uint64_t> bytes[kBuffers];  // of what is in each buffer, where ranks could disagree
};

// Where a rank sleeps: it says for whom, and is woken by that rank only.
struct alignas(128) SharedBell {
    std::atomic<std::uint32_t> rings;
    std::atomic<std::uint32_t> awaited;  // 1 + rank, 0: nobody
    std::atomic<std::uint32_t> core;     // 1 + the core it was on when it last waited
};

static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free,
              "atomics between processes must not lock");

// What precedes the bytes of a gather slot.
struct alignas(128) GatherHeader {
    std::uint64_t bytes;
    std::uint32_t kind;
};

struct SegmentShape {
    std::uint32_t ranks;
    std::uint64_t gather_bytes;  // room in a gather slot
    std::uint64_t buffer_bytes;  // room in each of the other buffers
};

class SharedSegment {
public:
    // Make an empty one. Throws std::system_error.
    static std::shared_ptr<SharedSegment> make(const SegmentShape& shape);

    // Map one that another process has made; the descriptor can be closed afterwards. Throws std::system_error, or
    // std::runtime_error if it is no such segment or not for so many ranks.
    static std::shared_ptr<SharedSegment> map(int descriptor, std::uint32_t ranks);

    ~SharedSegment();
    SharedSegment(const SharedSegment&) = delete;
    SharedSegment& operator=(const SharedSegment&) = delete;

    // To hand over; -1 unless made here and not closed yet.
    int descriptor() const { return descriptor_; }
    void close_descriptor();

    const SegmentShape& shape() const { return shape_; }
    SharedBell& bell() const { return *at<SharedBell>(kHeadBytes); }
    // Operations this rank has given to all.
    SharedFlag& gathered() const { return flag(0); }
    // 1 + the last dispatch whose outputs are in its buffer, or whose rows of a rank are: one flag a buffer, because
    // of two dispatches under way the later may be through first.
    SharedFlag& computed(std::uint64_t dispatch) const { return flag(1 + dispatch % kBuffers); }
    SharedFlag& rows_from(std::size_t rank, std::uint64_t dispatch) const {
        return flag(1 + kBuffers * (1 + rank) + dispatch % kBuffers);
    }
    // Plain all-to-alls of which a rank's part is here.
    SharedFlag& part_from(std::size_t rank) const { return flag(1 + kBuffers * (1 + std::size_t{shape_.ranks}) + rank); }

    std::byte* gather_slot(std::uint64_t operation) const;  // its header; the bytes follow
    std::byte* received(std::uint64_t dispatch) const { return buffer(dispatch % kBuffers); }
    std::byte* output(std::uint64_t dispatch) const { return buffer(kBuffers + dispatch % kBuffers); }
    std::byte* parts(std::uint64_t operation) const { return buffer(2 * kBuffers + operation % kBuffers); }

private:
    static constexpr std::size_t kHeadBytes = 4096;

    SharedSegment(int descriptor, const SegmentShape& shape);

    template <typename Thing>
    Thing* at(std::size_t offset) const {
        return reinterpret_cast<Thing*>(base_ + offset);
    }
    SharedFlag& flag(std::size_t index) const {
        return *at<SharedFlag>(kHeadBytes + sizeof(SharedBell) + index * sizeof(SharedFlag));
    }
    std::byte* buffer(std::size_t index) const;

    pid_t owner_;
    int descriptor_ = -1;
    SegmentShape shape_;
    std::size_t size_ = 0;
    std::byte* base_ = nullptr;
};

}  // namespace fourlane

// Huge pages for large arrays that are read in no order: fewer misses in the TLB.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace fourlane {

// Ask the kernel to back a large array that is about to be written with huge pages; a hint, never an error.
void advise_huge_pages(void* data, std::size_t bytes);

// An allocator that does so for whatever fills a huge page.
template <typename T>
struct HugePages {
    using value_type = T;

    HugePages() = default;
    template <typename Other>
    HugePages(const HugePages<Other>&) {}  // NOLINT(google-explicit-constructor): what allocators must have

    T* allocate(std::size_t count) {
        void* place = ::operator new(count * sizeof(T), alignment(count));
        if (count * sizeof(T) >= kHugePage) advise_huge_pages(place, count * sizeof(T));
        return static_cast<T*>(place);
    }
    void deallocate(T* place, std::size_t count) { ::operator delete(place, count * sizeof(T), alignment(count)); }
    bool operator==(const HugePages&) const = default;

private:
    static constexpr std::size_t kHugePage = std::size_t{2} << 20;
    static std::align_val_t alignment(std::size_t count) {
        return std::align_val_t{count * sizeof(T) >= kHugePage ? kHugePage : alignof(T)};
    }
};

template <typename T>
using HugeVector = std::vector<T, HugePages<T>>;

}  // namespace fourlane

#include "fourlane/paged_attention.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <memory>

#include "attention_kernels.hpp"

namespace fourlane {
namespace {

const AttentionKernels& kernels_of(InstructionSet set) {
#if defined(__x86_64__)
    if (set == InstructionSet::avx512) return avx512::kAttentionKernels;
    if (set == InstructionSet::avx2) return avx2::kAttentionKernels;
#endif
    static_cast<void>(set);
    return baseline::kAttentionKernels;
}

// Queries are worked on in strips of about this many rows, so that a packed tile of keys is used often while
// their sums stay in cache. A row is a query head of a token: heads that share a KV head share its packed keys.
constexpr std::int64_t kStripRows = 240;

std::unique_ptr<float[]> floats(std::int64_t count) {
    return std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(count));
}

// Some tokens of a sequence whose pages are `blocks`.
struct Span {
    const std::int32_t* blocks;
    std::int64_t first;
    std::int64_t count;
};

// Call visit(at, tokens) for each run of tokens that lie one after the other, from float `at` of the pages on.
template <typename Visit>
void visit_runs(const PagesView& pages, const Span& span, Visit visit) {
    const std::int64_t token_floats = pages.kv_heads * pages.head_dim;
    std::int64_t block = span.first / pages.block_size;
    std::int64_t offset = span.first % pages.block_size;
    for (std::int64_t left = span.count; left > 0; ++block, offset = 0) {
        const std::int64_t tokens = std::min(left, pages.block_size - offset);
        visit((span.blocks[block] * pages.block_size + offset) * token_floats, tokens);
        left -= tokens;
    }
}

// Ask for tokens' keys and values to be brought near: in decode each is used once, and comes from memory.
void prefetch(const PagesView& pages, const Span& span) {
    constexpr std::int64_t kLine = 64 / sizeof(float);
    visit_runs(pages, span, [&](std::int64_t at, std::int64_t tokens) {
        const std::int64_t end = at + tokens * pages.kv_heads * pages.head_dim;
        for (; at < end; at += kLine) {
            __builtin_prefetch(pages.keys + at);
            __builtin_prefetch(pages.values + at);
        }
    });
}

// Where each token of a span lies.
class Located {
public:
    void find(const PagesView& pages, const Span& span) {
        count_ = 0;
        visit_runs(pages, span, [&](std::int64_t at, std::int64_t tokens) {
            for (; tokens > 0; --tokens, ++count_, at += pages.kv_heads * pages.head_dim) {
                keys_[static_cast<std::size_t>(count_)] = pages.keys + at;
                values_[static_cast<std::size_t>(count_)] = pages.values + at;
            }
        });
    }

    Rows keys(std::int64_t offset) const { return {keys_.data(), count_, offset}; }
    Rows values(std::int64_t offset) const { return {values_.data(), count_, offset}; }

private:
    std::array<const float*, kTileKeys> keys_;
    std::array<const float*, kTileKeys> values_;
    std::int64_t count_ = 0;
};

// The tile of keys in work: packed keys, and where the values are, padded if need be.
class Tile {
public:
    explicit Tile(const PagesView& pages)
        : head_dim_(pages.head_dim),
          padded_dim_((pages.head_dim + kMostLanes - 1) / kMostLanes * kMostLanes),
          keys_(floats(pages.head_dim * kTileKeys)),
          padded_values_(padded_dim_ == pages.head_dim ? nullptr : floats(padded_dim_ * kTileKeys)) {}

    std::int64_t padded_dim() const { return padded_dim_; }

    KeyTile pack(const Located& tokens, std::int64_t kv_head, const AttentionKernels& kernels) {
        kernels.transpose_keys(tokens.keys(kv_head * head_dim_), head_dim_, keys_.get());
        const Rows values = tokens.values(kv_head * head_dim_);
        return {keys_.get(), padded_values_ == nullptr ? values : padded(values), head_dim_, padded_dim_};
    }

private:
    Rows padded(const Rows& values) {
        for (std::int64_t i = 0; i < values.count; ++i) {
            float* to = padded_values_.get() + i * padded_dim_;
            std::copy_n(values.rows[i] + values.offset, head_dim_, to);
            std::fill(to + head_dim_, to + padded_dim_, 0.0F);
            padded_rows_[static_cast<std::size_t>(i)] = to;
        }
        return {padded_rows_.data(), values.count, 0};
    }

    std::int64_t head_dim_;
    std::int64_t padded_dim_;
    std::unique_ptr<float[]> keys_;
    std::unique_ptr<float[]> padded_values_;
    std::array<const float*, kTileKeys> padded_rows_;
};

// Consecutive tokens of one sequence, as rows of each KV head: [kv_heads][tokens][heads that share it].
class Strip {
public:
    Strip(const QueriesView& queries, const PagesView& pages, std::int64_t padded_dim, float scale,
          const AttentionKernels& kernels)
        : queries_(queries),
          kv_heads_(pages.kv_heads),
          group_(queries.heads / pages.kv_heads),
          head_dim_(pages.head_dim),
          padded_dim_(padded_dim),
          scale_(scale),
          kernels_(kernels),
          most_tokens_(std::clamp<std::int64_t>(queries.tokens, 1, std::max<std::int64_t>(1, kStripRows / queries.heads))),
          scaled_(floats(most_tokens_ * queries.heads * head_dim_)),
          greatest_(floats(most_tokens_ * queries.heads)),
          sums_(floats(most_tokens_ * queries.heads * kMostLanes)),
          weighted_(floats(most_tokens_ * queries.heads * padded_dim)) {}

    std::int64_t most_tokens() const { return most_tokens_; }

    // Take the queries begin .. begin + tokens, the first of which stands at `position`.
    void take(std::int64_t begin, std::int64_t tokens, std::int64_t position) {
        begin_ = begin;
        position_ = position;
        rows_ = tokens * group_;
        for (std::int64_t kv_head = 0; kv_head < kv_heads_; ++kv_head) {
            for (std::int64_t row = 0; row < rows_; row += kernels_.most_rows) pack(kv_head, row, height(row));
        }
        const std::int64_t rows = kv_heads_ * rows_;
        std::fill_n(greatest_.get(), rows, -std::numeric_limits<float>::infinity());
        std::fill_n(sums_.get(), rows * kMostLanes, 0.0F);
        std::fill_n(weighted_.get(), rows * padded_dim_, 0.0F);
    }

    void attend(std::int64_t kv_head, const KeyTile& keys, std::int64_t first_key) const {
        std::array<std::int64_t, kMostLanes> visible;
        for (std::int64_t row = 0; row < rows_; row += kernels_.most_rows) {
            const std::int64_t rows = height(row);
            for (std::int64_t r = 0; r < rows; ++r) {
                visible[static_cast<std::size_t>(r)] = position_ + (row + r) / group_ + 1 - first_key;
            }
            KeyTile seen = keys;
            seen.values.count = std::min(keys.values.count, visible[static_cast<std::size_t>(rows - 1)]);
            if (seen.values.count <= 0) continue;
            const std::int64_t at = kv_head * rows_ + row;
            kernels_.attend(seen, {scaled_.get() + at * head_dim_, rows, visible.data(), greatest_.get() + at,
                                   sums_.get() + at * kMostLanes, weighted_.get() + at * padded_dim_});
        }
    }

    void finish(float* out) const {
        for (std::int64_t at = 0; at < kv_heads_ * rows_; ++at) {
            kernels_.finish(sums_.get() + at * kMostLanes, weighted_.get() + at * padded_dim_, head_dim_,
                            out + query(at / rows_, at % rows_) * head_dim_);
        }
    }

private:
    std::int64_t height(std::int64_t row) const { return std::min(kernels_.most_rows, rows_ - row); }
    // Which of all tokens' heads a row is.
    std::int64_t query(std::int64_t kv_head, std::int64_t row) const {
        return (begin_ + row / group_) * queries_.heads + kv_head * group_ + row % group_;
    }

    void pack(std::int64_t kv_head, std::int64_t row, std::int64_t rows) {
        float* to = scaled_.get() + (kv_head * rows_ + row) * head_dim_;
        for (std::int64_t r = 0; r < rows; ++r) {
            const std::int64_t index = query(kv_head, row + r);
            const float* from = queries_.data + index / queries_.heads * queries_.stride + index % queries_.heads * head_dim_;
            for (std::int64_t k = 0; k < head_dim_; ++k) to[k * rows + r] = from[k] * scale_;
        }
    }

    QueriesView queries_;
    std::int64_t kv_heads_;
    std::int64_t group_;
    std::int64_t head_dim_;
    std::int64_t padded_dim_;
    float scale_;
    const AttentionKernels& kernels_;
    std::int64_t most_tokens_;
    std::unique_ptr<float[]> scaled_;    // by tiles of rows, [head_dim][rows] each
    std::unique_ptr<float[]> greatest_;  // the state of each row, as in QueryTile
    std::unique_ptr<float[]> sums_;
    std::unique_ptr<float[]> weighted_;
    std::int64_t begin_ = 0;
    std::int64_t position_ = 0;
    std::int64_t rows_ = 0;  // of each KV head
};

// The sequences of a call, cut into tiles of keys.
class Keys {
public:
    Keys(const PagesView& pages, const SequencesView& sequences) : pages_(pages), sequences_(sequences) {}

    // Return the tile from `first` on of a sequence of which `visible` tokens are seen, at most.
    Span tile(std::size_t sequence, std::int64_t first, std::int64_t visible) const {
        const std::int64_t row = static_cast<std::int64_t>(sequence) * sequences_.width;
        return {sequences_.blocks + row, first, std::min(kTileKeys, visible - first)};
    }

    // Prefetch what comes after that tile.
    void prefetch_after(std::size_t sequence, std::int64_t first, std::int64_t visible) const {
        if (first + kTileKeys < visible) {
            prefetch(pages_, tile(sequence, first + kTileKeys, visible));
        } else if (sequence + 1 < sequences_.context.size()) {
            prefetch(pages_, tile(sequence + 1, 0, sequences_.context[sequence + 1]));
        }
    }

private:
    PagesView pages_;
    SequencesView sequences_;
};

}  // namespace

void paged_attention(QueriesView queries, PagesView pages, SequencesView sequences, float scale, float* out,
                     InstructionSet set) {
    const AttentionKernels& kernels = kernels_of(set);
    const Keys keys(pages, sequences);
    Located located;
    Tile tile(pages);
    Strip strip(queries, pages, tile.padded_dim(), scale, kernels);
    for (std::size_t s = 0; s < sequences.context.size(); ++s) {
        const std::int64_t end = sequences.query_start[s + 1];
        for (std::int64_t begin = sequences.query_start[s]; begin < end; begin += strip.most_tokens()) {
            const std::int64_t tokens = std::min(strip.most_tokens(), end - begin);
            const std::int64_t position = sequences.context[s] - (end - begin);
            const std::int64_t visible = position + tokens;
            strip.take(begin, tokens, position);
            for (std::int64_t key = 0; key < visible; key += kTileKeys) {
                located.find(pages, keys.tile(s, key, visible));
                keys.prefetch_after(s, key, visible);
                for (std::int64_t head = 0; head < pages.kv_heads; ++head) {
                    strip.attend(head, tile.pack(located, head, kernels), key);
                }
            }
            strip.finish(out);
        }
    }
}

}  // namespace fourlane

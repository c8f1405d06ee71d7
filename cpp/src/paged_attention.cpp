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

// Queries are worked on in strips of at most this many tiles, so that a packed tile of keys is used often
// while their sums stay in cache.
constexpr std::int64_t kStripTiles = 20;

std::unique_ptr<float[]> floats(std::int64_t count) {
    return std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(count));
}

// The tile of keys in work: packed keys, and where the values are.
class Tile {
public:
    explicit Tile(const PagesView& pages)
        : pages_(pages),
          padded_dim_((pages.head_dim + kMostLanes - 1) / kMostLanes * kMostLanes),
          keys_(floats(pages.head_dim * kTileKeys)),
          padded_values_(padded_dim_ == pages.head_dim ? nullptr : floats(padded_dim_ * kTileKeys)) {}

    std::int64_t padded_dim() const { return padded_dim_; }

    // Take the tokens first .. first + count of a sequence whose pages are `blocks`.
    KeyTile pack(const std::int32_t* blocks, std::int64_t kv_head, std::int64_t first, std::int64_t count,
                 const AttentionKernels& kernels) {
        std::array<const float*, kTileKeys> key_rows;
        const std::int64_t token_floats = pages_.kv_heads * pages_.head_dim;
        std::int64_t block = first / pages_.block_size;
        std::int64_t offset = first % pages_.block_size;
        for (std::int64_t i = 0; i < count; ++block, offset = 0) {
            std::int64_t at = (blocks[block] * pages_.block_size + offset) * token_floats + kv_head * pages_.head_dim;
            const std::int64_t end = std::min(count, i + pages_.block_size - offset);
            for (; i < end; ++i, at += token_floats) {
                const auto index = static_cast<std::size_t>(i);
                key_rows[index] = pages_.keys + at;
                value_rows_[index] = pages_.values + at;
            }
        }
        kernels.transpose_keys(key_rows.data(), count, pages_.head_dim, keys_.get());
        if (padded_values_ != nullptr) pad_values(count);
        return {keys_.get(), value_rows_.data(), count, pages_.head_dim, padded_dim_};
    }

private:
    void pad_values(std::int64_t count) {
        for (std::int64_t i = 0; i < count; ++i) {
            const float*& row = value_rows_[static_cast<std::size_t>(i)];
            float* to = padded_values_.get() + i * padded_dim_;
            std::copy_n(row, pages_.head_dim, to);
            std::fill(to + pages_.head_dim, to + padded_dim_, 0.0F);
            row = to;
        }
    }

    PagesView pages_;
    std::int64_t padded_dim_;
    std::unique_ptr<float[]> keys_;
    std::unique_ptr<float[]> padded_values_;
    std::array<const float*, kTileKeys> value_rows_;
};

// Consecutive rows of one sequence's queries to one KV head. A row is a query head of a token, so that the
// `group` heads that share a KV head share its packed keys.
class Strip {
public:
    Strip(const QueriesView& queries, std::int64_t kv_heads, std::int64_t head_dim, std::int64_t padded_dim, float scale,
          const AttentionKernels& kernels, std::int64_t most_rows)
        : queries_(queries),
          group_(queries.heads / kv_heads),
          head_dim_(head_dim),
          padded_dim_(padded_dim),
          scale_(scale),
          kernels_(kernels),
          scaled_(floats(most_rows * head_dim)),
          greatest_(floats(most_rows)),
          sums_(floats(most_rows * kMostLanes)),
          weighted_(floats(most_rows * padded_dim)) {}

    // Take rows first .. first + rows of the queries from token `begin` on, which stands at `position`.
    void take(std::int64_t kv_head, std::int64_t begin, std::int64_t position, std::int64_t first, std::int64_t rows) {
        kv_head_ = kv_head;
        begin_ = begin;
        position_ = position;
        first_ = first;
        rows_ = rows;
        for (std::int64_t row = 0; row < rows; row += kernels_.most_rows) pack(row, height(row));
        std::fill_n(greatest_.get(), rows, -std::numeric_limits<float>::infinity());
        std::fill_n(sums_.get(), rows * kMostLanes, 0.0F);
        std::fill_n(weighted_.get(), rows * padded_dim_, 0.0F);
    }

    // How many of the sequence's tokens the last row sees.
    std::int64_t visible() const { return visible(rows_ - 1); }

    void attend(const KeyTile& keys, std::int64_t first_key) const {
        std::array<std::int64_t, kMostLanes> visible_rows;
        for (std::int64_t row = 0; row < rows_; row += kernels_.most_rows) {
            const std::int64_t rows = height(row);
            for (std::int64_t r = 0; r < rows; ++r) visible_rows[static_cast<std::size_t>(r)] = visible(row + r) - first_key;
            KeyTile seen = keys;
            seen.count = std::min(keys.count, visible(row + rows - 1) - first_key);
            if (seen.count <= 0) continue;
            kernels_.attend(seen, {scaled_.get() + row * head_dim_, rows, visible_rows.data(), greatest_.get() + row,
                                   sums_.get() + row * kMostLanes, weighted_.get() + row * padded_dim_});
        }
    }

    void finish(float* out) const {
        for (std::int64_t row = 0; row < rows_; ++row) {
            kernels_.finish(sums_.get() + row * kMostLanes, weighted_.get() + row * padded_dim_, head_dim_,
                            out + (token(row) * queries_.heads + head(row)) * head_dim_);
        }
    }

private:
    std::int64_t token(std::int64_t row) const { return begin_ + (first_ + row) / group_; }
    std::int64_t head(std::int64_t row) const { return kv_head_ * group_ + (first_ + row) % group_; }
    std::int64_t visible(std::int64_t row) const { return position_ + (first_ + row) / group_ + 1; }
    std::int64_t height(std::int64_t row) const { return std::min(kernels_.most_rows, rows_ - row); }

    void pack(std::int64_t row, std::int64_t rows) {
        float* to = scaled_.get() + row * head_dim_;
        for (std::int64_t r = 0; r < rows; ++r) {
            const float* from = queries_.data + token(row + r) * queries_.stride + head(row + r) * head_dim_;
            for (std::int64_t k = 0; k < head_dim_; ++k) to[k * rows + r] = from[k] * scale_;
        }
    }

    QueriesView queries_;
    std::int64_t group_;
    std::int64_t head_dim_;
    std::int64_t padded_dim_;
    float scale_;
    const AttentionKernels& kernels_;
    std::unique_ptr<float[]> scaled_;
    std::unique_ptr<float[]> greatest_;
    std::unique_ptr<float[]> sums_;
    std::unique_ptr<float[]> weighted_;
    std::int64_t kv_head_ = 0;
    std::int64_t begin_ = 0;
    std::int64_t position_ = 0;
    std::int64_t first_ = 0;
    std::int64_t rows_ = 0;
};

}  // namespace

void paged_attention(QueriesView queries, PagesView pages, SequencesView sequences, float scale, float* out,
                     InstructionSet set) {
    const AttentionKernels& kernels = kernels_of(set);
    const std::int64_t group = queries.heads / pages.kv_heads;
    const std::int64_t most_rows = std::min(kStripTiles * kernels.most_rows, queries.tokens * group);
    Tile tile(pages);
    Strip strip(queries, pages.kv_heads, pages.head_dim, tile.padded_dim(), scale, kernels, most_rows);
    for (std::size_t s = 0; s < sequences.context.size(); ++s) {
        const std::int64_t begin = sequences.query_start[s];
        const std::int64_t tokens = sequences.query_start[s + 1] - begin;
        const std::int64_t position = sequences.context[s] - tokens;
        const std::int32_t* blocks = sequences.blocks + static_cast<std::int64_t>(s) * sequences.width;
        for (std::int64_t kv_head = 0; kv_head < pages.kv_heads; ++kv_head) {
            for (std::int64_t first = 0; first < tokens * group; first += most_rows) {
                strip.take(kv_head, begin, position, first, std::min(most_rows, tokens * group - first));
                for (std::int64_t key = 0; key < strip.visible(); key += kTileKeys) {
                    const std::int64_t count = std::min(kTileKeys, strip.visible() - key);
                    strip.attend(tile.pack(blocks, kv_head, key, count, kernels), key);
                }
                strip.finish(out);
            }
        }
    }
}

}  // namespace fourlane

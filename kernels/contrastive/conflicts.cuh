// Which columns need a check of every pair: one bit per column and 64 rows. Set for almost none but a query's own candidates,
// so that the other kernels pay for the rule of negatives only there. A bit may be set needlessly, but is never missing: keys
// are looked up in two Bloom filters of the 64 rows.
#pragma once

#include "block.cuh"

namespace unimo {

constexpr int kConflictThreads = 256;
constexpr int kKeyFilterWords = 512;
constexpr int kMinItemFilterWords = 128;
constexpr int kMaxItemFilterWords = 8192;

__device__ __forceinline__ unsigned long long mixed(long long key, unsigned kind) {
    unsigned long long x = static_cast<unsigned long long>(key) + kind * 0x9E3779B97F4A7C15ull;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}
__device__ __forceinline__ void set_shared_bit(unsigned* words, unsigned bit) {
#if defined(UNIMO_HOST)
    words[bit / 32] |= 1u << bit % 32;
#else
    atomicOr(words + bit / 32, 1u << bit % 32);
#endif
}
// Four places per key: with 64 filter bits per key, one foreign key in 70,000 is a false positive. With two places and 32 bits,
// one in 270 is, and most groups of 256 columns, which a warp tests at once, would hold one.
struct Filter {
    unsigned* words;
    int num_words;  // power of two
    static constexpr int kPlaces = 4;
    __device__ __forceinline__ unsigned place(unsigned long long hash, int i) const {
        return (unsigned(hash) + unsigned(i) * (unsigned(hash >> 32) | 1u)) & unsigned(num_words * 32 - 1);
    }
    __device__ __forceinline__ void insert(long long key, unsigned kind) {
        const unsigned long long hash = mixed(key, kind);
#pragma unroll
        for (int i = 0; i < kPlaces; ++i) set_shared_bit(words, place(hash, i));
    }
    __device__ __forceinline__ bool may_hold(long long key, unsigned kind) const {
        const unsigned long long hash = mixed(key, kind);
#pragma unroll
        for (int i = 0; i < kPlaces; ++i) {
            const unsigned at = place(hash, i);
            if (!(words[at / 32] >> at % 32 & 1u)) return false;
        }
        return true;
    }
};

__global__ void __launch_bounds__(kConflictThreads) contrastive_conflicts(const BlockArguments arguments) {
    const BlockArguments& a = arguments;
    auto* const shared = reinterpret_cast<unsigned*>(shared_memory());
    const int thread = thread_index(), first_row = block_y() * kBandRows;
    const int rows = a.num_rows - first_row < kBandRows ? a.num_rows - first_row : kBandRows;
    Filter keys{shared, kKeyFilterWords}, items{shared + kKeyFilterWords, a.item_filter_words};
    unsigned& several_groups = shared[kKeyFilterWords + items.num_words];
    for (int i = thread; i <= kKeyFilterWords + items.num_words; i += kConflictThreads) shared[i] = 0;
    block_barrier();
    const long long* const row_keys = a.row_keys + static_cast<long long>(first_row) * kKeys;
    for (int i = thread; i < rows * 3; i += kConflictThreads)
        keys.insert(row_keys[i / 3 * kKeys + 1 + i % 3], unsigned(1 + i % 3));
    const long long* const row_items = a.row_items + static_cast<long long>(first_row) * a.row_items_width;
    for (int i = thread; i < rows * a.row_items_width; i += kConflictThreads) items.insert(row_items[i], 0u);
    const long long group = row_keys[0];
    if (thread < rows && row_keys[thread * kKeys] != group) set_shared_bit(&several_groups, 0);
    block_barrier();
    const bool one_group = several_groups == 0;

    for (int i = 0; i < kBandColumns / kConflictThreads; ++i) {
        const int column = block_x() * kBandColumns + i * kConflictThreads + thread;
        bool conflict = true;  // outside the matrix: every pair is checked, and refused
        if (column < a.num_columns && rows == kBandRows) {
            const long long* const key = a.column_keys + static_cast<long long>(column) * kKeys;
            conflict = !one_group || key[0] != group || keys.may_hold(key[1], 1u) || keys.may_hold(key[2], 2u) ||
                       items.may_hold(key[3], 0u);
            if (a.column_maxima != nullptr) {
                const auto* const own = a.column_items + static_cast<long long>(column) * a.column_items_width;
                for (int k = 0; k < a.column_items_width; ++k) conflict |= keys.may_hold(own[k], 3u);
            }
        }
        unsigned word = unsigned(conflict) << lane_index();
#pragma unroll
        for (int mask = 1; mask < 32; mask *= 2) word |= shuffle_xor(word, mask);
        if (lane_index() == 0 && column < a.num_columns)
            a.conflicts[static_cast<long long>(block_y()) * a.conflict_stride + column / 32] = word;
    }
}

}  // namespace unimo

// Forward over a block of cosines: maximum and sum of exponentials of every row, and of every column if columns are queries
// too, in one pass over the block. Partial results of tiles are joined in a fixed order by a second kernel: no atomics.
//
// A block of threads takes 64 rows and 1024 columns, a warp eight of the rows; a lane holds eight rows of eight columns at a
// time in registers. The next ones are loading while the warps' results for these columns are joined.
#pragma once

#include "block.cuh"

namespace unimo {

constexpr int kStatisticsWarps = 8;
constexpr int kStatisticsThreads = kStatisticsWarps * 32;
constexpr int kWarpRows = kBandRows / kStatisticsWarps;
constexpr int kStatisticsSharedBytes = kStatisticsWarps * kGroupColumns * int(sizeof(Pair));

struct ScoreTile {
    float value[kWarpRows][kLaneColumns];
};

// Zeros outside the block.
__device__ __forceinline__ void load_tile(ScoreTile& tile, const BlockArguments& a, int first_row, int group_column) {
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
        const float* const row = a.scores + static_cast<long long>(first_row + r) * a.pitch;
#pragma unroll
        for (int half = 0; half < kLaneColumns; half += 4) {
            const int column = lane_column(group_column, half);
            Floats4 four{};
            if (first_row + r < a.num_rows && column < a.num_columns) four = load<Floats4>(row + column);
#pragma unroll
            for (int c = 0; c < 4; ++c) tile.value[r][half + c] = four.value[c];
        }
    }
}

// Bit 8 r + c: row r, column c of a lane's tile.
struct Masks {
    unsigned long long rows, columns;
};
__device__ __forceinline__ Masks masks_of(const BlockArguments& a, int first_row, int group_column, unsigned conflicts) {
    Masks masks{~0ull, ~0ull};
    for (int c = 0; c < kLaneColumns; ++c) {
        if (!(conflicts >> c & 1u)) continue;
        const int column = lane_column(group_column, c);
        for (int r = 0; r < kWarpRows; ++r) {
            const bool inside = first_row + r < a.num_rows && column < a.num_columns;
            const Allowed may = inside ? allowed(a, first_row + r, column) : Allowed{false, false};
            if (!may.for_row) masks.rows &= ~(1ull << (8 * r + c));
            if (!may.for_column) masks.columns &= ~(1ull << (8 * r + c));
        }
    }
    return masks;
}

template <bool kMasked, bool kBoth>
__device__ __forceinline__ void take_group(const BlockArguments& a, const ScoreTile& tile, int first_row, int group_column,
                                           unsigned conflicts, float rate, Running (&rows)[kWarpRows], Pair* column_results) {
    Masks masks{~0ull, ~0ull};
    if (kMasked) masks = masks_of(a, first_row, group_column, conflicts);
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
        float maximum = -infinity();
#pragma unroll
        for (int c = 0; c < kLaneColumns; ++c)
            if (!kMasked || masks.rows >> (8 * r + c) & 1ull) maximum = larger(maximum, tile.value[r][c]);
        if (kMasked && maximum == -infinity()) continue;
        float sum = 0.f;
#pragma unroll
        for (int c = 0; c < kLaneColumns; ++c)
            if (!kMasked || masks.rows >> (8 * r + c) & 1ull)
                sum += exp2_approximate((tile.value[r][c] - maximum) * rate);
        rows[r] = joined(rows[r], {maximum, sum}, rate);
    }
    if constexpr (kBoth) {
#pragma unroll
        for (int c = 0; c < kLaneColumns; ++c) {
            float maximum = -infinity();
#pragma unroll
            for (int r = 0; r < kWarpRows; ++r)
                if (!kMasked || masks.columns >> (8 * r + c) & 1ull) maximum = larger(maximum, tile.value[r][c]);
            float sum = 0.f;
            const float anchor = kMasked ? anchored(maximum) : maximum;
#pragma unroll
            for (int r = 0; r < kWarpRows; ++r)
                if (!kMasked || masks.columns >> (8 * r + c) & 1ull) sum += exp2_approximate((tile.value[r][c] - anchor) * rate);
            store(column_results + lane_column(0, c), Pair{maximum, sum});
        }
    }
}

template <bool kBoth>
__global__ void __launch_bounds__(kStatisticsThreads) contrastive_statistics(const BlockArguments arguments) {
    const BlockArguments& a = arguments;
    auto* const shared = reinterpret_cast<Pair*>(shared_memory());
    const int warp = warp_index(), lane = lane_index();
    const int first_row = block_y() * kBandRows + warp * kWarpRows;
    const float rate = load<float>(a.inverse_temperature) * kLog2E;
    Running rows[kWarpRows];
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) rows[r] = {-infinity(), 0.f};

    const int end = smaller(block_x() * kBandColumns + kBandColumns, a.num_columns);
    ScoreTile tile;
    int group_column = block_x() * kBandColumns;
    load_tile(tile, a, first_row, group_column);
    LaneConflicts conflicts = lane_conflicts(a, block_y() * kBandRows, group_column);
    for (; group_column < end; group_column += kGroupColumns) {
        Pair* const results = shared + warp * kGroupColumns;
        if (conflicts.any())
            take_group<true, kBoth>(a, tile, first_row, group_column, conflicts.bits(), rate, rows, results);
        else
            take_group<false, kBoth>(a, tile, first_row, group_column, 0u, rate, rows, results);
        const int next = group_column + kGroupColumns;
        if (next < end) {
            load_tile(tile, a, first_row, next);
            conflicts = lane_conflicts(a, block_y() * kBandRows, next);
        }
        if (kBoth) {
            block_barrier();
            const int column = group_column + thread_index();
            Running total{-infinity(), 0.f};
#pragma unroll
            for (int w = 0; w < kStatisticsWarps; ++w) {
                const Pair part = load<Pair>(shared + w * kGroupColumns + thread_index());
                total = joined(total, {part.low, part.high}, rate);
            }
            if (column < a.num_columns)
                store(a.column_partials + 2 * (static_cast<long long>(block_y()) * a.num_columns + column),
                      Pair{total.maximum, total.sum});
            block_barrier();
        }
    }
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
        for (int mask = 1; mask < 32; mask *= 2) {
            const Running other{shuffle_xor(rows[r].maximum, mask), shuffle_xor(rows[r].sum, mask)};
            rows[r] = joined(rows[r], other, rate);
        }
        if (lane == r && first_row + r < a.num_rows)
            store(a.row_partials + 2 * (static_cast<long long>(block_x()) * a.num_rows + first_row + r),
                  Pair{rows[r].maximum, rows[r].sum});
    }
}

constexpr int kJoinThreads = 128;

// One thread per row, then per column: joins the partial results of this block's tiles to the running ones; writes their logs.
template <bool kBoth>
__global__ void __launch_bounds__(kJoinThreads) contrastive_join(const BlockArguments arguments) {
    const BlockArguments& a = arguments;
    const float inverse = load<float>(a.inverse_temperature), rate = inverse * kLog2E;
    int index = block_x() * kJoinThreads + thread_index();
    const bool is_row = index < a.num_rows;
    if (!is_row) index -= a.num_rows;
    const int count = is_row ? a.num_rows : a.num_columns;
    if (index >= count || (!kBoth && !is_row)) return;
    const int tiles = is_row ? (a.num_columns + kBandColumns - 1) / kBandColumns : (a.num_rows + kBandRows - 1) / kBandRows;
    const float* const partials = is_row ? a.row_partials : a.column_partials;
    float* const maxima = is_row ? a.row_maxima : a.column_maxima;
    float* const sums = is_row ? a.row_sums : a.column_sums;
    Running total{-infinity(), 0.f};
    if (!(is_row ? a.begins_rows : a.begins_columns)) total = {maxima[index], sums[index]};
    for (int tile = 0; tile < tiles; ++tile) {
        const Pair part = load<Pair>(partials + 2 * (static_cast<long long>(tile) * count + index));
        total = joined(total, {part.low, part.high}, rate);
    }
    maxima[index] = total.maximum;
    sums[index] = total.sum;
    (is_row ? a.row_results : a.column_results)[index] =
        total.maximum == -infinity() ? -infinity() : total.maximum * inverse + log2_approximate(total.sum) / kLog2E;
}

}  // namespace unimo

// Common to the kernels over a block of scores: its arguments, and the rule for negatives.
//
// A block is a rectangle of the matrix of cosines between row vectors and column vectors (images and texts), written by a
// matrix product to a buffer of bounded size. Each row is a query over the columns and, optionally, each column a query over
// the rows. Candidate j is a negative of query i if both are in one group, of pairs with different images and different texts,
// and j's own item is not one of the own items of i's pair.
#pragma once

#include "../common/device.cuh"

namespace unimo {

constexpr int kKeys = 4;            // per vector: group, image of its pair, text of its pair, item
constexpr int kBandRows = 64;       // rows that share their conflict bits
constexpr int kBandColumns = 1024;  // columns per block of threads
constexpr int kLaneColumns = 8;     // per lane at a time: four, and four 128 columns further on
constexpr int kGroupColumns = 32 * kLaneColumns;

struct alignas(16) Floats4 {
    float value[4];
};

struct BlockArguments {
    float* scores;                  // [num_rows, pitch] cosines; in each row the 16-bit weights overwrite them
    const long long* row_keys;      // [num_rows, 4]
    const long long* column_keys;   // [num_columns, 4]
    const long long* row_items;     // [num_rows, row_items_width] keys of a row's own items among the columns
    const long long* column_items;  // [num_columns, column_items_width] keys of a column's own items among the rows
    unsigned* conflicts;            // [num_rows / 64 rounded up, conflict_stride], a bit per column: not all pairs are allowed
    const float* inverse_temperature;
    const float* weight_scale;      // factor on the weights, to fit them to 16 bits
    float* row_maxima;              // [num_rows] running over blocks
    float* row_sums;                // [num_rows] of exp((cosine - maximum) / temperature)
    float* column_maxima;           // [num_columns]; null: columns are no queries
    float* column_sums;
    float* row_partials;            // [num_columns / 1024 rounded up, num_rows] (maximum, sum)
    float* column_partials;         // [num_rows / 64 rounded up, num_columns]
    const float* row_logs;          // [num_rows] log of the sum over allowed columns of exp(cosine / temperature)
    const float* row_gradients;     // [num_rows] of row_logs
    const float* column_logs;
    const float* column_gradients;
    float* temperature_sums;        // [num_rows] running sum of weight * cosine
    float* row_results;             // [num_rows] log of the sum of exp(cosine / temperature) so far; -inf for an empty one
    float* column_results;          // [num_columns]
    int num_rows, num_columns, pitch, conflict_stride, row_items_width, column_items_width;
    int item_filter_words;          // power of two
    int begins_rows, begins_columns;  // whether running values start at this block
};

constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ bool among(long long item, const long long* items, int width) {
    for (int i = 0; i < width; ++i)
        if (items[i] == item) return true;
    return false;
}

struct Allowed {
    bool for_row, for_column;
};
__device__ __forceinline__ Allowed allowed(const BlockArguments& a, int row, int column) {
    const long long* const mine = a.row_keys + static_cast<long long>(row) * kKeys;
    const long long* const other = a.column_keys + static_cast<long long>(column) * kKeys;
    if (mine[0] != other[0] || mine[1] == other[1] || mine[2] == other[2]) return {false, false};
    const auto* const row_items = a.row_items + static_cast<long long>(row) * a.row_items_width;
    const auto* const column_items = a.column_items + static_cast<long long>(column) * a.column_items_width;
    return {!among(other[3], row_items, a.row_items_width), !among(mine[3], column_items, a.column_items_width)};
}

// The words of conflict bits of a lane's eight columns, loaded ahead, and tested only when the columns are processed.
struct LaneConflicts {
    unsigned low, high;
    // Of the lane's columns: 0 to 3 for the first four, 4 to 7 for those 128 further on.
    __device__ __forceinline__ unsigned bits() const {
        const int shift = lane_index() % 8 * 4;
        return (low >> shift & 15u) | (high >> shift & 15u) << 4;
    }
    // Whether any of the warp's 256 columns has one; all lanes must call it.
    __device__ __forceinline__ bool any() const { return any_lane((low | high) != 0u); }
};
__device__ __forceinline__ LaneConflicts lane_conflicts(const BlockArguments& a, int row, int group_column) {
    const unsigned* const words = a.conflicts + static_cast<long long>(row / kBandRows) * a.conflict_stride;
    const int word = group_column / 32 + lane_index() / 8;
    LaneConflicts found{~0u, ~0u};
    if (word * 32 < a.num_columns) found.low = words[word];
    if ((word + 4) * 32 < a.num_columns) found.high = words[word + 4];
    return found;
}
__device__ __forceinline__ int lane_column(int group_column, int c) {
    return group_column + lane_index() * 4 + (c & 3) + (c & 4) * 32;
}

// Running log-sum-exp in units of cosines: base 2 with `rate` = log2(e) / temperature.
struct Running {
    float maximum, sum;
};
__device__ __forceinline__ float anchored(float maximum) { return maximum == -infinity() ? 0.f : maximum; }
__device__ __forceinline__ Running joined(Running one, Running other, float rate) {
    const float maximum = larger(one.maximum, other.maximum), anchor = anchored(maximum);
    return {maximum, one.sum * exp2_approximate((one.maximum - anchor) * rate) +
                         other.sum * exp2_approximate((other.maximum - anchor) * rate)};
}

}  // namespace unimo

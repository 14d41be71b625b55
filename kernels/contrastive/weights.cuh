// Backward over a block of cosines: the gradient of every cosine, as 16-bit weights that overwrite the cosines, for the two
// matrix products that lead to the vectors' gradients; and the sum of weight * cosine, for the temperature.
//
//     weight = scale * (row gradient * exp(cosine / temperature - row log) + column gradient * exp(cosine / t - column log))
//
// A warp takes four rows, 256 columns at a time, with the next ones already loading, since a rectangle has few warps. A group's
// weights overwrite what has been read before, except the first group's, which the warp reads entirely before it writes.
#pragma once

#include "block.cuh"

namespace unimo {

constexpr int kWeightWarps = 4;
constexpr int kWeightThreads = kWeightWarps * 32;
constexpr int kWeightRows = 4;  // per warp
constexpr int kWeightBlockRows = kWeightWarps * kWeightRows;

// A lane's cosines of a group of columns, with the conflict bits, logs and gradients of its columns; zeros outside the block.
struct CosineGroup {
    float value[kWeightRows][kLaneColumns];
    LaneConflicts conflicts;
    float column_logs[kLaneColumns], column_gradients[kLaneColumns];
};
template <bool kBoth>
__device__ __forceinline__ void load_group(CosineGroup& group, const BlockArguments& a, int first_row, int group_column) {
#pragma unroll
    for (int r = 0; r < kWeightRows; ++r)
#pragma unroll
        for (int half = 0; half < kLaneColumns; half += 4) {
            const int column = lane_column(group_column, half);
            Floats4 four{};
            if (first_row + r < a.num_rows && column < a.num_columns)
                four = load<Floats4>(a.scores + static_cast<long long>(first_row + r) * a.pitch + column);
#pragma unroll
            for (int c = 0; c < 4; ++c) group.value[r][half + c] = four.value[c];
        }
    group.conflicts = lane_conflicts(a, first_row, group_column);
    if (kBoth) {
#pragma unroll
        for (int c = 0; c < kLaneColumns; ++c) {
            const int column = lane_column(group_column, c);
            group.column_logs[c] = column < a.num_columns ? a.column_logs[column] : 0.f;
            group.column_gradients[c] = column < a.num_columns ? a.column_gradients[column] : 0.f;
        }
    }
}

template <class Format, bool kMasked, bool kBoth>
__device__ __forceinline__ void weigh_group(const BlockArguments& a, const CosineGroup& group, int first_row, int group_column,
                                            float rate, const float (&row_logs)[kWeightRows],
                                            const float (&row_factors)[kWeightRows], float scale,
                                            float (&temperature_sums)[kWeightRows]) {
    unsigned row_mask = ~0u, column_mask = ~0u;  // bit 8 r + c
    if (kMasked) {
        const unsigned conflicts = group.conflicts.bits();
        for (int c = 0; c < kLaneColumns; ++c) {
            if (!(conflicts >> c & 1u)) continue;
            const int column = lane_column(group_column, c);
            for (int r = 0; r < kWeightRows; ++r) {
                const bool inside = first_row + r < a.num_rows && column < a.num_columns;
                const Allowed may = inside ? allowed(a, first_row + r, column) : Allowed{false, false};
                if (!may.for_row) row_mask &= ~(1u << (8 * r + c));
                if (!may.for_column) column_mask &= ~(1u << (8 * r + c));
            }
        }
    }
    warp_barrier();  // the first group's weights overwrite cosines of the same group, which all lanes have read by now
#pragma unroll
    for (int half = 0; half < kLaneColumns; half += 4) {
        const int first_column = lane_column(group_column, half);
        float column_logs[4], column_factors[4];
        if (kBoth) {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                column_logs[c] = group.column_logs[half + c] * kLog2E;
                column_factors[c] = group.column_gradients[half + c] * scale;
            }
        }
#pragma unroll
        for (int r = 0; r < kWeightRows; ++r) {
            float weight[4];
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const int bit = 8 * r + half + c;
                const bool used = !kMasked || ((row_mask | (kBoth ? column_mask : 0u)) >> bit & 1u);
                const float cosine = used ? group.value[r][half + c] : 0.f;  // otherwise it may be anything, even NaN
                weight[c] = row_factors[r] * exp2_approximate(cosine * rate - row_logs[r]);
                if (kMasked && !(row_mask >> bit & 1u)) weight[c] = 0.f;
                if (kBoth) {
                    const float other = column_factors[c] * exp2_approximate(cosine * rate - column_logs[c]);
                    if (!kMasked || column_mask >> bit & 1u) weight[c] += other;
                }
                temperature_sums[r] += weight[c] * cosine;
            }
            if (!kMasked || (first_row + r < a.num_rows && first_column < a.num_columns)) {
                auto* const row = reinterpret_cast<unsigned char*>(a.scores + static_cast<long long>(first_row + r) * a.pitch);
                store(row + first_column * 2, Words2{{pack<Format>(weight[0], weight[1]), pack<Format>(weight[2], weight[3])}});
            }
        }
    }
}

template <class Format, bool kBoth>
__global__ void __launch_bounds__(kWeightThreads) contrastive_weights(const BlockArguments arguments) {
    const BlockArguments& a = arguments;
    const int first_row = block_x() * kWeightBlockRows + warp_index() * kWeightRows, lane = lane_index();
    if (first_row >= a.num_rows) return;
    const float rate = load<float>(a.inverse_temperature) * kLog2E, scale = load<float>(a.weight_scale);
    float row_logs[kWeightRows], row_factors[kWeightRows], temperature_sums[kWeightRows];
#pragma unroll
    for (int r = 0; r < kWeightRows; ++r) {
        const bool inside = first_row + r < a.num_rows;
        row_logs[r] = inside ? a.row_logs[first_row + r] * kLog2E : 0.f;
        row_factors[r] = inside ? a.row_gradients[first_row + r] * scale : 0.f;
        temperature_sums[r] = 0.f;
    }
    CosineGroup group, next;
    load_group<kBoth>(next, a, first_row, 0);
    for (int group_column = 0; group_column < a.num_columns; group_column += kGroupColumns) {
        group = next;
        if (group_column + kGroupColumns < a.num_columns) load_group<kBoth>(next, a, first_row, group_column + kGroupColumns);
        if (group.conflicts.any())
            weigh_group<Format, true, kBoth>(a, group, first_row, group_column, rate, row_logs, row_factors, scale,
                                             temperature_sums);
        else
            weigh_group<Format, false, kBoth>(a, group, first_row, group_column, rate, row_logs, row_factors, scale,
                                              temperature_sums);
    }
#pragma unroll
    for (int r = 0; r < kWeightRows; ++r) {
#pragma unroll
        for (int mask = 1; mask < 32; mask *= 2) temperature_sums[r] += shuffle_xor(temperature_sums[r], mask);
        if (lane == r && first_row + r < a.num_rows)
            a.temperature_sums[first_row + r] = (a.begins_rows ? 0.f : a.temperature_sums[first_row + r]) + temperature_sums[r];
    }
}

}  // namespace unimo

// layer_norm(residual + dropout(x)), forward and backward. One warp per row, 16 bytes per lane at a time; each pass recomputes
// the mask from the keys, as in the attention kernels. Everything is read once and written once: memory-bound.
#pragma once

#include "../common/dropout.cuh"
#include "../common/rows.cuh"

namespace unimo {

constexpr int kNormWarps = 4;
constexpr int kNormThreads = kNormWarps * 32;
constexpr int kWarpColumns = 32 * kChunkColumns;     // per access of a warp
constexpr int kMaxNormChunks = 4;                     // accesses per row: 1,024 columns

struct DropoutNormArguments {
    const void* x;                  // [T, D]
    const void* residual;           // [T, D]
    const void* weight;             // [D]
    const void* bias;               // [D]
    const unsigned* position_keys;  // [T]
    void* sum;                      // [T, D] residual + dropout(x), rounded; read by the backward kernel
    void* result;                   // [T, D]
    float* means;                   // [T]
    float* inverse_deviations;      // [T]
    const void* gradient;           // [T, D] of the result
    void* x_gradient;               // [T, D]
    void* residual_gradient;        // [T, D]
    float* partials;                // [blocks, 2, D] each block's part of the gradients of weight and bias
    int num_rows;
    int num_columns;
    int num_blocks;                 // of the backward kernel
    int dropout_threshold;          // for a column's signed 16 bits; -32768 keeps all
    unsigned site_key;
    float keep_scale;
    float epsilon;
};

// Zeroes what the row's mask drops in the eight columns from `column` on, and scales the rest.
__device__ __forceinline__ void drop(Chunk& chunk, unsigned row_key, int column, int threshold, float keep_scale) {
#pragma unroll
    for (int i = 0; i < kChunkColumns; i += 2) {
        const unsigned word = dropout_word(row_key, column + i);
        chunk.value[i] = keeps_even(word, threshold) ? chunk.value[i] * keep_scale : 0.f;
        chunk.value[i + 1] = keeps_odd(word, threshold) ? chunk.value[i + 1] * keep_scale : 0.f;
    }
}

// Only dropout, for rows of any multiple of eight columns: `x` to `result`. The gradient of x is that of the result, so dropped.
template <class Format>
__global__ void __launch_bounds__(kNormThreads) keyed_dropout(const DropoutNormArguments arguments) {
    const int row = block_x() * kNormWarps + warp_index(), columns = arguments.num_columns;
    if (row >= arguments.num_rows) return;
    const long long start = static_cast<long long>(row) * columns;
    const unsigned row_key = finalize(arguments.position_keys[row] + arguments.site_key);
    for (int column = lane_index() * kChunkColumns; column < columns; column += kWarpColumns) {
        Chunk x = load_chunk<Format>(arguments.x, start + column);
        drop(x, row_key, column, arguments.dropout_threshold, arguments.keep_scale);
        store_words(arguments.result, start + column, packed<Format>(x));
    }
}

template <class Format, int kChunks, bool kDropout>
__global__ void __launch_bounds__(kNormThreads) dropout_norm_forward(const DropoutNormArguments arguments) {
    const int row = block_x() * kNormWarps + warp_index(), columns = arguments.num_columns;
    if (row >= arguments.num_rows) return;
    const long long start = static_cast<long long>(row) * columns;
    const unsigned row_key = kDropout ? finalize(arguments.position_keys[row] + arguments.site_key) : 0u;
    Chunk sums[kChunks];
    float total = 0.f;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
        const int column = c * kWarpColumns + lane_index() * kChunkColumns;
        sums[c] = {};
        if (column >= columns) continue;
        Chunk x = load_chunk<Format>(arguments.x, start + column);
        const Chunk residual = load_chunk<Format>(arguments.residual, start + column);
        if (kDropout) drop(x, row_key, column, arguments.dropout_threshold, arguments.keep_scale);
#pragma unroll
        for (int i = 0; i < kChunkColumns; ++i) x.value[i] += residual.value[i];
        const Words4 rounded = packed<Format>(x);
        store_words(arguments.sum, start + column, rounded);
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // the norm is of the rounded sum, which the backward kernel reads
            const Pair pair = unpack<Format>(rounded.word[i]);
            sums[c].value[2 * i] = pair.low;
            sums[c].value[2 * i + 1] = pair.high;
            total += pair.low + pair.high;
        }
    }
    const float mean = warp_sum(total) / float(columns);
    float squares = 0.f;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
        if (c * kWarpColumns + lane_index() * kChunkColumns >= columns) continue;
#pragma unroll
        for (int i = 0; i < kChunkColumns; ++i) {
            const float centred = sums[c].value[i] - mean;
            squares += centred * centred;
        }
    }
    const float inverse_deviation = 1.f / sqrtf(warp_sum(squares) / float(columns) + arguments.epsilon);
    if (lane_index() == 0) {
        arguments.means[row] = mean;
        arguments.inverse_deviations[row] = inverse_deviation;
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
        const int column = c * kWarpColumns + lane_index() * kChunkColumns;
        if (column >= columns) continue;
        const Chunk weight = load_chunk<Format>(arguments.weight, column), bias = load_chunk<Format>(arguments.bias, column);
        Chunk result;
#pragma unroll
        for (int i = 0; i < kChunkColumns; ++i)
            result.value[i] = (sums[c].value[i] - mean) * inverse_deviation * weight.value[i] + bias.value[i];
        store_words(arguments.result, start + column, packed<Format>(result));
    }
}

// Each warp loops over rows a grid apart and keeps its part of the gradients of weight and bias in registers; the block adds
// its warps' parts in shared memory and writes one row of `partials`, which the caller sums: no atomics.
template <class Format, int kChunks, bool kDropout>
__global__ void __launch_bounds__(kNormThreads) dropout_norm_backward(const DropoutNormArguments arguments) {
    const int columns = arguments.num_columns;
    Chunk weight_sums[kChunks], bias_sums[kChunks];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) weight_sums[c] = bias_sums[c] = {};

    for (int row = block_x() * kNormWarps + warp_index(); row < arguments.num_rows; row += arguments.num_blocks * kNormWarps) {
        const long long start = static_cast<long long>(row) * columns;
        const float mean = arguments.means[row], inverse_deviation = arguments.inverse_deviations[row];
        const unsigned row_key = kDropout ? finalize(arguments.position_keys[row] + arguments.site_key) : 0u;
        Chunk normed[kChunks], slopes[kChunks];
        float slope_sum = 0.f, product_sum = 0.f;
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
            const int column = c * kWarpColumns + lane_index() * kChunkColumns;
            if (column >= columns) continue;
            normed[c] = load_chunk<Format>(arguments.sum, start + column);
            slopes[c] = load_chunk<Format>(arguments.gradient, start + column);
            const Chunk weight = load_chunk<Format>(arguments.weight, column);
#pragma unroll
            for (int i = 0; i < kChunkColumns; ++i) {
                normed[c].value[i] = (normed[c].value[i] - mean) * inverse_deviation;
                weight_sums[c].value[i] += slopes[c].value[i] * normed[c].value[i];
                bias_sums[c].value[i] += slopes[c].value[i];
                slopes[c].value[i] *= weight.value[i];
                slope_sum += slopes[c].value[i];
                product_sum += slopes[c].value[i] * normed[c].value[i];
            }
        }
        const float slope_mean = warp_sum(slope_sum) / float(columns), product_mean = warp_sum(product_sum) / float(columns);
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
            const int column = c * kWarpColumns + lane_index() * kChunkColumns;
            if (column >= columns) continue;
            Chunk gradient;
#pragma unroll
            for (int i = 0; i < kChunkColumns; ++i)
                gradient.value[i] = (slopes[c].value[i] - slope_mean - normed[c].value[i] * product_mean) * inverse_deviation;
            store_words(arguments.residual_gradient, start + column, packed<Format>(gradient));
            if (kDropout) {
                drop(gradient, row_key, column, arguments.dropout_threshold, arguments.keep_scale);
                store_words(arguments.x_gradient, start + column, packed<Format>(gradient));
            }
        }
    }

    auto* const shared = reinterpret_cast<float*>(shared_memory());  // [2, warps, D]
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
        const int column = c * kWarpColumns + lane_index() * kChunkColumns;
        if (column >= columns) continue;
#pragma unroll
        for (int i = 0; i < kChunkColumns; ++i) {
            store(shared + warp_index() * columns + column + i, weight_sums[c].value[i]);
            store(shared + (kNormWarps + warp_index()) * columns + column + i, bias_sums[c].value[i]);
        }
    }
    block_barrier();
    for (int i = thread_index(); i < 2 * columns; i += kNormThreads) {
        const float* const first = shared + i / columns * kNormWarps * columns + i % columns;
        float total = 0.f;
#pragma unroll
        for (int warp = 0; warp < kNormWarps; ++warp) total += load<float>(first + warp * columns);
        arguments.partials[static_cast<long long>(block_x()) * 2 * columns + i] = total;
    }
}

}  // namespace unimo

// Exact gelu(x + bias), x * (normal distribution function of x), and its gradients. x is the linear layer's product without
// its bias, which is added here, since its gradient is a sum over rows that the backward kernel writes anyway.
//
// A thread takes eight columns and loops over the rows, four at a time to have enough loads in flight. Memory-bound.
#pragma once

#include "../common/rows.cuh"

namespace unimo {

constexpr int kGeluThreads = 128;
constexpr int kGeluRows = 4;  // per thread at a time
constexpr int kGeluColumns = kGeluThreads * kChunkColumns;

struct BiasGeluArguments {
    const void* x;         // [T, F]
    const void* bias;      // [F]
    void* result;          // [T, F]
    const void* gradient;  // [T, F] of the result
    void* x_gradient;      // [T, F]
    float* partials;       // [blocks, F] each block's part of the gradient of the bias; the caller sums them: no atomics
    int num_rows;
    int num_columns;       // a multiple of 8
    int num_blocks;        // over the rows
};

// The standard normal distribution function at z, by a fit of erfc with a relative error of 1.2e-7 everywhere (Numerical
// Recipes, "erfcc"), so that the tail, which multiplies large negative z, is as accurate as the rest.
__device__ __forceinline__ float normal_distribution(float z) {
    const float x = fabsf(z) * 0.70710678f, t = reciprocal_approximate(1.f + 0.5f * x);
    float fit = 0.17087277f;
    fit = fit * t - 0.82215223f;
    fit = fit * t + 1.48851587f;
    fit = fit * t - 1.13520398f;
    fit = fit * t + 0.27886807f;
    fit = fit * t - 0.18628806f;
    fit = fit * t + 0.09678418f;
    fit = fit * t + 0.37409196f;
    fit = fit * t + 1.00002368f;
    fit = fit * t - 1.26551223f;
    const float half_tail = 0.5f * t * exp2_approximate((fit - x * x) * 1.44269504f);
    return z < 0.f ? half_tail : 1.f - half_tail;
}
__device__ __forceinline__ float normal_density(float z) { return 0.39894228f * exp2_approximate(z * z * -0.72134752f); }

// Starts to load the column's chunks of up to four rows from `first` on, zeros beyond the last row.
__device__ __forceinline__ void load_rows(Words4 (&words)[kGeluRows], const void* tensor, const BiasGeluArguments& a, int first,
                                          int column) {
#pragma unroll
    for (int r = 0; r < kGeluRows; ++r) {
        words[r] = {};
        if (first + r < a.num_rows)
            words[r] = load<Words4>(static_cast<const unsigned char*>(tensor) +
                                    2 * (static_cast<long long>(first + r) * a.num_columns + column));
    }
}

template <class Format>
__global__ void __launch_bounds__(kGeluThreads) bias_gelu_forward(const BiasGeluArguments arguments) {
    const BiasGeluArguments& a = arguments;
    const int column = (block_x() * kGeluThreads + thread_index()) * kChunkColumns;
    if (column >= a.num_columns) return;
    const Chunk bias = load_chunk<Format>(a.bias, column);
    for (int first = block_y() * kGeluRows; first < a.num_rows; first += a.num_blocks * kGeluRows) {
        Words4 words[kGeluRows];
        load_rows(words, a.x, a, first, column);
#pragma unroll
        for (int r = 0; r < kGeluRows; ++r) {
            Chunk chunk = unpacked<Format>(words[r]);
#pragma unroll
            for (int i = 0; i < kChunkColumns; ++i) {
                const float z = chunk.value[i] + bias.value[i];
                chunk.value[i] = z * normal_distribution(z);
            }
            if (first + r < a.num_rows)
                store_words(a.result, static_cast<long long>(first + r) * a.num_columns + column, packed<Format>(chunk));
        }
    }
}

template <class Format>
__global__ void __launch_bounds__(kGeluThreads) bias_gelu_backward(const BiasGeluArguments arguments) {
    const BiasGeluArguments& a = arguments;
    const int column = (block_x() * kGeluThreads + thread_index()) * kChunkColumns;
    if (column >= a.num_columns) return;
    const Chunk bias = load_chunk<Format>(a.bias, column);
    Chunk bias_sums{};
    for (int first = block_y() * kGeluRows; first < a.num_rows; first += a.num_blocks * kGeluRows) {
        Words4 words[kGeluRows], slopes[kGeluRows];
        load_rows(words, a.x, a, first, column);
        load_rows(slopes, a.gradient, a, first, column);
#pragma unroll
        for (int r = 0; r < kGeluRows; ++r) {
            const Chunk chunk = unpacked<Format>(words[r]);
            Chunk slope = unpacked<Format>(slopes[r]);  // zeros, so no contribution, beyond the last row
#pragma unroll
            for (int i = 0; i < kChunkColumns; ++i) {
                const float z = chunk.value[i] + bias.value[i];
                slope.value[i] *= normal_distribution(z) + z * normal_density(z);
                bias_sums.value[i] += slope.value[i];
            }
            if (first + r < a.num_rows)
                store_words(a.x_gradient, static_cast<long long>(first + r) * a.num_columns + column, packed<Format>(slope));
        }
    }
#pragma unroll
    for (int i = 0; i < kChunkColumns; i += 4) {
        float* const target = a.partials + static_cast<long long>(block_y()) * a.num_columns + column + i;
#pragma unroll
        for (int k = 0; k < 4; ++k) target[k] = bias_sums.value[i + k];
    }
}

}  // namespace unimo

// Private candidates: cosines of listed pairs of vectors, their gradients, and log-sum-exps over ragged segments. A warp takes
// one cosine, one vector, or one segment; everything is summed in listed order, so two runs give the same bits.
#pragma once

#include "block.cuh"

namespace unimo {

constexpr int kPairWarps = 8;
constexpr int kPairThreads = kPairWarps * 32;
constexpr int kChunk = 8;                       // 16-bit elements of one load
constexpr int kSliceChunks = 4;                 // loads of a lane in one row of a slice
constexpr int kSliceSize = 32 * kChunk * kSliceChunks;

struct PairArguments {
    const void* left;               // [., size] 16 bit
    const void* right;              // [., size]
    const long long* left_rows;     // [num_scores] which left vector
    const long long* right_rows;    // [num_scores]
    float* scores;                  // [num_scores]
    const long long* order;         // [num_scores] scores by their left vector, stable
    const long long* starts;        // [num_rows + 1] where each left vector's begin in `order`
    const float* score_gradients;   // [num_scores]
    void* gradient;                 // [num_rows, size] of the left vectors, fp32 or 16 bit
    int num_scores, num_rows, size; // size: a multiple of 8
};

template <class Format>
__device__ __forceinline__ void unpack_chunk(float (&values)[kChunk], const void* row, int chunk) {
    const Words4 words = load<Words4>(static_cast<const unsigned char*>(row) + chunk * 16);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const Pair pair = unpack<Format>(words.word[i]);
        values[2 * i] = pair.low;
        values[2 * i + 1] = pair.high;
    }
}
__device__ __forceinline__ const unsigned char* vector_row(const void* vectors, long long row, int size) {
    return static_cast<const unsigned char*>(vectors) + row * size * 2;
}

template <class Format>
__global__ void __launch_bounds__(kPairThreads) contrastive_pair_scores(const PairArguments a) {
    const int at = block_x() * kPairWarps + warp_index(), lane = lane_index();
    if (at >= a.num_scores) return;
    const unsigned char* const left = vector_row(a.left, a.left_rows[at], a.size);
    const unsigned char* const right = vector_row(a.right, a.right_rows[at], a.size);
    float sum = 0.f;
#pragma unroll 4
    for (int chunk = lane; chunk < a.size / kChunk; chunk += 32) {
        float one[kChunk], other[kChunk];
        unpack_chunk<Format>(one, left, chunk);
        unpack_chunk<Format>(other, right, chunk);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sum += one[i] * other[i];
    }
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
    if (lane == 0) a.scores[at] = sum;
}

// gradient[row] = sum over the row's scores of score gradient * right vector
template <class Format, bool kWide>
__global__ void __launch_bounds__(kPairThreads) contrastive_pair_gradients(const PairArguments a) {
    const int row = block_x() * kPairWarps + warp_index(), lane = lane_index();
    if (row >= a.num_rows) return;
    const int first_chunk = block_y() * (kSliceSize / kChunk) + lane, num_chunks = a.size / kChunk;
    float sums[kSliceChunks][kChunk];
#pragma unroll
    for (int s = 0; s < kSliceChunks; ++s)
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sums[s][i] = 0.f;
    const long long begin = a.starts[row], end = a.starts[row + 1];
    for (long long base = begin; base < end; base += 32) {
        unsigned mine = 0;
        float gradient = 0.f;
        if (base + lane < end) {
            const long long at = a.order[base + lane];
            mine = unsigned(a.right_rows[at]);
            gradient = a.score_gradients[at];
        }
        const int count = end - base < 32 ? int(end - base) : 32;
        for (int i = 0; i < count; ++i) {
            const float factor = shuffle(gradient, i);
            const unsigned char* const right = vector_row(a.right, shuffle(mine, i), a.size);
#pragma unroll
            for (int s = 0; s < kSliceChunks; ++s) {
                if (first_chunk + 32 * s >= num_chunks) continue;
                float values[kChunk];
                unpack_chunk<Format>(values, right, first_chunk + 32 * s);
#pragma unroll
                for (int j = 0; j < kChunk; ++j) sums[s][j] += factor * values[j];
            }
        }
    }
#pragma unroll
    for (int s = 0; s < kSliceChunks; ++s) {
        const int chunk = first_chunk + 32 * s;
        if (chunk >= num_chunks) continue;
        const long long at = static_cast<long long>(row) * a.size + chunk * kChunk;
        if (kWide) {
            float* const target = static_cast<float*>(a.gradient) + at;
#pragma unroll
            for (int i = 0; i < kChunk; i += 4)
                store(target + i, Floats4{{sums[s][i], sums[s][i + 1], sums[s][i + 2], sums[s][i + 3]}});
        } else {
            Words4 words;
#pragma unroll
            for (int i = 0; i < 4; ++i) words.word[i] = pack<Format>(sums[s][2 * i], sums[s][2 * i + 1]);
            store(static_cast<unsigned char*>(a.gradient) + at * 2, words);
        }
    }
}

struct SegmentArguments {
    const float* values;            // [num_values]
    const long long* order;         // [num_values] values by their segment
    const long long* starts;        // [num_segments + 1]
    float* results;                 // [num_segments] log of the sum of exp; -inf for an empty one
    int num_segments;
};

__global__ void __launch_bounds__(kPairThreads) contrastive_segments(const SegmentArguments a) {
    const int segment = block_x() * kPairWarps + warp_index(), lane = lane_index();
    if (segment >= a.num_segments) return;
    Running total{-infinity(), 0.f};
    for (long long at = a.starts[segment] + lane; at < a.starts[segment + 1]; at += 32)
        total = joined(total, {a.values[a.order[at]], 1.f}, kLog2E);
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2)
        total = joined(total, {shuffle_xor(total.maximum, mask), shuffle_xor(total.sum, mask)}, kLog2E);
    if (lane == 0)
        a.results[segment] =
            total.maximum == -infinity() ? -infinity() : total.maximum + log2_approximate(total.sum) / kLog2E;
}

}  // namespace unimo

// Private candidates: cosines of listed pairs of vectors, their gradients, and log-sum-exps over ragged segments. One warp per
// cosine, vector or segment; everything is summed in listed order, so two runs give the same bits.
#pragma once

#include "block.cuh"

namespace unimo {

constexpr int kPairWarps = 8;
constexpr int kPairThreads = kPairWarps * 32;
constexpr int kChunk = 8;                       // 16-bit elements per load
constexpr int kSliceChunks = 3;                 // loads per lane in one row of a slice: 768 elements
constexpr int kSliceSize = 32 * kChunk * kSliceChunks;
constexpr int kFewScores = 4;                   // rows have fewer on average: a warp takes several
constexpr int kRowsOfFew = 8;

struct PairArguments {
    const void* left;               // [., size] 16 bit
    const void* right;              // [., size]
    const long long* left_rows;     // [num_scores] index of the left vector
    const long long* right_rows;    // [num_scores]
    float* scores;                  // [num_scores]
    const long long* order;         // [num_scores] scores sorted by left vector, stable
    const long long* starts;        // [num_listed + 1] start of each left vector's scores in `order`
    const float* score_gradients;   // [num_scores]
    void* gradient;                 // [num_rows, size] of the left vectors, fp32 or 16 bit
    int num_scores, num_rows, size; // size: a multiple of 8
    int num_listed;                 // vectors that are listed; later ones have no score
};

template <class Format>
__device__ __forceinline__ void unpack_words(float (&values)[kChunk], const Words4& words) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const Pair pair = unpack<Format>(words.word[i]);
        values[2 * i] = pair.low;
        values[2 * i + 1] = pair.high;
    }
}
template <class Format>
__device__ __forceinline__ void unpack_chunk(float (&values)[kChunk], const void* row, int chunk) {
    unpack_words<Format>(values, load<Words4>(static_cast<const unsigned char*>(row) + chunk * 16));
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
//
// A warp takes one row if rows have many scores, and several, one after another, if they have few: the indices that lead to a
// vector (starts, then order, then row) are read for 32 scores at once. The next vector is loading while this one is added or a
// row's sum is written.
template <class Format, bool kWide>
__device__ __forceinline__ void write_gradient(const PairArguments& a, int row, int first_chunk, float (&sums)[kSliceChunks][kChunk]) {
#pragma unroll
    for (int s = 0; s < kSliceChunks; ++s) {
        const int chunk = first_chunk + 32 * s;
        if (chunk < a.size / kChunk) {
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
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sums[s][i] = 0.f;
    }
}

// A lane's chunks of one vector in a slice; those beyond its end are not read.
struct Slice {
    Words4 words[kSliceChunks];
};
__device__ __forceinline__ void load_slice(Slice& slice, const unsigned char* row, int first_chunk, int num_chunks) {
#pragma unroll
    for (int s = 0; s < kSliceChunks; ++s)
        if (first_chunk + 32 * s < num_chunks) slice.words[s] = load<Words4>(row + (first_chunk + 32 * s) * 16);
}

template <class Format, bool kWide, bool kFew>
__global__ void __launch_bounds__(kPairThreads, 3) contrastive_pair_gradients(const PairArguments a) {
    constexpr int kRows = kFew ? kRowsOfFew : 1;
    const int first_row = (block_x() * kPairWarps + warp_index()) * kRows, lane = lane_index();
    if (first_row >= a.num_rows) return;
    const int last_row = smaller(first_row + kRows, a.num_rows);
    const int first_chunk = block_y() * (kSliceSize / kChunk) + lane, num_chunks = a.size / kChunk;
    float sums[kSliceChunks][kChunk];
#pragma unroll
    for (int s = 0; s < kSliceChunks; ++s)
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sums[s][i] = 0.f;
    // Lane i holds the end of row i's scores.
    const unsigned end_of_lane = unsigned(a.starts[smaller(smaller(first_row + lane + 1, last_row), a.num_listed)]);
    const int begin = int(a.starts[smaller(first_row, a.num_listed)]), end = int(shuffle(end_of_lane, last_row - first_row - 1));
    int row = first_row, row_end = int(shuffle(end_of_lane, 0));
    for (int base = begin; base < end; base += 32) {
        unsigned mine = 0;
        float gradient = 0.f;
        if (base + lane < end) {
            const long long at = a.order[base + lane];
            mine = unsigned(a.right_rows[at]);
            gradient = a.score_gradients[at];
        }
        const int count = smaller(end - base, 32);
        Slice slice, next;
        load_slice(next, vector_row(a.right, shuffle(mine, 0), a.size), first_chunk, num_chunks);
        for (int i = 0; i < count; ++i) {
            slice = next;
            const float factor = shuffle(gradient, i);
            const unsigned which = shuffle(mine, (i + 1) % 32);
            if (i + 1 < count) load_slice(next, vector_row(a.right, which, a.size), first_chunk, num_chunks);
            while (kFew && base + i >= row_end) {
                write_gradient<Format, kWide>(a, row, first_chunk, sums);
                ++row;
                row_end = int(shuffle(end_of_lane, row - first_row));
            }
#pragma unroll
            for (int s = 0; s < kSliceChunks; ++s) {
                if (first_chunk + 32 * s >= num_chunks) continue;
                float values[kChunk];
                unpack_words<Format>(values, slice.words[s]);
#pragma unroll
                for (int j = 0; j < kChunk; ++j) sums[s][j] += factor * values[j];
            }
        }
    }
    for (; row < last_row; ++row) write_gradient<Format, kWide>(a, row, first_chunk, sums);
}

struct SegmentArguments {
    const float* values;            // [num_values]
    const long long* order;         // [num_values] values sorted by segment; null: value i belongs to segment i % num_segments
    const long long* starts;        // [num_segments + 1]; null likewise
    const long long* index;         // [num_values] the segment of each; null likewise
    float* results;                 // [num_segments] log of the sum of exp; -inf for an empty one. Read by the backward kernel
    const float* gradients;         // [num_segments] of the results
    float* value_gradients;         // [num_values]
    int num_segments, num_values;
};

__global__ void __launch_bounds__(kPairThreads) contrastive_segments(const SegmentArguments a) {
    const int segment = block_x() * kPairWarps + warp_index(), lane = lane_index();
    if (segment >= a.num_segments) return;
    Running total{-infinity(), 0.f};
    if (a.order != nullptr) {
        for (long long at = a.starts[segment] + lane; at < a.starts[segment + 1]; at += 32)
            total = joined(total, {a.values[a.order[at]], 1.f}, kLog2E);
    } else {
        for (int at = segment + lane * a.num_segments; at < a.num_values; at += 32 * a.num_segments)
            total = joined(total, {a.values[at], 1.f}, kLog2E);
    }
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2)
        total = joined(total, {shuffle_xor(total.maximum, mask), shuffle_xor(total.sum, mask)}, kLog2E);
    if (lane == 0)
        a.results[segment] =
            total.sum == 0.f ? -infinity() : total.maximum + log2_approximate(total.sum) / kLog2E;  // nan stays nan
}

// Of the values: the segment's gradient times the value's share of its sum; 0 for a value of -inf, even if the whole sum is 0.
__global__ void __launch_bounds__(kPairThreads) contrastive_segment_gradients(const SegmentArguments a) {
    const int at = block_x() * kPairThreads + thread_index();
    if (at >= a.num_values) return;
    const long long segment = a.index != nullptr ? a.index[at] : at % a.num_segments;
    const float log = a.results[segment];
    a.value_gradients[at] =
        log == -infinity() ? 0.f : a.gradients[segment] * exp2_approximate((a.values[at] - log) * kLog2E);
}

}  // namespace unimo

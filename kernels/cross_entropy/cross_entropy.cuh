// Cross-entropy over rows of 16-bit logits that a matrix product has left without their bias: the log-sum-exp of every row with
// its loss, and slopes (gradients of the losses by logits), which overwrite the logits. Memory-bound: forward reads the logits
// once, backward reads and writes them once. No atomics, all sums in a fixed order: bit-identical from run to run.
#pragma once

#include "../common/rows.cuh"

namespace unimo {

constexpr int kEntropyWarps = 4;
constexpr int kEntropyThreads = kEntropyWarps * 32;
constexpr int kEntropyRows = 4;                                 // per warp, so that enough loads are in flight
constexpr int kEntropySlab = 8 * 32 * kChunkColumns;            // columns per warp, a part of its rows
constexpr int kSlopeRows = 3;                                   // per thread at a time; nvcc 13 does not load four at once
constexpr int kSlopeColumns = kEntropyThreads * kChunkColumns;  // per block of the slopes kernel
constexpr float kBitsPerNat = 1.4426950408889634f;

// Of a row or a part of it.
struct alignas(16) RowPart {
    float maximum;
    float sum;       // of exp(logit - maximum)
    float logits;    // their sum, if wanted
    float is_beaten; // 1 if a column has a higher logit than the target, or the same and comes first
};

// Values of a row that its slopes need.
struct alignas(16) RowFacts {
    float maximum;
    float log_sum;       // base 2, of the sum of exp(logit - maximum)
    float target_slope;
    int target;          // its column; -1 if there is no such column, and then the loss is NaN
};

struct CrossEntropyArguments {
    void* logits;              // [N, pitch] without bias; then the slopes
    const void* bias;          // [V]
    const long long* targets;  // [N]
    RowPart* parts;            // [slabs, N]
    RowFacts* facts;           // [N]
    float* losses;             // [N]
    unsigned char* is_correct; // [N] null: not wanted
    const float* gradients;    // [N] of the losses
    float* partials;           // [blocks, pitch] each block's part of the gradient of the bias; the caller sums them
    int num_rows;
    int num_words;             // V
    int pitch;                 // a multiple of 8; columns from V on may hold anything
    int num_slabs;
    int num_blocks;            // over the rows, in the slopes kernel
    float smoothing;
};

// -inf beyond the last word.
template <class Format>
__device__ __forceinline__ Chunk load_bias(const CrossEntropyArguments& a, int column) {
    if (column + kChunkColumns <= a.num_words) return load_chunk<Format>(a.bias, column);
    Chunk chunk;
#pragma unroll
    for (int i = 0; i < kChunkColumns; ++i)
        chunk.value[i] = column + i < a.num_words ? load_element<Format>(a.bias, column + i) : -infinity();
    return chunk;
}

// The column's chunks of four rows from `first` on; beyond the end, the last row again.
__device__ __forceinline__ void load_logits(Words4 (&words)[kEntropyRows], const CrossEntropyArguments& a, int first, int column) {
#pragma unroll
    for (int r = 0; r < kEntropyRows; ++r) {
        const int row = smaller(first + r, a.num_rows - 1);
        words[r] = load<Words4>(static_cast<const unsigned char*>(a.logits) + 2 * (static_cast<long long>(row) * a.pitch + column));
    }
}

// Zeroes all but the first `count` of eight elements, so that there is no NaN beyond the last word.
__device__ __forceinline__ void keep_first(Words4& words, int count) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (2 * i >= count) words.word[i] = 0u;
        if (2 * i + 1 >= count) words.word[i] &= 0xffffu;
    }
}

// Logits with their bias.
template <class Format>
__device__ __forceinline__ Chunk biased(const Words4& words, const Chunk& bias) {
    Chunk chunk = unpacked<Format>(words);
#pragma unroll
    for (int i = 0; i < kChunkColumns; ++i) chunk.value[i] += bias.value[i];
    return chunk;
}

__device__ __forceinline__ float finite_anchor(float maximum) { return maximum == -infinity() ? 0.f : maximum; }

// Joins the lanes' parts of a row.
__device__ __forceinline__ RowPart over_warp(const RowPart& part) {
    RowPart row;
    row.maximum = warp_maximum(part.maximum);
    row.sum = warp_sum(part.sum * exp2_approximate((part.maximum - finite_anchor(row.maximum)) * kBitsPerNat));
    row.logits = warp_sum(part.logits);
    row.is_beaten = warp_maximum(part.is_beaten);
    return row;
}

struct Target {
    int column;  // -1: no such column
    float logit;
};
template <class Format>
__device__ __forceinline__ Target target_of(const CrossEntropyArguments& a, int row) {
    const long long wanted = a.targets[row];
    if (wanted < 0 || wanted >= a.num_words) return {-1, 0.f};
    const int column = static_cast<int>(wanted);
    return {column, load_element<Format>(a.logits, static_cast<long long>(row) * a.pitch + column) +
                        load_element<Format>(a.bias, column)};
}

// A warp takes four rows of a slab of columns. kMore: also the sum of the logits, and whether the target is beaten.
template <class Format, bool kMore>
__global__ void __launch_bounds__(kEntropyThreads) cross_entropy_parts(const CrossEntropyArguments arguments) {
    const CrossEntropyArguments& a = arguments;
    const int first = block_x() * kEntropyRows, slab = block_y() * kEntropyWarps + warp_index();
    if (slab >= a.num_slabs) return;
    const int end = smaller((slab + 1) * kEntropySlab, a.num_words);
    RowPart parts[kEntropyRows];
    [[maybe_unused]] Target targets[kEntropyRows];
#pragma unroll
    for (int r = 0; r < kEntropyRows; ++r) {
        parts[r] = {-infinity(), 0.f, 0.f, 0.f};
        if constexpr (kMore) targets[r] = target_of<Format>(a, smaller(first + r, a.num_rows - 1));
    }
    for (int column = slab * kEntropySlab + lane_index() * kChunkColumns; column < end; column += 32 * kChunkColumns) {
        Words4 words[kEntropyRows];
        load_logits(words, a, first, column);
        const Chunk bias = load_bias<Format>(a, column);
        if (column + kChunkColumns > a.num_words) {
#pragma unroll
            for (int r = 0; r < kEntropyRows; ++r) keep_first(words[r], a.num_words - column);
        }
#pragma unroll
        for (int r = 0; r < kEntropyRows; ++r) {
            const Chunk chunk = biased<Format>(words[r], bias);
            float largest = chunk.value[0];
#pragma unroll
            for (int i = 1; i < kChunkColumns; ++i) largest = larger(largest, chunk.value[i]);
            const float maximum = larger(parts[r].maximum, largest), anchor = finite_anchor(maximum);
            float sum = 0.f;
#pragma unroll
            for (int i = 0; i < kChunkColumns; ++i) sum += exp2_approximate((chunk.value[i] - anchor) * kBitsPerNat);
            parts[r].sum = parts[r].sum * exp2_approximate((parts[r].maximum - anchor) * kBitsPerNat) + sum;
            parts[r].maximum = maximum;
            if constexpr (kMore) {
#pragma unroll
                for (int i = 0; i < kChunkColumns; ++i) {
                    if (column + i < a.num_words) parts[r].logits += chunk.value[i];
                    const bool is_before = column + i < targets[r].column;
                    if (is_before ? chunk.value[i] >= targets[r].logit : chunk.value[i] > targets[r].logit)
                        parts[r].is_beaten = 1.f;
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < kEntropyRows; ++r) {
        const RowPart part = over_warp(parts[r]);
        if (lane_index() == r && first + r < a.num_rows) store(a.parts + static_cast<long long>(slab) * a.num_rows + first + r, part);
    }
}

// A warp joins the parts of a row.
template <class Format>
__global__ void __launch_bounds__(kEntropyThreads) cross_entropy_losses(const CrossEntropyArguments arguments) {
    const CrossEntropyArguments& a = arguments;
    const int row = block_x() * kEntropyWarps + warp_index();
    if (row >= a.num_rows) return;
    RowPart mine{-infinity(), 0.f, 0.f, 0.f};
    for (int slab = lane_index(); slab < a.num_slabs; slab += 32) {
        const RowPart part = load<RowPart>(a.parts + static_cast<long long>(slab) * a.num_rows + row);
        const float maximum = larger(mine.maximum, part.maximum), anchor = finite_anchor(maximum);
        mine.sum = mine.sum * exp2_approximate((mine.maximum - anchor) * kBitsPerNat) +
                   part.sum * exp2_approximate((part.maximum - anchor) * kBitsPerNat);
        mine.maximum = maximum;
        mine.logits += part.logits;
        mine.is_beaten = larger(mine.is_beaten, part.is_beaten);
    }
    const RowPart whole = over_warp(mine);
    if (lane_index()) return;
    const Target target = target_of<Format>(a, row);
    const float log_sum = logf(whole.sum);
    // The difference of the logits first: its precision does not depend on how large they are.
    const float target_log = target.column < 0 ? infinity() - infinity() : target.logit - whole.maximum - log_sum;
    float wanted = target_log;
    if (a.smoothing > 0.f) {
        const float mean_log = whole.logits / float(a.num_words) - whole.maximum - log_sum;
        wanted = (1.f - a.smoothing) * target_log + a.smoothing * mean_log;
    }
    a.losses[row] = -wanted;
    // The target's is p - 1, whose digits cancel if p is almost 1.
    const float target_slope = expm1f(target_log) + (a.smoothing - a.smoothing / float(a.num_words));
    store(a.facts + row, RowFacts{whole.maximum, log2f(whole.sum), target_slope, target.column});
    if (a.is_correct) a.is_correct[row] = whole.is_beaten == 0.f && target_log == target_log;  // false for NaN
}

// Slopes of kRows rows in the eight columns from `column` on, and their part of the gradient of the bias.
template <class Format, int kRows>
__device__ __forceinline__ void take_slopes(const CrossEntropyArguments& a, int first, int column, const Chunk& bias, float share,
                                            Chunk& bias_sums) {
    unsigned char* const start = static_cast<unsigned char*>(a.logits) + 2 * (static_cast<long long>(first) * a.pitch + column);
    const long long row_bytes = 2ll * a.pitch;
    Words4 words[kRows];
    RowFacts facts[kRows];
    float gradients[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) words[r] = load<Words4>(start + r * row_bytes);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        facts[r] = load<RowFacts>(a.facts + first + r);
        gradients[r] = load<float>(a.gradients + first + r);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        Chunk slopes = biased<Format>(words[r], bias);
#pragma unroll
        for (int i = 0; i < kChunkColumns; ++i)
            slopes.value[i] = exp2_approximate((slopes.value[i] - facts[r].maximum) * kBitsPerNat - facts[r].log_sum) - share;
        if (facts[r].target >= column && facts[r].target < column + kChunkColumns) {
#pragma unroll
            for (int i = 0; i < kChunkColumns; ++i)
                if (column + i == facts[r].target) slopes.value[i] = facts[r].target_slope;
        }
#pragma unroll
        for (int i = 0; i < kChunkColumns; ++i) bias_sums.value[i] += slopes.value[i] * gradients[r];
        store(start + r * row_bytes, packed<Format>(slopes));
    }
}

// A thread takes eight columns and loops over the rows, three at a time. What it writes beyond the last word has no meaning.
// Slopes are not multiplied by the gradients of the losses: 16 bits may not hold the product. The gradient of the bias is
// summed in fp32 from slopes times these gradients.
template <class Format>
__global__ void __launch_bounds__(kEntropyThreads) cross_entropy_slopes(const CrossEntropyArguments arguments) {
    const CrossEntropyArguments& a = arguments;
    const int column = block_x() * kSlopeColumns + thread_index() * kChunkColumns;
    if (column >= a.num_words) return;
    const Chunk bias = load_bias<Format>(a, column);
    const float share = a.smoothing / float(a.num_words);  // per word
    Chunk bias_sums{};
    for (int first = block_y() * kSlopeRows; first < a.num_rows; first += a.num_blocks * kSlopeRows) {
        if (first + kSlopeRows <= a.num_rows) {
            take_slopes<Format, kSlopeRows>(a, first, column, bias, share, bias_sums);
        } else {
            for (int row = first; row < a.num_rows; ++row) take_slopes<Format, 1>(a, row, column, bias, share, bias_sums);
        }
    }
    float* const target = a.partials + static_cast<long long>(block_y()) * a.pitch + column;
#pragma unroll
    for (int i = 0; i < kChunkColumns; ++i) target[i] = bias_sums.value[i];
}

}  // namespace unimo

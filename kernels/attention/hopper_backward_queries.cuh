// Backward on Hopper, first kernel: gradients of queries and the row sums `deltas`, as backward_queries.cuh, but with the
// dropout scale factored out of the sums: deltas are divided by it, and gradients are multiplied by it when written.
#pragma once

#include "hopper_geometry.cuh"

namespace unimo {

constexpr int kHopperBackwardQueriesBytes = 2 * kHopperOwnBytes + kStages * kPairBytes;

// A warp's 16 output rows: eight lanes per row, four rows at a time.
struct OutputRows {
    Words4 chunks[4];
};
__device__ __forceinline__ void load_output_rows(OutputRows& rows, Rows outputs, int first, int length) {
    const int lane = lane_index();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = first + 4 * i + lane / 8;
        rows.chunks[i] = {};
        if (row < length)
            rows.chunks[i] = load<Words4>(outputs.base + static_cast<long long>(row) * outputs.stride + lane % 8 * 16);
    }
}
// Their dot products with the output gradients, over the dropout scale; the lane gets those of its two rows, and if kWrites all
// go to `target`. Warp w's rows of the tile start at 16 w.
template <class Format, bool kWrites>
__device__ __forceinline__ void make_deltas(float (&deltas)[2], const OutputRows& outputs, unsigned char* gradient_tile,
                                            float keep_scale, float* target, int first, int length) {
    const int lane = lane_index();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = 4 * i + lane / 8, chunk = lane % 8;
        const Words4 other = load<Words4>(hopper_chunk(gradient_tile, warp_index() * 16 + row, chunk));
        float delta = 0.f;
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            const Pair a = unpack<Format>(outputs.chunks[i].word[w]), b = unpack<Format>(other.word[w]);
            delta += a.low * b.low + a.high * b.high;
        }
#pragma unroll
        for (int bit = 1; bit < 8; bit *= 2) delta += shuffle_xor(delta, bit);
        delta /= keep_scale;
        if (kWrites && chunk == 0 && first + row < length) target[first + row] = delta;
        const float candidate = shuffle(delta, lane / 4 % 4 * 8);
        if (lane / 16 == i) deltas[0] = candidate;
        if (lane / 16 + 2 == i) deltas[1] = candidate;
    }
}

template <class Format, bool kDropout, bool kShares>
__device__ __forceinline__ void query_gradients_of_tile(const AttentionArguments& arguments, const TileOfSequence& tile) {
    const int head = block_x(), num_heads = arguments.num_heads, lane = lane_index();
    unsigned char* const shared = shared_memory();
    unsigned char* const query_tile = shared;
    unsigned char* const gradient_tile = shared + kHopperOwnBytes;
    unsigned char* const stages = shared + 2 * kHopperOwnBytes;
    const auto keys = seen_rows<kShares>(arguments, tile, 1, head), values = seen_rows<kShares>(arguments, tile, 2, head);

    begin_rows<kHopperRows>(query_tile, input_rows(arguments.query_key_value, tile.start, 0, head, num_heads), tile.first,
                            tile.length);
    begin_rows<kHopperRows>(gradient_tile, output_rows(arguments.output_gradient, tile.start, head, num_heads), tile.first,
                            tile.length);
    begin_stage(stages, keys, values, 0, tile.num_keys());

    const int group = warp_index() / 4, group_first = tile.first + group * kGroupRows;
    const int group_last = smaller(group_first + kGroupRows, tile.length) - 1;
    const int group_keys = group_first < tile.length ? tile.keys_of(group_last) : 0;
    const int block_keys = tile.keys_of(smaller(tile.first + kHopperRows, tile.length) - 1);
    const int first = tile.first + warp_index() * 16, row = first + lane / 4;
    const long long statistics = static_cast<long long>(head) * arguments.num_positions + tile.start;
    OutputRows outputs;
    load_output_rows(outputs, output_rows(arguments.output, tile.start, head, num_heads), first, tile.length);
    float log_sums[2];
    unsigned row_keys[2] = {0, 0};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int at = row + 8 * h;
        const bool valid = at < tile.length;
        log_sums[h] = valid ? arguments.log_sums[statistics + at] : infinity();
        if (kDropout && valid) {
            row_keys[h] = head_row_key(arguments.position_keys[tile.start + at], arguments.site_key, head);
            if (lane % 4 == 0) arguments.row_keys[statistics + at] = row_keys[h];
        }
    }
    land_copies();
    float deltas[2] = {0.f, 0.f};
    make_deltas<Format, true>(deltas, outputs, gradient_tile, arguments.keep_scale, arguments.deltas + statistics, first, tile.length);

    GroupAccumulator sum, scores, slopes;
#pragma unroll
    for (int i = 0; i < 32; ++i) sum.value[i] = 0.f;

    for (int key = 0, stage = 0; key < block_keys; key += kTileRows, stage ^= 1) {
        if (key > 0) land_copies();
        if (key + kTileRows < block_keys)
            begin_stage(stages + (stage ^ 1) * kPairBytes, keys, values, key + kTileRows, tile.num_keys());
        if (key >= group_keys) continue;
        unsigned char* const key_tile = stages + stage * kPairBytes;
        pin(scores);
        pin(slopes);
        group_fence();
        begin_product<Format>(scores, query_tile + group * kGroupRows * kRowBytes, key_tile);
        group_commit();
        begin_product<Format>(slopes, gradient_tile + group * kGroupRows * kRowBytes, key_tile + kTileBytes);
        group_commit();
        group_wait<1>();
        pin(scores);
#pragma unroll
        for (int i = 0; i < 32; ++i)
            scores.value[i] = exp2_approximate(scores.value[i] * arguments.scale - log_sums[i / 2 % 2]);
        if (key + kTileRows > smaller(tile.keys_of(first), tile.num_keys())) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int limit = smaller(tile.keys_of(row + 8 * h), tile.num_keys()) - key - lane % 4 * 2;
#pragma unroll
                for (int j = 0; j < 8; ++j)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        if (8 * j + e >= limit) scores.at(j, h, e) = 0.f;
            }
        }
        group_wait<0>();
        pin(slopes);
        GroupLeft left[4];
#pragma unroll
        for (int step = 0; step < 4; ++step) {
#pragma unroll
            for (int j = 2 * step; j < 2 * step + 2; ++j)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    if (kDropout) {
                        const unsigned word = dropout_word(row_keys[h], key + 8 * j + lane % 4 * 2);
                        if (!keeps_even(word, arguments.dropout_threshold)) slopes.at(j, h, 0) = 0.f;
                        if (!keeps_odd(word, arguments.dropout_threshold)) slopes.at(j, h, 1) = 0.f;
                    }
#pragma unroll
                    for (int e = 0; e < 2; ++e) scores.at(j, h, e) *= slopes.at(j, h, e) - deltas[h];
                }
            to_group_left<Format>(left[step], scores, step);
        }
#pragma unroll
        for (int step = 0; step < 4; ++step) pin(left[step]);
        pin(sum);
        group_fence();
        begin_sum<Format>(sum, left, key_tile);
        group_commit();
        group_wait<0>();
        pin(sum);
    }

    let_next_kernel_start();
    wait_for_previous_kernel();  // the whole-sequence kernel, if any: who waits for this one waits for both
    block_barrier();
    if (first >= tile.length) return;
    const float scale = 0.125f * arguments.keep_scale, scales[2] = {scale, scale};  // 0.125 = 1 / sqrt(64)
    write_group<Format, false>(sum, scales, shared + warp_index() * 16 * kRowBytes,
                               input_rows(arguments.input_gradient, tile.start, 0, head, num_heads), first, tile.length);
}

template <class Format, bool kDropout, bool kShares>
__global__ void __launch_bounds__(kHopperThreads, 4) hopper_backward_queries(const AttentionArguments arguments) {
    const TileOfSequence tile = tile_of_block<kShares>(arguments);
    if (tile.length <= arguments.whole_length) return;
    if (kShares && tile.shares())
        query_gradients_of_tile<Format, kDropout, kShares>(arguments, tile);
    else
        query_gradients_of_tile<Format, kDropout, false>(arguments, tile);
}

}  // namespace unimo

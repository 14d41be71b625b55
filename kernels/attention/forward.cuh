// Forward: one pass over the keys with an online softmax (FlashAttention); scores never leave registers.
#pragma once

#include "geometry.cuh"

namespace unimo {

constexpr int kForwardSharedBytes = kStages * kPairBytes;

template <class Format, bool kDropout, bool kShares>
__global__ void __launch_bounds__(kThreads) attention_forward(const AttentionArguments arguments) {
    const TileOfSequence tile = tile_of_block<kShares>(arguments);
    if (tile.length == 0) return;
    const int head = block_x(), num_heads = arguments.num_heads, lane = lane_index();
    unsigned char* const shared = shared_memory();
    const auto keys = seen_rows<kShares>(arguments, tile, 1, head), values = seen_rows<kShares>(arguments, tile, 2, head);

    // Queries pass through the second stage, which keys and values need only later.
    unsigned char* const staged = shared + kPairBytes;
    begin_tile(staged, input_rows(arguments.query_key_value, tile.start, 0, head, num_heads), tile.first, tile.length);
    begin_pair(shared, keys, values, 0, tile.num_keys());
    wait_for_copies();
    block_barrier();
    Left queries[4];
#pragma unroll
    for (int step = 0; step < 4; ++step) load_left(queries[step], staged, warp_index() * 16, step);

    const int first = tile.first + warp_index() * 16;  // the warp's first query
    const int last = smaller(first + 16, tile.length) - 1;
    const int warp_keys = first < tile.length ? tile.keys_of(last) : 0;
    const int block_keys = tile.keys_of(smaller(tile.first + kTileRows, tile.length) - 1);
    const int row = first + accumulator_row(lane);
    const int limits[2] = {tile.keys_of(row), tile.keys_of(row + 1)};
    unsigned row_keys[2] = {0, 0};
    if (kDropout) {
#pragma unroll
        for (int r = 0; r < 2; ++r)
            if (row + r < tile.length)
                row_keys[r] = head_row_key(arguments.position_keys[tile.start + row + r], arguments.site_key, head);
    }

    Accumulator outputs[4];
#pragma unroll
    for (int part = 0; part < 4; ++part) outputs[part].clear();
    float maxima[2] = {-infinity(), -infinity()}, sums[2] = {0.f, 0.f};

    for (int key = 0, stage = 0; key < block_keys; key += kTileRows, stage ^= 1) {
        if (key > 0) wait_for_copies();
        block_barrier();  // this stage has landed, and all warps are done with the other one
        if (key + kTileRows < block_keys)
            begin_pair(shared + (stage ^ 1) * kPairBytes, keys, values, key + kTileRows, tile.num_keys());
        if (key >= warp_keys) continue;
        unsigned char* const key_tile = shared + stage * kPairBytes;

        Accumulator scores[4];
        float tile_maxima[2] = {maxima[0], maxima[1]};
#pragma unroll
        for (int sub = 0; sub < 4; ++sub) {
            if (key + sub * 16 >= warp_keys) continue;
            scores[sub].clear();
#pragma unroll
            for (int step = 0; step < 4; ++step) {
                RightOfRows right;
                load_right(right, key_tile, sub * 16, step);
                multiply_add<Format>(scores[sub], queries[step], right);
            }
            const int column = key + sub * 16;
            if (column + 16 > tile.keys_of(first)) {
#pragma unroll
                for (int r = 0; r < 2; ++r)
#pragma unroll
                    for (int c = 0; c < 4; ++c)
                        if (column + accumulator_column(lane, c) >= limits[r]) scores[sub].at(r, c) = -infinity();
            }
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int c = 0; c < 4; ++c) tile_maxima[r] = larger(tile_maxima[r], scores[sub].at(r, c));
        }
        float offsets[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            tile_maxima[r] = row_maximum(tile_maxima[r]);
            const float shrink = exp2_approximate((maxima[r] - tile_maxima[r]) * arguments.scale);
            maxima[r] = tile_maxima[r];
            offsets[r] = maxima[r] * arguments.scale;
            sums[r] *= shrink;
#pragma unroll
            for (int part = 0; part < 4; ++part)
#pragma unroll
                for (int c = 0; c < 4; ++c) outputs[part].at(r, c) *= shrink;
        }
#pragma unroll
        for (int sub = 0; sub < 4; ++sub) {
            if (key + sub * 16 >= warp_keys) continue;
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int c = 0; c < 4; c += 2) {
                    float& low = scores[sub].at(r, c);
                    float& high = scores[sub].at(r, c + 1);
                    low = exp2_approximate(low * arguments.scale - offsets[r]);
                    high = exp2_approximate(high * arguments.scale - offsets[r]);
                    sums[r] += low + high;
                    if (kDropout) {
                        const int column = key + sub * 16 + accumulator_column(lane, c);
                        const unsigned word = dropout_word(row_keys[r], column);
                        if (!keeps_even(word, arguments.dropout_threshold)) low = 0.f;
                        if (!keeps_odd(word, arguments.dropout_threshold)) high = 0.f;
                    }
                }
            Left left;
            to_left<Format>(left, scores[sub]);
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                RightOfColumns right;
                load_right(right, key_tile + kTileBytes, sub * 16, part);
                multiply_add<Format>(outputs[part], left, right);
            }
        }
    }

    block_barrier();  // the stages are reused for the output
    if (first >= tile.length) return;
    float scales[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float sum = row_sum(sums[r]);
        scales[r] = arguments.keep_scale / sum;
        if (accumulator_column(lane, 0) == 0 && row + r < tile.length)
            arguments.log_sums[static_cast<long long>(head) * arguments.num_positions + tile.start + row + r] =
                maxima[r] * arguments.scale + log2_approximate(sum);
    }
    write_rows<Format>(outputs, scales, shared + warp_index() * 16 * kRowBytes,
                       output_rows(arguments.output, tile.start, head, num_heads), first, tile.length);
}

}  // namespace unimo

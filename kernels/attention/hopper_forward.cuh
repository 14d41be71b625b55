// Forward on Hopper: as forward.cuh, with warpgroup products (wgmma).
#pragma once

#include "hopper_geometry.cuh"

namespace unimo {

constexpr int kHopperForwardBytes = kHopperOwnBytes + kStages * kPairBytes;

template <class Format, bool kDropout, bool kShares>
__device__ __forceinline__ void forward_of_tile(const AttentionArguments& arguments, const TileOfSequence& tile) {
    const int head = block_x(), num_heads = arguments.num_heads, lane = lane_index();
    unsigned char* const shared = shared_memory();
    unsigned char* const stages = shared + kHopperOwnBytes;
    const auto keys = seen_rows<kShares>(arguments, tile, 1, head), values = seen_rows<kShares>(arguments, tile, 2, head);

    // Queries stay in shared memory. As register operands over the whole loop they would save a read per tile, but ptxas 13.0
    // gives their registers to the first tile's weights.
    begin_rows<kHopperRows>(shared, input_rows(arguments.query_key_value, tile.start, 0, head, num_heads), tile.first,
                            tile.length);
    begin_stage(stages, keys, values, 0, tile.num_keys());

    const int group_first = tile.first + warp_index() / 4 * kGroupRows;
    const int group_last = smaller(group_first + kGroupRows, tile.length) - 1;
    const int group_keys = group_first < tile.length ? tile.keys_of(group_last) : 0;
    const int block_keys = tile.keys_of(smaller(tile.first + kHopperRows, tile.length) - 1);
    const int first = tile.first + warp_index() * 16;  // the warp's first query
    const int row = first + lane / 4;                  // the lane's queries: this one and the one 8 rows on
    unsigned row_keys[2] = {0, 0};
    if (kDropout) {
#pragma unroll
        for (int h = 0; h < 2; ++h)
            if (row + 8 * h < tile.length)
                row_keys[h] = head_row_key(arguments.position_keys[tile.start + row + 8 * h], arguments.site_key, head);
    }

    const unsigned char* const queries = shared + warp_index() / 4 * kGroupRows * kRowBytes;
    GroupAccumulator output, scores;
#pragma unroll
    for (int i = 0; i < 32; ++i) output.value[i] = 0.f;
    float maxima[2] = {-infinity(), -infinity()}, sums[2] = {0.f, 0.f};

    for (int key = 0, stage = 0; key < block_keys; key += kTileRows, stage ^= 1) {
        land_copies();
        if (key + kTileRows < block_keys)
            begin_stage(stages + (stage ^ 1) * kPairBytes, keys, values, key + kTileRows, tile.num_keys());
        if (key >= group_keys) continue;
        unsigned char* const key_tile = stages + stage * kPairBytes;
        pin(scores);
        group_fence();
        begin_product<Format>(scores, queries, key_tile);
        group_commit();
        group_wait<0>();
        pin(scores);

        if (key + kTileRows > smaller(tile.keys_of(first), tile.num_keys())) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int limit = smaller(tile.keys_of(row + 8 * h), tile.num_keys()) - key - lane % 4 * 2;
#pragma unroll
                for (int j = 0; j < 8; ++j)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        if (8 * j + e >= limit) scores.at(j, h, e) = -infinity();
            }
        }
        float offsets[2], shrinks[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float maximum = maxima[h];
#pragma unroll
            for (int j = 0; j < 8; ++j) maximum = larger(maximum, larger(scores.at(j, h, 0), scores.at(j, h, 1)));
            maximum = larger(maximum, shuffle_xor(maximum, 1));
            maximum = larger(maximum, shuffle_xor(maximum, 2));
            shrinks[h] = exp2_approximate((maxima[h] - maximum) * arguments.scale);
            maxima[h] = maximum;
            offsets[h] = maximum * arguments.scale;
            sums[h] *= shrinks[h];
        }
        if (any_lane(shrinks[0] != 1.f || shrinks[1] != 1.f)) {
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int j = 0; j < 8; ++j)
#pragma unroll
                    for (int e = 0; e < 2; ++e) output.at(j, h, e) *= shrinks[h];
        }
        GroupLeft weights[4];
#pragma unroll
        for (int step = 0; step < 4; ++step) {
#pragma unroll
            for (int j = 2 * step; j < 2 * step + 2; ++j)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float& low = scores.at(j, h, 0);
                    float& high = scores.at(j, h, 1);
                    low = exp2_approximate(low * arguments.scale - offsets[h]);
                    high = exp2_approximate(high * arguments.scale - offsets[h]);
                    sums[h] += low + high;
                    if (kDropout) {
                        const unsigned word = dropout_word(row_keys[h], key + 8 * j + lane % 4 * 2);
                        if (!keeps_even(word, arguments.dropout_threshold)) low = 0.f;
                        if (!keeps_odd(word, arguments.dropout_threshold)) high = 0.f;
                    }
                }
            to_group_left<Format>(weights[step], scores, step);
        }
#pragma unroll
        for (int step = 0; step < 4; ++step) pin(weights[step]);
        pin(output);
        group_fence();
        begin_sum<Format>(output, weights, key_tile + kTileBytes);
        group_commit();
        group_wait<0>();
        pin(output);
    }

    block_barrier();  // the query tile is reused to stage the output
    if (first >= tile.length) return;
    float scales[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float sum = sums[h];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        scales[h] = arguments.keep_scale / sum;
        if (lane % 4 == 0 && row + 8 * h < tile.length)
            arguments.log_sums[static_cast<long long>(head) * arguments.num_positions + tile.start + row + 8 * h] =
                maxima[h] * arguments.scale + log2_approximate(sum);
    }
    write_group<Format, false>(output, scales, shared + warp_index() * 16 * kRowBytes,
                               output_rows(arguments.output, tile.start, head, num_heads), first, tile.length);
}

template <class Format, bool kDropout, bool kShares>
__global__ void __launch_bounds__(kHopperThreads, 4) hopper_forward(const AttentionArguments arguments) {
    const TileOfSequence tile = tile_of_block<kShares>(arguments);
    if (tile.length == 0) return;
    if (kShares && tile.shares())
        forward_of_tile<Format, kDropout, kShares>(arguments, tile);
    else
        forward_of_tile<Format, kDropout, false>(arguments, tile);
}

}  // namespace unimo

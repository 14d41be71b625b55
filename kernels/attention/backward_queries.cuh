// Backward, first kernel: gradients of queries, and the row sums `deltas`, which the second kernel needs too.
//
// Probabilities are recomputed from the stored log sums. With keep = dropout mask times its scale:
//   gradient of a score = probability * (keep * (output gradient . value) - delta),  delta = output gradient . output
#pragma once

#include "geometry.cuh"

namespace unimo {

constexpr int kBackwardQueriesSharedBytes = kStages * kPairBytes;

template <class Format, bool kDropout, bool kShares>
__global__ void __launch_bounds__(kThreads) attention_backward_queries(const AttentionArguments arguments) {
    const TileOfSequence tile = tile_of_block<kShares>(arguments);
    if (tile.length == 0) return;
    const int head = block_x(), num_heads = arguments.num_heads, lane = lane_index();
    unsigned char* const shared = shared_memory();
    const auto keys = seen_rows<kShares>(arguments, tile, 1, head), values = seen_rows<kShares>(arguments, tile, 2, head);

    unsigned char* const staged = shared + kPairBytes;
    begin_pair(staged, input_rows(arguments.query_key_value, tile.start, 0, head, num_heads),
               output_rows(arguments.output_gradient, tile.start, head, num_heads), tile.first, tile.length);
    begin_pair(shared, keys, values, 0, tile.num_keys());
    wait_for_copies();
    block_barrier();

    const int first = tile.first + warp_index() * 16;
    const int last = smaller(first + 16, tile.length) - 1;
    const int warp_keys = first < tile.length ? tile.keys_of(last) : 0;
    const int block_keys = tile.keys_of(smaller(tile.first + kTileRows, tile.length) - 1);
    const int place = accumulator_row(lane), row = first + place;
    const int limits[2] = {tile.keys_of(row), tile.keys_of(row + 1)};
    const long long statistics = static_cast<long long>(head) * arguments.num_positions + tile.start;

    Left queries[4], gradients[4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        load_left(queries[step], staged, warp_index() * 16, step);
        load_left(gradients[step], staged + kTileBytes, warp_index() * 16, step);
    }

    // Deltas of the warp's 16 rows: eight lanes per row, four rows at a time.
    float deltas[2] = {0.f, 0.f};
    const Rows outputs = output_rows(arguments.output, tile.start, head, num_heads);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int r = 4 * i + lane / 8, chunk = lane % 8;
        float delta = 0.f;
        if (first + r < tile.length) {
            const Words4 one =
                load<Words4>(outputs.base + static_cast<long long>(first + r) * outputs.stride + chunk * 16);
            const Words4 other = load<Words4>(chunk_address(staged + kTileBytes, warp_index() * 16 + r, chunk));
#pragma unroll
            for (int w = 0; w < 4; ++w) {
                const Pair a = unpack<Format>(one.word[w]), b = unpack<Format>(other.word[w]);
                delta += a.low * b.low + a.high * b.high;
            }
        }
#pragma unroll
        for (int bit = 1; bit < 8; bit *= 2) delta += shuffle_xor(delta, bit);
        if (chunk == 0 && first + r < tile.length) arguments.deltas[statistics + first + r] = delta;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const float candidate = shuffle(delta, (place + k) % 4 * 8);
            if ((place + k) / 4 == i) deltas[k] = candidate;
        }
    }

    float log_sums[2];
    unsigned row_keys[2] = {0, 0};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const bool valid = row + r < tile.length;
        log_sums[r] = valid ? arguments.log_sums[statistics + row + r] : infinity();
        if (kDropout && valid)
            row_keys[r] = head_row_key(arguments.position_keys[tile.start + row + r], arguments.site_key, head);
    }

    Accumulator sums[4];
#pragma unroll
    for (int part = 0; part < 4; ++part) sums[part].clear();

    for (int key = 0, stage = 0; key < block_keys; key += kTileRows, stage ^= 1) {
        if (key > 0) wait_for_copies();
        block_barrier();
        if (key + kTileRows < block_keys)
            begin_pair(shared + (stage ^ 1) * kPairBytes, keys, values, key + kTileRows, tile.num_keys());
        unsigned char* const key_tile = shared + stage * kPairBytes;
#pragma unroll 1
        for (int sub = 0; sub < 4; ++sub) {
            const int column = key + sub * 16;
            if (column >= warp_keys) break;
            Accumulator scores, slopes;
            scores.clear();
            slopes.clear();
#pragma unroll
            for (int step = 0; step < 4; ++step) {
                RightOfRows right;
                load_right(right, key_tile, sub * 16, step);
                multiply_add<Format>(scores, queries[step], right);
                load_right(right, key_tile + kTileBytes, sub * 16, step);
                multiply_add<Format>(slopes, gradients[step], right);
            }
            const bool masked = column + 16 > tile.keys_of(first);
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int c = 0; c < 4; c += 2) {
                    float keep[2] = {arguments.keep_scale, arguments.keep_scale};
                    if (kDropout) {
                        const unsigned word = dropout_word(row_keys[r], column + accumulator_column(lane, c));
                        if (!keeps_even(word, arguments.dropout_threshold)) keep[0] = 0.f;
                        if (!keeps_odd(word, arguments.dropout_threshold)) keep[1] = 0.f;
                    }
#pragma unroll
                    for (int k = 0; k < 2; ++k) {
                        float probability = exp2_approximate(scores.at(r, c + k) * arguments.scale - log_sums[r]);
                        if (masked && column + accumulator_column(lane, c + k) >= limits[r]) probability = 0.f;
                        scores.at(r, c + k) = probability * (keep[k] * slopes.at(r, c + k) - deltas[r]);
                    }
                }
            Left left;
            to_left<Format>(left, scores);
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                RightOfColumns right;
                load_right(right, key_tile, sub * 16, part);
                multiply_add<Format>(sums[part], left, right);
            }
        }
    }

    block_barrier();
    if (first >= tile.length) return;
    const float scales[2] = {0.125f, 0.125f};  // 1 / sqrt(64)
    write_rows<Format>(sums, scales, shared + warp_index() * 16 * kRowBytes,
                       input_rows(arguments.input_gradient, tile.start, 0, head, num_heads), first, tile.length);
}

}  // namespace unimo

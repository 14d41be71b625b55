// Backward on Hopper, second kernel: gradients of keys and values, as backward_keys.cuh: transposed scores, so that
// probabilities are left operands straight from registers.
#pragma once

#include "backward_keys.cuh"
#include "hopper_geometry.cuh"

namespace unimo {

// Starts to copy the first kernel's statistics of a stage's queries; zeros where there is no query, as in the tiles, so that
// its terms are zero.
template <bool kDropout, bool kShares>
__device__ __forceinline__ void begin_statistics(QueryStatistics* target, const AttentionArguments& arguments,
                                                 const Queries<kShares>& queries, int head, int query) {
    const int i = thread_index();
    if (i >= kTileRows) return;
    const bool valid = query + i < queries.count;
    const long long at =
        static_cast<long long>(head) * arguments.num_positions + queries.start + (valid ? queries.offset(query + i) : 0);
    copy_4_bytes(target->log_sums + i, arguments.log_sums + at, valid);
    copy_4_bytes(target->deltas + i, arguments.deltas + at, valid);
    if (kDropout) copy_4_bytes(target->row_keys + i, arguments.row_keys + at, valid);
}

// Which of the lane's probabilities dropout keeps, bits numbered as in an accumulator. `column` may be odd: then each pair
// needs two words, computed in a short loop, as the sums leave no registers for them.
__device__ __forceinline__ unsigned kept_of_lane(const QueryStatistics& of_query, int column, int threshold) {
    unsigned kept = 0;
#pragma unroll 2
    for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const unsigned row_key = load<unsigned>(of_query.row_keys + 8 * j + lane_index() % 4 * 2 + e);
            const unsigned word = dropout_word_of<true>(row_key, column);
            kept |= (unsigned(keeps_even(word, threshold)) | unsigned(keeps_odd(word, threshold)) << 2) << (4 * j + e);
        }
    return kept;
}

constexpr int kHopperBackwardKeysBytes = 2 * kHopperOwnBytes + kStages * (kPairBytes + int(sizeof(QueryStatistics)));

template <class Format, bool kDropout, bool kShares>
__device__ __forceinline__ void key_gradients_of_tile(const AttentionArguments& arguments, const TileOfSequence& tile) {
    const int head = block_x(), num_heads = arguments.num_heads, lane = lane_index();
    unsigned char* const shared = shared_memory();
    unsigned char* const key_tile = shared;
    unsigned char* const value_tile = shared + kHopperOwnBytes;
    unsigned char* const stages = shared + 2 * kHopperOwnBytes;
    auto* const statistics = reinterpret_cast<QueryStatistics*>(stages + kStages * kPairBytes);
    const Queries<kShares> queries(arguments, tile);
    const auto query_rows = rows_of(queries, input_rows(arguments.query_key_value, tile.start, 0, head, num_heads));
    const auto gradient_rows = rows_of(queries, output_rows(arguments.output_gradient, tile.start, head, num_heads));
    const int begin = tile.first < tile.prefix ? 0 : tile.first;  // the first query that sees one of the block's keys

    begin_rows<kHopperRows, true>(key_tile, input_rows(arguments.query_key_value, tile.start, 1, head, num_heads), tile.first,
                                  tile.length);
    begin_rows<kHopperRows, true>(value_tile, input_rows(arguments.query_key_value, tile.start, 2, head, num_heads), tile.first,
                                  tile.length);
    begin_stage(stages, query_rows, gradient_rows, begin, queries.count);
    wait_for_previous_kernel();  // the query kernel, which writes the statistics
    begin_statistics<kDropout>(statistics, arguments, queries, head, begin);
    land_copies();

    const int group = warp_index() / 4, group_first = tile.first + group * kGroupRows;
    const int first = tile.first + warp_index() * 16;  // the warp's first key
    const int row = first + lane / 4 * 2;              // the lane's keys: this one and the next
    const unsigned char* const own_keys = key_tile + group * kGroupRows * kRowBytes;
    const unsigned char* const own_values = value_tile + group * kGroupRows * kRowBytes;
    GroupAccumulator key_sum, value_sum, scores, slopes;
#pragma unroll
    for (int i = 0; i < 32; ++i) key_sum.value[i] = value_sum.value[i] = 0.f;

    for (int query = begin, stage = 0; query < queries.count; query += kTileRows, stage ^= 1) {
        if (query > begin) land_copies();
        if (query + kTileRows < queries.count) {
            begin_stage(stages + (stage ^ 1) * kPairBytes, query_rows, gradient_rows, query + kTileRows, queries.count);
            begin_statistics<kDropout>(statistics + (stage ^ 1), arguments, queries, head, query + kTileRows);
        }
        if (group_first >= tile.length) continue;
        if (group_first >= queries.most_visible(query, query + kTileRows - 1)) continue;  // no query sees any of them
        unsigned char* const query_tile = stages + stage * kPairBytes;
        unsigned char* const gradient_tile = query_tile + kTileBytes;
        const QueryStatistics& of_query = statistics[stage];
        pin(scores);
        pin(slopes);
        group_fence();
        begin_product<Format>(scores, own_keys, query_tile);
        group_commit();
        begin_product<Format>(slopes, own_values, gradient_tile);
        group_commit();
        unsigned kept_bits = 0;
        if (kDropout && kShares) kept_bits = kept_of_lane(of_query, tile.shared + row, arguments.dropout_threshold);
        group_wait<1>();
        pin(scores);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const Pair log_sums = load<Pair>(of_query.log_sums + 8 * j + lane % 4 * 2);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                scores.at(j, h, 0) = exp2_approximate(scores.at(j, h, 0) * arguments.scale - log_sums.low);
                scores.at(j, h, 1) = exp2_approximate(scores.at(j, h, 1) * arguments.scale - log_sums.high);
            }
        }
        if (first + 16 > queries.least_visible(query, query + kTileRows - 1)) {
#pragma unroll
            for (int j = 0; j < 8; ++j)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int limit = queries.visible(query + 8 * j + lane % 4 * 2 + e);
#pragma unroll
                    for (int h = 0; h < 2; ++h)
                        if (row + h >= limit) scores.at(j, h, e) = 0.f;
                }
        }
        group_wait<0>();
        pin(slopes);
        GroupLeft weights[4], score_gradients[4];
#pragma unroll
        for (int step = 0; step < 4; ++step) {
#pragma unroll
            for (int j = 2 * step; j < 2 * step + 2; ++j) {
                const int at = 8 * j + lane % 4 * 2;
                const Pair deltas = load<Pair>(of_query.deltas + at);
                float kept[2][2];
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    unsigned word = 0;
                    if (kDropout && !kShares) word = dropout_word(load<unsigned>(of_query.row_keys + at + e), row);
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const float probability = scores.at(j, h, e);
                        float slope = slopes.at(j, h, e);
                        kept[h][e] = probability;
                        const bool keeps = kShares ? kept_bits >> (4 * j + 2 * h + e) & 1
                                           : h     ? keeps_odd(word, arguments.dropout_threshold)
                                                   : keeps_even(word, arguments.dropout_threshold);
                        if (kDropout && !keeps) kept[h][e] = slope = 0.f;
                        scores.at(j, h, e) = probability * (slope - (e ? deltas.high : deltas.low));
                    }
                }
#pragma unroll
                for (int h = 0; h < 2; ++h) weights[step].word[(j & 1) * 2 + h] = pack<Format>(kept[h][0], kept[h][1]);
            }
            to_group_left<Format>(score_gradients[step], scores, step);
        }
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            pin(weights[step]);
            pin(score_gradients[step]);
        }
        pin(value_sum);
        pin(key_sum);
        group_fence();
        begin_sum<Format>(value_sum, weights, gradient_tile);
        begin_sum<Format>(key_sum, score_gradients, query_tile);
        group_commit();
        group_wait<0>();
        pin(key_sum);
        pin(value_sum);
    }

    block_barrier();
    if (first >= tile.length) return;
    const float scale = 0.125f * arguments.keep_scale;  // 0.125 = 1 / sqrt(64)
    const float key_scales[2] = {scale, scale}, value_scales[2] = {arguments.keep_scale, arguments.keep_scale};
    unsigned char* const staging = shared + warp_index() * 16 * kRowBytes;
    write_group<Format, true>(key_sum, key_scales, staging,
                              input_rows(arguments.input_gradient, tile.start, 1, head, num_heads), first, tile.length);
    write_group<Format, true>(value_sum, value_scales, staging,
                              input_rows(arguments.input_gradient, tile.start, 2, head, num_heads), first, tile.length);
}

template <class Format, bool kDropout, bool kShares>
__global__ void __launch_bounds__(kHopperThreads, 3) hopper_backward_keys(const AttentionArguments arguments) {
    const TileOfSequence tile = tile_of_block<kShares>(arguments);
    if (tile.length <= arguments.whole_length) return;
    if (kShares && tile.shares())
        key_gradients_of_tile<Format, kDropout, kShares>(arguments, tile);
    else
        key_gradients_of_tile<Format, kDropout, false>(arguments, tile);
}

}  // namespace unimo

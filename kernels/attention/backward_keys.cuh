// Backward, second kernel: gradients of keys and values. A block owns 64 keys and goes over the queries that see them, with
// transposed scores (rows are keys), so that probabilities are left operands as they lie in registers. No atomics: two runs
// give the same bits.
#pragma once

#include "geometry.cuh"

namespace unimo {

struct QueryStatistics {  // of the queries of one stage
    float log_sums[kTileRows];
    float deltas[kTileRows];
    unsigned row_keys[kTileRows];
};
constexpr int kBackwardKeysSharedBytes = kStages * (kPairBytes + int(sizeof(QueryStatistics)));

template <bool kDropout>
__device__ __forceinline__ void fill_statistics(QueryStatistics* target, const AttentionArguments& arguments,
                                                const TileOfSequence& tile, int head, int query) {
    const int i = thread_index();
    if (i >= kTileRows) return;
    const bool valid = query + i < tile.length;
    const long long at = static_cast<long long>(head) * arguments.num_positions + tile.start + query + i;
    store(target->log_sums + i, valid ? arguments.log_sums[at] : infinity());  // no such query: probability 0
    store(target->deltas + i, valid ? arguments.deltas[at] : 0.f);
    if (kDropout) {
        const unsigned position_key = valid ? arguments.position_keys[tile.start + query + i] : 0u;
        store(target->row_keys + i, head_row_key(position_key, arguments.site_key, head));
    }
}

template <class Format, bool kDropout>
__global__ void __launch_bounds__(kThreads) attention_backward_keys(const AttentionArguments arguments) {
    const TileOfSequence tile = tile_of_block(arguments);
    if (tile.length == 0) return;
    const int head = block_x(), num_heads = arguments.num_heads, lane = lane_index();
    unsigned char* const shared = shared_memory();
    auto* const statistics = reinterpret_cast<QueryStatistics*>(shared + kStages * kPairBytes);
    const Rows queries = input_rows(arguments.query_key_value, tile.start, 0, head, num_heads);
    const Rows gradients = output_rows(arguments.output_gradient, tile.start, head, num_heads);
    const int begin = tile.first < tile.prefix ? 0 : tile.first;  // the first query that sees one of the block's keys

    unsigned char* const staged = shared + kPairBytes;
    begin_tile(staged, input_rows(arguments.query_key_value, tile.start, 1, head, num_heads), tile.first, tile.length);
    begin_tile(staged + kTileBytes, input_rows(arguments.query_key_value, tile.start, 2, head, num_heads), tile.first,
               tile.length);
    begin_tile(shared, queries, begin, tile.length);
    begin_tile(shared + kTileBytes, gradients, begin, tile.length);
    fill_statistics<kDropout>(statistics, arguments, tile, head, begin);
    wait_for_copies();
    block_barrier();

    const int first = tile.first + warp_index() * 16;  // the warp's first key
    const int place = accumulator_row(lane), row = first + place;
    Left keys[4], values[4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        load_left(keys[step], staged, warp_index() * 16, step);
        load_left(values[step], staged + kTileBytes, warp_index() * 16, step);
    }
    Accumulator key_sums[4], value_sums[4];
#pragma unroll
    for (int part = 0; part < 4; ++part) {
        key_sums[part].clear();
        value_sums[part].clear();
    }

    for (int query = begin, stage = 0; query < tile.length; query += kTileRows, stage ^= 1) {
        if (query > begin) wait_for_copies();
        block_barrier();
        if (query + kTileRows < tile.length) {
            unsigned char* const next = shared + (stage ^ 1) * kPairBytes;
            begin_tile(next, queries, query + kTileRows, tile.length);
            begin_tile(next + kTileBytes, gradients, query + kTileRows, tile.length);
            fill_statistics<kDropout>(statistics + (stage ^ 1), arguments, tile, head, query + kTileRows);
        }
        if (first >= tile.length) continue;
        unsigned char* const query_tile = shared + stage * kPairBytes;
        const QueryStatistics& of_query = statistics[stage];
#pragma unroll 1
        for (int sub = 0; sub < 4; ++sub) {
            const int column = query + sub * 16;
            if (column >= tile.length) break;
            if (first >= visible_keys(tile.prefix, column + 15)) continue;  // not even the last query sees the first key
            Accumulator scores, slopes;
            scores.clear();
            slopes.clear();
#pragma unroll
            for (int step = 0; step < 4; ++step) {
                RightOfRows right;
                load_right(right, query_tile, sub * 16, step);
                multiply_add<Format>(scores, keys[step], right);
                load_right(right, query_tile + kTileBytes, sub * 16, step);
                multiply_add<Format>(slopes, values[step], right);
            }
            const bool masked = first + 16 > visible_keys(tile.prefix, column);
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const int at = sub * 16 + accumulator_column(lane, c);
                const float log_sum = load<float>(of_query.log_sums + at), delta = load<float>(of_query.deltas + at);
                const int limit = visible_keys(tile.prefix, query + at);
                float keep[2] = {arguments.keep_scale, arguments.keep_scale};
                if (kDropout) {
                    const unsigned word = dropout_word(load<unsigned>(of_query.row_keys + at), row);
                    if (!keeps_even(word, arguments.dropout_threshold)) keep[0] = 0.f;
                    if (!keeps_odd(word, arguments.dropout_threshold)) keep[1] = 0.f;
                }
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    float probability = exp2_approximate(scores.at(r, c) * arguments.scale - log_sum);
                    if (masked && row + r >= limit) probability = 0.f;
                    scores.at(r, c) = probability * keep[r];
                    slopes.at(r, c) = probability * (keep[r] * slopes.at(r, c) - delta);
                }
            }
            Left weights, score_gradients;
            to_left<Format>(weights, scores);
            to_left<Format>(score_gradients, slopes);
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                RightOfColumns right;
                load_right(right, query_tile + kTileBytes, sub * 16, part);
                multiply_add<Format>(value_sums[part], weights, right);
                load_right(right, query_tile, sub * 16, part);
                multiply_add<Format>(key_sums[part], score_gradients, right);
            }
        }
    }

    block_barrier();
    if (first >= tile.length) return;
    const float key_scales[2] = {0.125f, 0.125f}, value_scales[2] = {1.f, 1.f};
    unsigned char* const staging = shared + warp_index() * 16 * kRowBytes;
    write_rows<Format>(key_sums, key_scales, staging,
                       input_rows(arguments.input_gradient, tile.start, 1, head, num_heads), first, tile.length);
    write_rows<Format>(value_sums, value_scales, staging,
                       input_rows(arguments.input_gradient, tile.start, 2, head, num_heads), first, tile.length);
}

}  // namespace unimo

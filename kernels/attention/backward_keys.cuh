// Backward, second kernel: gradients of keys and values. A block owns 64 keys and loops over the queries that see them, with
// transposed scores (rows are keys), so that probabilities are left operands straight from registers. No atomics: two runs give
// the same bits. A shared prefix is seen by the queries of all sequences that share it, in stream order.
#pragma once

#include "geometry.cuh"

namespace unimo {

struct QueryStatistics {  // of the queries of one stage
    float log_sums[kTileRows];
    float deltas[kTileRows];
    unsigned row_keys[kTileRows];
};
constexpr int kBackwardKeysSharedBytes = kStages * (kPairBytes + int(sizeof(QueryStatistics)));

// The queries that see a block's keys, numbered consecutively: its sequence's, then those of others that see its prefix.
template <bool kShares>
struct Queries {
    const int* sharing;
    int listed, start, length, prefix, count;

    __device__ __forceinline__ Queries(const AttentionArguments& arguments, const TileOfSequence& tile)
        : sharing(arguments.sharing), listed(tile.listed - tile.length), start(tile.start), length(tile.length),
          prefix(tile.prefix), count(tile.length + (kShares && tile.first < tile.prefix ? tile.num_listed : 0)) {}
// Position of a query in the stream, relative to the sequence's start.
    __device__ __forceinline__ int offset(int query) const {
        return kShares && query >= length ? sharing[listed + query] - start : query;
    }
    // How many of the sequence's keys a query sees: its own queries more and more, those of others its prefix.
    __device__ __forceinline__ int visible(int query) const {
        return kShares && query >= length ? prefix : visible_keys(prefix, query);
    }
    __device__ __forceinline__ int least_visible(int first, int last) const {
        return kShares && count > length && last >= length ? prefix : visible_keys(prefix, first);
    }
    __device__ __forceinline__ int most_visible(int first, int last) const {
        return kShares && first >= length ? prefix : visible_keys(prefix, last);
    }
};
struct RowsOfQueries {
    Rows own;
    Queries<true> queries;
    __device__ __forceinline__ const unsigned char* at(int query) const { return own.at(queries.offset(query)); }
};
__device__ __forceinline__ RowsOfQueries rows_of(const Queries<true>& queries, Rows own) { return {own, queries}; }
__device__ __forceinline__ Rows rows_of(const Queries<false>&, Rows own) { return own; }

template <bool kDropout, bool kShares>
__device__ __forceinline__ void fill_statistics(QueryStatistics* target, const AttentionArguments& arguments,
                                                const Queries<kShares>& queries, int head, int query) {
    const int i = thread_index();
    if (i >= kTileRows) return;
    const bool valid = query + i < queries.count;
    const int offset = valid ? queries.offset(query + i) : 0;
    const long long at = static_cast<long long>(head) * arguments.num_positions + queries.start + offset;
    store(target->log_sums + i, valid ? arguments.log_sums[at] : infinity());  // no such query: probability 0
    store(target->deltas + i, valid ? arguments.deltas[at] : 0.f);
    if (kDropout) {
        const unsigned position_key = valid ? arguments.position_keys[queries.start + offset] : 0u;
        store(target->row_keys + i, head_row_key(position_key, arguments.site_key, head));
    }
}

template <class Format, bool kDropout, bool kShares>
__global__ void __launch_bounds__(kThreads) attention_backward_keys(const AttentionArguments arguments) {
    const TileOfSequence tile = tile_of_block<kShares>(arguments);
    if (tile.length == 0) return;
    const int head = block_x(), num_heads = arguments.num_heads, lane = lane_index();
    unsigned char* const shared = shared_memory();
    auto* const statistics = reinterpret_cast<QueryStatistics*>(shared + kStages * kPairBytes);
    const Queries<kShares> queries(arguments, tile);
    const auto query_rows = rows_of(queries, input_rows(arguments.query_key_value, tile.start, 0, head, num_heads));
    const auto gradient_rows = rows_of(queries, output_rows(arguments.output_gradient, tile.start, head, num_heads));
    const int begin = tile.first < tile.prefix ? 0 : tile.first;  // the first query that sees one of the block's keys

    unsigned char* const staged = shared + kPairBytes;
    begin_pair(staged, input_rows(arguments.query_key_value, tile.start, 1, head, num_heads),
               input_rows(arguments.query_key_value, tile.start, 2, head, num_heads), tile.first, tile.length);
    begin_pair(shared, query_rows, gradient_rows, begin, queries.count);
    fill_statistics<kDropout>(statistics, arguments, queries, head, begin);
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

    for (int query = begin, stage = 0; query < queries.count; query += kTileRows, stage ^= 1) {
        if (query > begin) wait_for_copies();
        block_barrier();
        if (query + kTileRows < queries.count) {
            begin_pair(shared + (stage ^ 1) * kPairBytes, query_rows, gradient_rows, query + kTileRows, queries.count);
            fill_statistics<kDropout>(statistics + (stage ^ 1), arguments, queries, head, query + kTileRows);
        }
        if (first >= tile.length) continue;
        unsigned char* const query_tile = shared + stage * kPairBytes;
        const QueryStatistics& of_query = statistics[stage];
#pragma unroll 1
        for (int sub = 0; sub < 4; ++sub) {
            const int column = query + sub * 16;
            if (column >= queries.count) break;
            if (first >= queries.most_visible(column, column + 15)) continue;  // not even the last query sees the first key
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
            const bool masked = first + 16 > queries.least_visible(column, column + 15);
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const int at = sub * 16 + accumulator_column(lane, c);
                const float log_sum = load<float>(of_query.log_sums + at), delta = load<float>(of_query.deltas + at);
                const int limit = queries.visible(query + at);
                float keep[2] = {arguments.keep_scale, arguments.keep_scale};
                if (kDropout) {
                    const unsigned word = dropout_word_of<kShares>(load<unsigned>(of_query.row_keys + at), tile.shared + row);
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

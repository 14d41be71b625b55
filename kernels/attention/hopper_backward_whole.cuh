// Backward on Hopper for sequences of up to 128 positions, if no prefix is shared: one block computes all three
// gradients. Each score is computed once (5 products; the kernels for any length take 7), everything is read once, and the
// row sums `deltas` stay in registers.
//
// A team of warpgroups, one per 64 rows, takes one sequence and head: two, or one for up to 64 positions, and then the block's
// other warpgroup takes the next head. A warpgroup stores the probabilities and score gradients of its own queries in shared
// memory in 16 bits. Then it sums the gradients of its own keys and values over queries (these tiles as left operands, by
// columns), and the gradient of its queries over keys.
#pragma once

#include "hopper_backward_queries.cuh"

namespace unimo {

constexpr int kWholeTeam = 2;  // warpgroups per block, and tiles of the longest sequence
constexpr int kWholeLength = kWholeTeam * kTileRows;
constexpr int kWholeThreads = kWholeTeam * kGroupThreads;

// A team's tiles in shared memory; `group`: which 64 rows.
template <int kTeam>
struct TeamTiles {
    static constexpr int kBytes = (4 * kTeam + kTeam * kTeam + kTeam * (kTeam - 1)) * kTileBytes;
    unsigned char* base;
    __device__ __forceinline__ unsigned char* at(int number) const { return base + number * kTileBytes; }
    __device__ __forceinline__ unsigned char* queries(int group) const { return at(group); }
    __device__ __forceinline__ unsigned char* gradients(int group) const { return at(kTeam + group); }
    __device__ __forceinline__ unsigned char* keys(int group) const { return at(2 * kTeam + group); }
    __device__ __forceinline__ unsigned char* values(int group) const { return at(3 * kTeam + group); }
    // [query][key] of one warpgroup's queries and keys
    __device__ __forceinline__ unsigned char* weights(int of_queries, int of_keys) const {
        return at(4 * kTeam + of_queries * kTeam + of_keys);
    }
    // Those of the last keys reuse the values' tiles: they are written when nobody reads these any more.
    __device__ __forceinline__ unsigned char* slopes(int of_queries, int of_keys) const {
        return of_keys == kTeam - 1 ? values(of_queries) : at((4 + kTeam) * kTeam + of_queries * (kTeam - 1) + of_keys);
    }
};
static_assert(TeamTiles<1>::kBytes == 40 * 1024 && TeamTiles<2>::kBytes == 112 * 1024);
constexpr int kWholeBytes = TeamTiles<kWholeTeam>::kBytes;  // two blocks fit a multiprocessor, and two teams of one in a block

// Writes a warp's 16 rows and 16 columns, packed as a left operand, to a tile [row][column]. row: the lane's first.
__device__ __forceinline__ void store_left(unsigned char* tile, const GroupLeft& left, int row, int step) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        store(hopper_chunk(tile, row + i % 2 * 8, 2 * step + i / 2) + lane_index() % 4 * 4, left.word[i]);
}

// thread: index in the team.
template <class Format, bool kDropout, int kTeam>
__device__ __forceinline__ void backward_of_team(const AttentionArguments& arguments, const TileOfSequence& tile, int head,
                                                 TeamTiles<kTeam> tiles, int thread) {
    constexpr int kRows = kTeam * kTileRows, kThreads = kTeam * kGroupThreads;
    const int num_heads = arguments.num_heads, lane = lane_index(), length = tile.length;
    const int group = thread / kGroupThreads, first = thread / 32 * 16, row = first + lane / 4;
    begin_rows<kRows, false, kThreads>(tiles.queries(0), input_rows(arguments.query_key_value, tile.start, 0, head, num_heads), 0,
                                       length, thread);
    begin_rows<kRows, false, kThreads>(tiles.gradients(0), output_rows(arguments.output_gradient, tile.start, head, num_heads), 0,
                                       length, thread);
    begin_rows<kRows, false, kThreads>(tiles.keys(0), input_rows(arguments.query_key_value, tile.start, 1, head, num_heads), 0,
                                       length, thread);
    begin_rows<kRows, false, kThreads>(tiles.values(0), input_rows(arguments.query_key_value, tile.start, 2, head, num_heads), 0,
                                       length, thread);
    const long long statistics = static_cast<long long>(head) * arguments.num_positions + tile.start;
    OutputRows outputs;
    load_output_rows(outputs, output_rows(arguments.output, tile.start, head, num_heads), first, length);
    float log_sums[2];
    unsigned row_keys[2] = {0, 0};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int at = row + 8 * h;
        log_sums[h] = at < length ? arguments.log_sums[statistics + at] : infinity();
        if (kDropout && at < length)
            row_keys[h] = head_row_key(arguments.position_keys[tile.start + at], arguments.site_key, head);
    }
    land_copies();
    float deltas[2] = {0.f, 0.f};
    unsigned char* const gradients = tiles.gradients(0) + (first - warp_index() * 16) * kRowBytes;  // as warps of the block count
    make_deltas<Format, false>(deltas, outputs, gradients, arguments.keep_scale, nullptr, first, length);

    GroupLeft slopes[4];
#pragma unroll 1  // unrolled, it would spill
    for (int of_keys = 0; of_keys < kTeam; ++of_keys) {
        const int key = of_keys * kTileRows;
        GroupAccumulator scores, products;
        pin(scores);
        pin(products);
        group_fence();
        begin_product<Format>(scores, tiles.queries(group), tiles.keys(of_keys));
        group_commit();
        begin_product<Format>(products, tiles.gradients(group), tiles.values(of_keys));
        group_commit();
        group_wait<1>();
        pin(scores);
#pragma unroll
        for (int i = 0; i < 32; ++i)
            scores.value[i] = exp2_approximate(scores.value[i] * arguments.scale - log_sums[i / 2 % 2]);
        if (key + kTileRows > smaller(tile.keys_of(first), length)) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int limit = smaller(tile.keys_of(row + 8 * h), length) - key - lane % 4 * 2;
#pragma unroll
                for (int j = 0; j < 8; ++j)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        if (8 * j + e >= limit) scores.at(j, h, e) = 0.f;
            }
        }
        group_wait<0>();
        pin(products);
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            GroupLeft weights;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int j = 2 * step + i / 2, h = i % 2;
                bool keeps[2] = {true, true};
                if (kDropout) {
                    const unsigned word = dropout_word(row_keys[h], key + 8 * j + lane % 4 * 2);
                    keeps[0] = keeps_even(word, arguments.dropout_threshold);
                    keeps[1] = keeps_odd(word, arguments.dropout_threshold);
                }
                float weight[2], slope[2];
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    weight[e] = keeps[e] ? scores.at(j, h, e) : 0.f;
                    slope[e] = scores.at(j, h, e) * ((keeps[e] ? products.at(j, h, e) : 0.f) - deltas[h]);
                }
                weights.word[i] = pack<Format>(weight[0], weight[1]);
                slopes[step].word[i] = pack<Format>(slope[0], slope[1]);
            }
            store_left(tiles.weights(group, of_keys), weights, row % kTileRows, step);
            if (of_keys < kTeam - 1) store_left(tiles.slopes(group, of_keys), slopes[step], row % kTileRows, step);
        }
    }
    block_barrier();  // all have made their products with the values
#pragma unroll
    for (int step = 0; step < 4; ++step) store_left(tiles.slopes(group, kTeam - 1), slopes[step], row % kTileRows, step);
    publish_to_matrix_unit();
    block_barrier();

    GroupAccumulator query_sum, key_sum, value_sum;
#pragma unroll
    for (int i = 0; i < 32; ++i) query_sum.value[i] = key_sum.value[i] = value_sum.value[i] = 0.f;
    pin(query_sum);
    pin(key_sum);
    pin(value_sum);
    group_fence();
#pragma unroll
    for (int other = 0; other < kTeam; ++other) {
        begin_shared_sum<Format, true>(value_sum, tiles.weights(other, group), tiles.gradients(other));
        begin_shared_sum<Format, true>(key_sum, tiles.slopes(other, group), tiles.queries(other));
        begin_shared_sum<Format, false>(query_sum, tiles.slopes(group, other), tiles.keys(other));
    }
    group_commit();
    group_wait<0>();
    pin(query_sum);
    pin(key_sum);
    pin(value_sum);

    block_barrier();  // the query tiles are reused for staging
    if (first >= length) return;
    const float scale = 0.125f * arguments.keep_scale;  // 0.125 = 1 / sqrt(64)
    const float scales[2] = {scale, scale}, value_scales[2] = {arguments.keep_scale, arguments.keep_scale};
    unsigned char* const staging = tiles.queries(0) + first * kRowBytes;
    write_group<Format, false>(query_sum, scales, staging, input_rows(arguments.input_gradient, tile.start, 0, head, num_heads),
                               first, length);
    write_group<Format, false>(key_sum, scales, staging, input_rows(arguments.input_gradient, tile.start, 1, head, num_heads),
                               first, length);
    write_group<Format, false>(value_sum, value_scales, staging,
                               input_rows(arguments.input_gradient, tile.start, 2, head, num_heads), first, length);
}

template <class Format, bool kDropout>
__global__ void __launch_bounds__(kWholeThreads, 2) hopper_backward_whole(const AttentionArguments arguments) {
    let_next_kernel_start();
    TileOfSequence tile = tile_of_block<false>(arguments);
    if (tile.length == 0 || tile.length > kWholeLength) return;
    if (tile.length > kTileRows) {
        backward_of_team<Format, kDropout>(arguments, tile, block_x(), TeamTiles<2>{shared_memory()}, thread_index());
        return;
    }
    if (block_x() % 2) return;
    const int group = thread_index() / kGroupThreads, head = block_x() + group;
    if (head >= arguments.num_heads) tile.length = 0;  // it only takes part in the barriers
    const TeamTiles<1> tiles{shared_memory() + group * TeamTiles<1>::kBytes};
    backward_of_team<Format, kDropout>(arguments, tile, smaller(head, arguments.num_heads - 1), tiles,
                                       thread_index() % kGroupThreads);
}

}  // namespace unimo

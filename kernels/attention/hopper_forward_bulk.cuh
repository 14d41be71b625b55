// Forward on Hopper with tiles loaded by the TMA (tensor memory accelerator): the sums of hopper_forward.cuh, bit for bit.
//
// Two warpgroups of 64 queries share the keys and values in shared memory and otherwise run independently, as far as the ring
// of slots allows (hopper_supply.cuh). In a warpgroup, the product of the last weights with their values runs while the next
// scores are turned into weights; the product for these scores is queued before it.
#pragma once

#include "hopper_supply.cuh"

namespace unimo {

// Running values of a lane's two queries, 8 rows apart.
struct RunningRows {
    float maxima[2], sums[2];
    unsigned row_keys[2];
};

// Turns the scores of keys from `key` on into exponentials, 0 for keys that a query does not see; `shrinks`: factors for the
// sums over earlier keys. `first`: the warp's first query.
template <bool kDropout>
__device__ __forceinline__ void exponentiate(GroupAccumulator& scores, float (&shrinks)[2], RunningRows& rows, const TileOfSequence& tile,
                                             int key, int first, const AttentionArguments& arguments) {
    const int lane = lane_index();
    if (key + kTileRows > smaller(tile.keys_of(first), tile.length)) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int limit = smaller(tile.keys_of(first + lane / 4 + 8 * h), tile.length) - key - lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < 8; ++j)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    if (8 * j + e >= limit) scores.at(j, h, e) = -infinity();
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float maximum = rows.maxima[h];
#pragma unroll
        for (int j = 0; j < 8; ++j) maximum = larger(maximum, larger(scores.at(j, h, 0), scores.at(j, h, 1)));
        maximum = larger(maximum, shuffle_xor(maximum, 1));
        maximum = larger(maximum, shuffle_xor(maximum, 2));
        shrinks[h] = exp2_approximate((rows.maxima[h] - maximum) * arguments.scale);
        rows.maxima[h] = maximum;
        rows.sums[h] *= shrinks[h];
    }
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float offset = rows.maxima[h] * arguments.scale;
            float& low = scores.at(j, h, 0);
            float& high = scores.at(j, h, 1);
            low = exp2_approximate(low * arguments.scale - offset);
            high = exp2_approximate(high * arguments.scale - offset);
            rows.sums[h] += low + high;
            if (kDropout) {
                const unsigned word = dropout_word(rows.row_keys[h], key + 8 * j + lane % 4 * 2);
                if (!keeps_even(word, arguments.dropout_threshold)) low = 0.f;
                if (!keeps_odd(word, arguments.dropout_threshold)) high = 0.f;
            }
        }
}

// Values past the sequence's end belong to another one: their weights are 0, but 0 times NaN is NaN. So the warpgroup zeroes
// the rows from `from` on. The other one may do the same meanwhile, or multiply by zeros that it has written itself.
__device__ __forceinline__ void clear_rows(unsigned char* values, int from) {
    for (int chunk = from * 8 + thread_index() % kGroupThreads; chunk < kTileRows * 8; chunk += kGroupThreads)
        store(values + chunk * 16, Words4{});
    publish_to_matrix_unit();
    group_barrier(warp_index() / 4);
}

// `group`: which 64 queries of the item; `at`: the slot of its first keys; on return, the slot after their last keys.
template <class Format, bool kDropout>
__device__ __forceinline__ void forward_of_group(const Item& item, int place, int group, Position& at, Ring& r,
                                                 const BulkArguments& bulk) {
    const AttentionArguments& arguments = bulk.attention;
    const TileOfSequence& tile = item.tile;
    const int lane = lane_index(), group_keys = item.keys_of_group(group);
    const int first = tile.first + group * kGroupRows + warp_index() % 4 * 16, row = first + lane / 4;
    RunningRows rows{{-infinity(), -infinity()}, {0.f, 0.f}, {0, 0}};
    if (kDropout) {
#pragma unroll
        for (int h = 0; h < 2; ++h)
            if (row + 8 * h < tile.length)
                rows.row_keys[h] = head_row_key(arguments.position_keys[tile.start + row + 8 * h], arguments.site_key, item.head);
    }
    unsigned char* const queries = queries_of(place, group);
    GroupAccumulator output, scores;
    GroupLeft weights[4];
#pragma unroll
    for (int i = 0; i < 32; ++i) output.value[i] = 0.f;

    wait_for_phase(r.slot_landed[at.slot()], at.parity());
    pin(scores);
    pin(output);
    group_fence();
    begin_product<Format>(scores, queries, keys_of_slot(at.slot()));
    group_commit();
    group_wait<0>();
    for (int key = 0;; key += kTileRows) {
        group_wait<1>();  // for all but the product with the last values
        pin(scores);
        float shrinks[2];
        exponentiate<kDropout>(scores, shrinks, rows, tile, key, first, arguments);
        // Meanwhile the product with the last values has run. ptxas 13.0 moves a wait in straight-line code up to before all of
        // this: so there is one on each side of a branch that the whole warpgroup takes.
        pin(scores);
        if (key > 0) {
            group_wait<0>();
            pin(output);
            if (any_lane(shrinks[0] != 1.f || shrinks[1] != 1.f)) {
#pragma unroll
                for (int h = 0; h < 2; ++h)
#pragma unroll
                    for (int j = 0; j < 8; ++j)
#pragma unroll
                        for (int e = 0; e < 2; ++e) output.at(j, h, e) *= shrinks[h];
            }
        } else {
            group_wait<0>();
            pin(output);
        }
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            to_group_left<Format>(weights[step], scores, step);
            pin(weights[step]);
        }
        pin(output);
        if (key + kTileRows >= group_keys) {
            if (key + kTileRows > tile.length) clear_rows(values_of_slot(at.slot()), tile.length - key);
            break;
        }
        const Position next = at.next();
        wait_for_phase(r.slot_landed[next.slot()], next.parity());
        pin(scores);
        group_fence();
        begin_product<Format>(scores, queries, keys_of_slot(next.slot()));
        group_commit();
        begin_sum<Format>(output, weights, values_of_slot(at.slot()));
        group_commit();
        if (key > 0) leave(r, r.slot_leavers[at.before().slot()], r.free_slots, bulk);
        at = next;
    }
    group_fence();
    begin_sum<Format>(output, weights, values_of_slot(at.slot()));
    group_commit();
    if (group_keys > kTileRows) leave(r, r.slot_leavers[at.before().slot()], r.free_slots, bulk);
    group_wait<0>();
    pin(output);
    leave(r, r.slot_leavers[at.slot()], r.free_slots, bulk);
    at = at.next();

    float scales[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float sum = rows.sums[h];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        scales[h] = arguments.keep_scale / sum;
        if (lane % 4 == 0 && row + 8 * h < tile.length)
            arguments.log_sums[static_cast<long long>(item.head) * arguments.num_positions + tile.start + row + 8 * h] =
                rows.maxima[h] * arguments.scale + log2_approximate(sum);
    }
    group_barrier(warp_index() / 4);  // the query tile is reused to stage the output
    write_group<Format, false>(output, scales, queries + warp_index() % 4 * 16 * kRowBytes,
                               output_rows(arguments.output, tile.start, item.head, arguments.num_heads), first, tile.length);
    publish_to_matrix_unit();  // before queries are loaded there again
}

template <class Format, bool kDropout>
__global__ void __launch_bounds__(kBulkThreads, kBulkBlocks) hopper_forward_bulk(const __grid_constant__ BulkArguments bulk) {
    Ring& r = ring();
    begin_ring(r, bulk);
    Position at;
    for (int turn = 0;; ++turn) {
        const int place = turn % kPlaces;
        wait_for_phase(r.place_landed[place], turn / kPlaces % 2);
        const Item& item = r.items[place];
        if (item.tile.length == 0) return;
        const int group = (warp_index() / 4 + turn) % kBulkGroups;  // an item's second 64 queries may be few, or see more keys
        const int group_keys = item.keys_of_group(group), num_keys = item.num_keys();
        if (group_keys > 0) forward_of_group<Format, kDropout>(item, place, group, at, r, bulk);
        for (int key = (group_keys + kTileRows - 1) / kTileRows * kTileRows; key < num_keys; key += kTileRows) {
            wait_for_phase(r.slot_landed[at.slot()], at.parity());  // or this reader would be a round ahead of the ring
            leave(r, r.slot_leavers[at.slot()], r.free_slots, bulk);
            at = at.next();
        }
        leave(r, r.place_leavers[place], r.free_places, bulk);
    }
}

}  // namespace unimo

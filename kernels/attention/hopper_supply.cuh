// Loads for hopper_forward_bulk.cuh: persistent blocks, a few per multiprocessor, that take items (128 rows of a sequence, one
// head) one after another. Keys and values pass through a ring of slots, 64 rows each; an item's queries and description are in
// one of two places. Loads run ahead into the next item, so that only the first one finds its tiles empty.
//
// There is no producer warp that waits: the last warp that leaves a slot, or an item, starts the loads that then fit. All warps
// leave slots and items in the same order, also those they have no work in, so there is one such warp at a time.
#pragma once

#include "../common/bulk_copy.cuh"
#include "hopper_geometry.cuh"

namespace unimo {

constexpr int kBulkGroups = 2;  // warpgroups per block, 64 queries each
constexpr int kBulkRows = kBulkGroups * kGroupRows;
constexpr int kBulkThreads = kBulkGroups * kGroupThreads;
constexpr int kBulkWarps = kBulkThreads / 32;
constexpr int kBulkBlocks = 2;  // per multiprocessor: by registers and by shared memory
constexpr int kSlots = 5;
constexpr int kPlaces = 2;
constexpr int kGroupBytes = kGroupRows * kRowBytes;

struct BulkArguments {
    AttentionArguments attention;  // `tiles`: the table for blocks of kBulkRows rows
    int num_blocks;
    TensorMap inputs;  // [T, 3 H 64], boxes of 64 rows
};

struct Item {
    TileOfSequence tile;  // length 0: no more items
    int head;

    // Number of keys that a warpgroup's 64 rows see, 0 if it has no row.
    __device__ __forceinline__ int keys_of_group(int group) const {
        const int first = tile.first + group * kGroupRows;
        return first < tile.length ? tile.keys_of(smaller(first + kGroupRows, tile.length) - 1) : 0;
    }
    __device__ __forceinline__ int num_keys() const { return tile.keys_of(smaller(tile.first + kBulkRows, tile.length) - 1); }
};

// In shared memory, after the tiles.
struct Ring {
    Barrier slot_landed[kSlots], place_landed[kPlaces];
    unsigned slot_leavers[kSlots], place_leavers[kPlaces];  // warps that have left
    Item items[kPlaces];
    // Used by one warp at a time, the one that loads.
    int free_slots, slot;    // the next one to fill
    int free_places, place;
    int next_item;
    bool over;               // no more items
    int row, end, head;      // rows in the stream of the last item's keys still to load
};

constexpr int kRingOffset = kPlaces * kBulkGroups * kGroupBytes + kSlots * kPairBytes;
constexpr int kBulkBytes = kRingOffset + int(sizeof(Ring));
static_assert(kBulkBlocks * (kBulkBytes + 1024) <= 228 * 1024, "a block takes 1 KB more, a multiprocessor has 228");

__device__ __forceinline__ Ring& ring() { return *reinterpret_cast<Ring*>(shared_memory() + kRingOffset); }
__device__ __forceinline__ unsigned char* queries_of(int place, int group) {
    return shared_memory() + (place * kBulkGroups + group) * kGroupBytes;
}
__device__ __forceinline__ unsigned char* keys_of_slot(int slot) {
    return shared_memory() + kPlaces * kBulkGroups * kGroupBytes + slot * kPairBytes;
}
__device__ __forceinline__ unsigned char* values_of_slot(int slot) { return keys_of_slot(slot) + kTileBytes; }

// First byte of a head's 64 columns. part: 0 queries, 1 keys, 2 values
__device__ __forceinline__ int column_of(int part, int head, int num_heads) { return (part * num_heads + head) * kRowBytes; }

// Starts to load the block's next item: its queries and description. False: there is none; waiting warps then see length 0.
__device__ __forceinline__ bool begin_item(Ring& r, const BulkArguments& bulk) {
    const AttentionArguments& arguments = bulk.attention;
    Item item{};
    if (r.next_item < arguments.num_tiles * arguments.num_heads) {
        item.head = r.next_item % arguments.num_heads;
        const Words4 words = load<Words4>(arguments.tiles + 4 * (r.next_item / arguments.num_heads));
        item.tile = {int(words.word[0]), int(words.word[1]), int(words.word[2]), int(words.word[3])};
    }
    r.items[r.place] = item;
    Barrier& landed = r.place_landed[r.place];
    if (item.tile.length == 0) {
        r.over = true;
        arrive_with_bytes(landed, 0);
        return false;
    }
    const int first = item.tile.first, column = column_of(0, item.head, arguments.num_heads);
    const int groups = first + kGroupRows < item.tile.length ? kBulkGroups : 1;
    arrive_with_bytes(landed, groups * kGroupBytes);
    for (int group = 0; group < groups; ++group)
        copy_box(queries_of(r.place, group), bulk.inputs, column, item.tile.start + first + group * kGroupRows, landed);
    // Items are sorted by work, most first: the blocks take them in turn, back and forth.
    r.next_item += r.place == 0 ? 2 * (bulk.num_blocks - block_x()) - 1 : 2 * block_x() + 1;
    r.place ^= 1;
    --r.free_places;
    r.row = item.tile.start;
    r.end = r.row + item.num_keys();
    r.head = item.head;
    return true;
}

// Starts all loads that fit. Called by one thread.
__device__ __forceinline__ void supply(Ring& r, const BulkArguments& bulk) {
    const int num_heads = bulk.attention.num_heads;
    for (;;) {
        if (r.row >= r.end && (r.over || r.free_places == 0 || !begin_item(r, bulk))) return;
        if (r.free_slots == 0) return;
        Barrier& landed = r.slot_landed[r.slot];
        arrive_with_bytes(landed, kPairBytes);
        copy_box(keys_of_slot(r.slot), bulk.inputs, column_of(1, r.head, num_heads), r.row, landed);
        copy_box(values_of_slot(r.slot), bulk.inputs, column_of(2, r.head, num_heads), r.row, landed);
        r.slot = r.slot == kSlots - 1 ? 0 : r.slot + 1;
        --r.free_slots;
        r.row += kTileRows;
    }
}

__device__ __forceinline__ void begin_ring(Ring& r, const BulkArguments& bulk) {
    if (thread_index() == 0) {
        for (int i = 0; i < kSlots; ++i) {
            initialize(r.slot_landed[i], 1);
            r.slot_leavers[i] = 0;
        }
        for (int i = 0; i < kPlaces; ++i) {
            initialize(r.place_landed[i], 1);
            r.place_leavers[i] = 0;
        }
        r.free_slots = kSlots;
        r.free_places = kPlaces;
        r.slot = r.place = r.row = r.end = r.head = 0;
        r.next_item = block_x();
        r.over = false;
        publish_barriers();
        supply(r, bulk);
    }
    block_barrier();
}

// The warp is done with a slot or an item's place: `leavers` counts the warps that are, `free` those free to be filled.
__device__ __forceinline__ void leave(Ring& r, unsigned& leavers, int& free, const BulkArguments& bulk) {
    warp_barrier();
    if (lane_index() == 0 && count_around(leavers, kBulkWarps - 1) == kBulkWarps - 1) {
        ++free;
        supply(r, bulk);
    }
    warp_barrier();
}

// A slot of the ring and the parity of its phase, for one reader. One number: registers are scarce.
struct Position {
    int step = 0;
    __device__ __forceinline__ int slot() const { return step < kSlots ? step : step - kSlots; }
    __device__ __forceinline__ int parity() const { return step < kSlots ? 0 : 1; }
    __device__ __forceinline__ Position before() const { return {step == 0 ? 2 * kSlots - 1 : step - 1}; }
    __device__ __forceinline__ Position next() const { return {step == 2 * kSlots - 1 ? 0 : step + 1}; }
};

}  // namespace unimo

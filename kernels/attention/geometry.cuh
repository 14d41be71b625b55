// Common to all attention kernels: arguments, the rows of a block, which keys a query sees, and loads of tiles.
//
// A block takes 64 rows of one sequence and one head (four warps of 16 rows). Tables on the device list the blocks, [num_tiles]
// of (start of the sequence in the stream, its length, its prefix length, first row); length 0 marks unused entries. Row i of a
// sequence sees key j if j < max(prefix, i + 1): every row sees key 0, so no row is empty.
//
// kShares: some sequences of the stream see another's prefix before their own positions. Their keys are that prefix, then their
// own, numbered consecutively. The keys of a prefix are seen by the queries of its sequence, then by those of the sequences
// that share it, also numbered consecutively: `sharing` lists their positions. The table has four more columns (see
// TileOfSequence). Streams without shared prefixes take kernels without all this.
#pragma once

#include "../common/dropout.cuh"
#include "../common/matrix.cuh"

namespace unimo {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kStages = 2;
constexpr int kPairBytes = 2 * kTileBytes;  // two tiles per stage: keys and values, or queries and output gradients

enum Whole { kNotWhole = 0, kShortWhole = 1, kAllWhole = 2 };  // kAllWhole: none is longer than unimo_attention_whole_length

struct AttentionArguments {
    const void* query_key_value;   // [T, 3, H, 64]
    void* output;                  // [T, H, 64]; read by the backward kernels
    float* log_sums;               // [H, T] log2 of the sum of exp2 of scaled scores
    const void* output_gradient;   // [T, H, 64]
    void* input_gradient;          // [T, 3, H, 64]
    float* deltas;                 // [H, T] sum over the row of output * output gradient
    unsigned* row_keys;            // [H, T] keys of the rows' dropout masks, from the first backward kernel to the second
    const int* tiles;              // [num_tiles, 4], or 8 if prefixes are shared
    const unsigned* position_keys; // [T]
    int num_tiles;
    int num_positions;
    int num_heads;
    int dropout_threshold;         // for a column's signed 16 bits; -32768 keeps all
    unsigned site_key;
    float keep_scale;
    float scale;                   // of scores: 1 / sqrt(64) / ln 2, for exp2
    int whole;                     // which sequences take the whole-sequence backward kernel, if there is one: a Whole
    int whole_length;              // the longest of them, 0: none; set by the C function
    const int* sharing;            // positions of the sequences that share a prefix, by its owner; null: no prefix is shared
};

__device__ __forceinline__ int visible_keys(int prefix, int row) { return prefix > row ? prefix : row + 1; }

struct TileOfSequence {
    int start, length, prefix, first;
    int shared_start = 0, shared = 0;  // the prefix it shares: start in the stream, length
    int listed = 0, num_listed = 0;    // queries of other sequences that see its prefix: start in `sharing`, number

    __device__ __forceinline__ bool shares() const { return shared > 0 || num_listed > 0; }
    __device__ __forceinline__ int num_keys() const { return shared + length; }
    __device__ __forceinline__ int keys_of(int row) const { return shared + visible_keys(prefix, row); }
};

template <bool kShares>
__device__ __forceinline__ TileOfSequence tile_of_block(const AttentionArguments& arguments) {
    const int* const entry = arguments.tiles + (kShares ? 8 : 4) * block_y();
    const Words4 words = load<Words4>(entry);
    TileOfSequence tile{int(words.word[0]), int(words.word[1]), int(words.word[2]), int(words.word[3])};
    if (kShares) {
        const Words4 more = load<Words4>(entry + 4);
        tile.shared_start = int(more.word[0]), tile.shared = int(more.word[1]);
        tile.listed = int(more.word[2]), tile.num_listed = int(more.word[3]);
    }
    return tile;
}

// Rows of one head, by offset in a sequence.
struct Rows {
    const unsigned char* base;
    int stride;  // bytes
    __device__ __forceinline__ const unsigned char* at(int row) const { return base + static_cast<long long>(row) * stride; }
};
// part: 0 queries, 1 keys, 2 values
__device__ __forceinline__ Rows input_rows(const void* tensor, int start, int part, int head, int num_heads) {
    const auto* base = static_cast<const unsigned char*>(tensor);
    return {base + (3LL * start + part) * num_heads * kRowBytes + head * kRowBytes, 3 * num_heads * kRowBytes};
}
__device__ __forceinline__ Rows output_rows(const void* tensor, int start, int head, int num_heads) {
    const auto* base = static_cast<const unsigned char*>(tensor);
    return {base + static_cast<long long>(start) * num_heads * kRowBytes + head * kRowBytes, num_heads * kRowBytes};
}

// Keys or values that a sequence sees: `shared` rows of another one, then its own, which are `gap` rows further on.
struct JoinedRows {
    Rows other;
    int shared, gap;
    __device__ __forceinline__ const unsigned char* at(int row) const { return other.at(row < shared ? row : row + gap); }
};
template <bool kShares>
__device__ __forceinline__ auto seen_rows(const AttentionArguments& arguments, const TileOfSequence& tile, int part, int head) {
    const int start = kShares ? tile.shared_start : tile.start;
    const Rows rows = input_rows(arguments.query_key_value, start, part, head, arguments.num_heads);
    if constexpr (kShares) {
        return JoinedRows{rows, tile.shared, tile.start - tile.shared - tile.shared_start};
    } else {
        return rows;
    }
}

// Starts to fill a shared tile with rows `first` to `first` + 63; rows from `length` on are zeros.
template <class Source>
__device__ __forceinline__ void begin_tile(unsigned char* tile, const Source& rows, int first, int length) {
#pragma unroll
    for (int i = 0; i < kTileRows * 8 / kThreads; ++i) {
        const int row = (i * kThreads + thread_index()) / 8, chunk = thread_index() % 8;
        const bool valid = first + row < length;
        copy_16_bytes(chunk_address(tile, row, chunk), rows.at(valid ? first + row : 0) + chunk * 16, valid);
    }
}

// The same for a stage's two tiles.
template <class Source, class Other>
__device__ __forceinline__ void begin_pair(unsigned char* stage, const Source& rows, const Other& others, int first, int length) {
    begin_tile(stage, rows, first, length);
    begin_tile(stage + kTileBytes, others, first, length);
}

// Writes a warp's 16 x 64 accumulators, times `scales` per row, through 16 rows of shared memory of its own.
template <class Format>
__device__ __forceinline__ void write_rows(Accumulator (&sums)[4], const float (&scales)[2], unsigned char* staging,
                                           Rows rows, int first, int length) {
    const int lane = lane_index(), row = accumulator_row(lane);
#pragma unroll
    for (int part = 0; part < 4; ++part)
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int c = 0; c < 4; c += 2)
                store(element_address(staging, row + r, 16 * part + accumulator_column(lane, c)),
                      pack<Format>(sums[part].at(r, c) * scales[r], sums[part].at(r, c + 1) * scales[r]));
    warp_barrier();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int r = 4 * i + lane / 8, chunk = lane % 8;
        if (first + r < length) {
            auto* target = const_cast<unsigned char*>(rows.at(first + r));
            store(target + chunk * 16, load<Words4>(chunk_address(staging, r, chunk)));
        }
    }
    warp_barrier();
}

}  // namespace unimo

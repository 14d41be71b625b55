// Common to the attention kernels for sm_90a. A block, one warpgroup, takes 64 rows of one sequence and one head; tiles of the
// other operands, also 64 rows, pass through shared memory in two stages. Blocks of two warpgroups that share them (kGroups = 2)
// read half as much, but were 3 to 30 % slower on an H200: fewer fit on a multiprocessor, and they wait for each other.
#pragma once

#include "../common/warpgroup.cuh"
#include "geometry.cuh"

namespace unimo {

constexpr int kGroups = 1;  // warpgroups per block
constexpr int kHopperRows = kGroups * kGroupRows;
constexpr int kHopperThreads = kGroups * kGroupThreads;
constexpr int kHopperOwnBytes = kHopperRows * kRowBytes;  // one tile of the block's own rows

// A chunk of row `first` + `step`, any address if not valid. In a sequence 32 bits hold the offset: one addition per step.
__device__ __forceinline__ const unsigned char* chunk_of(const Rows& rows, int first, int step, int chunk, bool valid) {
    const unsigned offset = unsigned(first) * unsigned(rows.stride) + unsigned(chunk * 16);
    return rows.base + (valid ? offset + unsigned(step) * unsigned(rows.stride) : 0u);
}
template <class Source>
__device__ __forceinline__ const unsigned char* chunk_of(const Source& rows, int first, int step, int chunk, bool valid) {
    return rows.at(valid ? first + step : 0) + chunk * 16;
}

// Starts to fill kRows rows of a shared tile with rows from `first` on; rows from `length` on are zeros. `thread`: index among
// the kThreads that fill it together.
template <int kRows, bool kPairRows = false, int kThreads = kHopperThreads, class Source>
__device__ __forceinline__ void begin_rows(unsigned char* tile, const Source& rows, int first, int length,
                                           int thread = thread_index()) {
    constexpr int kStride = kThreads / 8;  // rows between a thread's copies
    const int own = thread / 8, chunk = thread % 8;
#pragma unroll
    for (int i = 0; i < kRows / kStride; ++i) {
        const int row = own + i * kStride;
        // A lane's two rows of a product, 8 apart, become adjacent rows of the sequence: one dropout word serves both.
        const int place = kPairRows ? (row & ~15) | (row & 1) << 3 | (row >> 1 & 7) : row;
        const bool valid = first + row < length;
        copy_16_bytes(hopper_chunk(tile, place, chunk), chunk_of(rows, first + own, i * kStride, chunk, valid), valid);
    }
}

// The same for a stage's two tiles.
template <class Source, class Other>
__device__ __forceinline__ void begin_stage(unsigned char* stage, const Source& rows, const Other& others, int first, int length) {
    begin_rows<kTileRows>(stage, rows, first, length);
    begin_rows<kTileRows>(stage + kTileBytes, others, first, length);
}

// Afterwards all copies, of this and of all other threads, have landed and are visible to the matrix unit.
__device__ __forceinline__ void land_copies() {
    wait_for_copies();
    publish_to_matrix_unit();
    block_barrier();
}

template <bool kPairRows>
__device__ __forceinline__ unsigned char* staging_chunk(unsigned char* staging, int row, int chunk) {
    return staging + row * kRowBytes + ((chunk ^ (kPairRows ? row >> 1 : row) & 7) << 4);  // eight lanes' rows, distinct chunks
}

// Writes a warp's 16 x 64 sums, times `scales` of the lane's two rows, through 16 rows of shared memory of its own. kPairRows:
// the lane's rows are adjacent (see begin_rows).
template <class Format, bool kPairRows>
__device__ __forceinline__ void write_group(GroupAccumulator& sums, const float (&scales)[2], unsigned char* staging, Rows rows,
                                            int first, int length) {
    const int lane = lane_index();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = kPairRows ? lane / 4 * 2 + h : lane / 4 + 8 * h;
#pragma unroll
        for (int j = 0; j < 8; ++j)
            store(staging_chunk<kPairRows>(staging, row, j) + lane % 4 * 4,
                  pack<Format>(sums.at(j, h, 0) * scales[h], sums.at(j, h, 1) * scales[h]));
    }
    warp_barrier();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = 4 * i + lane / 8, chunk = lane % 8;
        if (first + row < length) {
            auto* target = const_cast<unsigned char*>(rows.at(first + row));
            store(target + chunk * 16, load<Words4>(staging_chunk<kPairRows>(staging, row, chunk)));
        }
    }
    warp_barrier();
}

}  // namespace unimo

// 16 x 16 x 16 products of one warp, from tiles of 64-column rows in shared memory, with the same names on all architectures.
//
// Of each 16 x 16 accumulator a lane holds rows R and R + 1 (R even) and four columns, two adjacent pairs: adjacent rows, so
// that in transposed scores one dropout word serves both, and adjacent columns for the plain ones. A shared tile has rows of
// 128 bytes, whose eight 16-byte chunks are permuted by row (`swizzle`), so that no access below has bank conflicts.
#pragma once

#include "instructions.cuh"

namespace unimo {

constexpr int kSize = 64;                 // columns per row: the head size
constexpr int kRowBytes = kSize * 2;
constexpr int kTileRows = 64;
constexpr int kTileBytes = kTileRows * kRowBytes;

// Distinct for the rows of one access: 8 consecutive, every other of 16, 0-3 with 8-11; and for rows 0-3 never differing only
// in the lowest bit, as sm_70 reads two adjacent chunks of each.
__device__ __forceinline__ int swizzle(int row) {
    const int b0 = row & 1, b1 = row >> 1 & 1, b2 = row >> 2 & 1, b3 = row >> 3 & 1;
    return (b2 ^ b3) | (b0 ^ b3) << 1 | b1 << 2;
}
__device__ __forceinline__ unsigned char* chunk_address(unsigned char* tile, int row, int chunk) {
    return tile + row * kRowBytes + ((chunk ^ swizzle(row)) << 4);
}
__device__ __forceinline__ unsigned char* element_address(unsigned char* tile, int row, int column) {
    return chunk_address(tile, row, column >> 3) + (column & 7) * 2;
}

struct Accumulator {
    float value[8];
    // r: 0 or 1; c: 0 to 3
    __device__ __forceinline__ float& at(int r, int c) { return value[(c & 2) << 1 | r << 1 | (c & 1)]; }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] = 0.f;
    }
};

#if UNIMO_ARCH >= 800

__device__ __forceinline__ int accumulator_row(int lane) { return lane / 4 * 2; }
__device__ __forceinline__ int accumulator_column(int lane, int c) { return (c >> 1) * 8 + lane % 4 * 2 + (c & 1); }
constexpr int kRowPartner1 = 1, kRowPartner2 = 2;  // lanes that hold other columns of the same rows differ by these bits

struct Left {
    unsigned word[4];
};
struct RightOfRows {
    unsigned word[4];
};
struct RightOfColumns {
    unsigned word[4];
};

// left[m][k] = tile[row + m][16 step + k]
__device__ __forceinline__ void load_left(Left& left, unsigned char* tile, int row, int step) {
    const int lane = lane_index(), matrix = lane / 8;
    load_matrices<false>(left.word, chunk_address(tile, row + lane % 8 * 2 + matrix % 2, 2 * step + matrix / 2));
}
// right[k][n] = tile[row + n][16 step + k]
__device__ __forceinline__ void load_right(RightOfRows& right, unsigned char* tile, int row, int step) {
    const int lane = lane_index(), matrix = lane / 8;
    load_matrices<false>(right.word, chunk_address(tile, row + matrix / 2 * 8 + lane % 8, 2 * step + matrix % 2));
}
// right[k][n] = tile[row + k][16 part + n]
__device__ __forceinline__ void load_right(RightOfColumns& right, unsigned char* tile, int row, int part) {
    const int lane = lane_index(), matrix = lane / 8;
    load_matrices<true>(right.word, chunk_address(tile, row + matrix % 2 * 8 + lane % 8, 2 * part + matrix / 2));
}
template <class Format, class Right>
__device__ __forceinline__ void multiply_add(Accumulator& sum, const Left& left, const Right& right) {
    multiply_16_8_16<Format>(sum.value, left.word, right.word[0], right.word[1]);
    multiply_16_8_16<Format>(sum.value + 4, left.word, right.word[2], right.word[3]);
}
template <class Format>
__device__ __forceinline__ void to_left(Left& left, Accumulator& from) {
    left.word[0] = pack<Format>(from.at(0, 0), from.at(0, 1));
    left.word[1] = pack<Format>(from.at(1, 0), from.at(1, 1));
    left.word[2] = pack<Format>(from.at(0, 2), from.at(0, 3));
    left.word[3] = pack<Format>(from.at(1, 2), from.at(1, 3));
}

#else

// Quad pair q computes the 8 x 8 block of rows 8 (q % 2) and columns 8 (q / 2). In it, the accumulator's row numbers are the
// instruction's with bits 0 and 1 exchanged, so that a lane's two rows are adjacent.
__device__ __forceinline__ int accumulator_row(int lane) {
    return (lane & 1) << 1 | (lane >> 4) << 2 | (lane >> 2 & 1) << 3;
}
__device__ __forceinline__ int accumulator_column(int lane, int c) {
    return (lane >> 3 & 1) * 8 + (c >> 1) * 4 + (lane & 2) + (c & 1);
}
constexpr int kRowPartner1 = 2, kRowPartner2 = 8;

struct Left {
    unsigned word[8];
};
struct RightOfRows {
    unsigned word[8];
};
struct RightOfColumns {
    unsigned word[8];
};

__device__ __forceinline__ void load_row_of_16(unsigned (&word)[8], unsigned char* tile, int row, int step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const Words4 chunk = load<Words4>(chunk_address(tile, row, 2 * step + half));
#pragma unroll
        for (int i = 0; i < 4; ++i) word[4 * half + i] = chunk.word[i];
    }
}
__device__ __forceinline__ void load_left(Left& left, unsigned char* tile, int row, int step) {
    const int lane = lane_index();
    const int place = (lane & 1) << 1 | (lane >> 1 & 1) | (lane >> 4) << 2 | (lane >> 2 & 1) << 3;
    load_row_of_16(left.word, tile, row + place, step);
}
__device__ __forceinline__ void load_right(RightOfRows& right, unsigned char* tile, int row, int step) {
    const int lane = lane_index();
    load_row_of_16(right.word, tile, row + (lane >> 3 & 1) * 8 + (lane >> 4) * 4 + lane % 4, step);
}
__device__ __forceinline__ void load_right(RightOfColumns& right, unsigned char* tile, int row, int part) {
    const int lane = lane_index();
    const int chunk = 2 * part + (lane >> 3 & 1), byte = (lane >> 4) * 8;
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
        const Words2 words = load<Words2>(chunk_address(tile, row + 4 * quarter + lane % 4, chunk) + byte);
        right.word[2 * quarter] = words.word[0];
        right.word[2 * quarter + 1] = words.word[1];
    }
}
template <class Format>
__device__ __forceinline__ void multiply_add(Accumulator& sum, const Left& left, const RightOfRows& right) {
#pragma unroll
    for (int i = 0; i < 8; i += 2)
        multiply_8_8_4<false>(sum.value, left.word[i], left.word[i + 1], right.word[i], right.word[i + 1]);
}
template <class Format>
__device__ __forceinline__ void multiply_add(Accumulator& sum, const Left& left, const RightOfColumns& right) {
#pragma unroll
    for (int i = 0; i < 8; i += 2)
        multiply_8_8_4<true>(sum.value, left.word[i], left.word[i + 1], right.word[i], right.word[i + 1]);
}
// A lane holds two rows and needs one whole row: it swaps its part of one row with the lane that holds the other columns of the
// same rows of the 8 x 8 block, then the half row with the other block's lane.
template <class Format>
__device__ __forceinline__ void to_left(Left& left, Accumulator& from) {
    const int lane = lane_index();
    const bool second_row = lane & 2, second_block = lane & 8;
    unsigned own[4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const unsigned row0 = pack<Format>(from.at(0, 2 * half), from.at(0, 2 * half + 1));
        const unsigned row1 = pack<Format>(from.at(1, 2 * half), from.at(1, 2 * half + 1));
        const unsigned kept = second_row ? row1 : row0;
        const unsigned got = shuffle_xor(second_row ? row0 : row1, 2);
        own[2 * half] = second_row ? got : kept;
        own[2 * half + 1] = second_row ? kept : got;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const unsigned other = shuffle_xor(own[i], 8);
        left.word[i] = second_block ? other : own[i];
        left.word[4 + i] = second_block ? own[i] : other;
    }
}

#endif

// Over the lanes that share the accumulator's rows.
__device__ __forceinline__ float row_maximum(float value) {
    value = larger(value, shuffle_xor(value, kRowPartner1));
    return larger(value, shuffle_xor(value, kRowPartner2));
}
__device__ __forceinline__ float row_sum(float value) {
    value += shuffle_xor(value, kRowPartner1);
    return value + shuffle_xor(value, kRowPartner2);
}

}  // namespace unimo

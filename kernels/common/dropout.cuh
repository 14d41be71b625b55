// The dropout bits of unimo_ds/utils/seed.py, word for word.
#pragma once

#include "device.cuh"

namespace unimo {

__device__ __forceinline__ unsigned finalize(unsigned x) {
    x ^= x >> 16;
    x *= 0x85EBCA6Bu;
    x ^= x >> 13;
    x *= 0xC2B2AE35u;
    return x ^ (x >> 16);
}

// Key of one row of attention probabilities. site_key: (site + 1) * 0x9E3779B9 modulo 2^32.
__device__ __forceinline__ unsigned head_row_key(unsigned position_key, unsigned site_key, int head) {
    return finalize(finalize(position_key + site_key) + unsigned(head + 1) * 0x85EBCA77u);
}

// The word of columns `column` and `column` + 1, `column` even.
__device__ __forceinline__ unsigned dropout_word(unsigned row_key, int column) {
    return finalize(row_key + unsigned(column / 2) * 0x27D4EB2Fu);
}

// The same for columns shifted by a number that may be odd: the halves are then from two words.
template <bool kShifted>
__device__ __forceinline__ unsigned dropout_word_of(unsigned row_key, int column) {
    const unsigned word = dropout_word(row_key, column);
    return kShifted && column & 1 ? word >> 16 | dropout_word(row_key, column + 1) << 16 : word;
}

// threshold: for the column's signed 16-bit value, round(probability * 65536) - 32768.
// Compared in the upper half of a word, where the lower bits do not change the outcome: saves a shift.
__device__ __forceinline__ bool keeps_even(unsigned word, int threshold) {
    return int(word << 16) >= int(unsigned(threshold) << 16);
}
__device__ __forceinline__ bool keeps_odd(unsigned word, int threshold) {
    return int(word) >= int(unsigned(threshold) << 16);
}

}  // namespace unimo

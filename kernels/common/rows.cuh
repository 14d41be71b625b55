// Eight 16-bit elements of a row, one 16-byte access of a lane, as fp32; sums and maxima over a warp.
#pragma once

#include "device.cuh"

namespace unimo {

constexpr int kChunkColumns = 8;

struct Chunk {
    float value[kChunkColumns];
};
template <class Format>
__device__ __forceinline__ Chunk unpacked(const Words4& words) {
    Chunk chunk;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const Pair pair = unpack<Format>(words.word[i]);
        chunk.value[2 * i] = pair.low;
        chunk.value[2 * i + 1] = pair.high;
    }
    return chunk;
}
template <class Format>
__device__ __forceinline__ Chunk load_chunk(const void* tensor, long long at) {
    return unpacked<Format>(load<Words4>(static_cast<const unsigned char*>(tensor) + 2 * at));
}
template <class Format>
__device__ __forceinline__ Words4 packed(const Chunk& chunk) {
    Words4 words;
#pragma unroll
    for (int i = 0; i < 4; ++i) words.word[i] = pack<Format>(chunk.value[2 * i], chunk.value[2 * i + 1]);
    return words;
}
__device__ __forceinline__ void store_words(void* tensor, long long at, const Words4& words) {
    store(static_cast<unsigned char*>(tensor) + 2 * at, words);
}
template <class Format>
__device__ __forceinline__ float load_element(const void* tensor, long long at) {
    return unpack<Format>(load<unsigned short>(static_cast<const unsigned char*>(tensor) + 2 * at)).low;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) value += shuffle_xor(value, bit);
    return value;
}
__device__ __forceinline__ float warp_maximum(float value) {
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) value = larger(value, shuffle_xor(value, bit));
    return value;
}

}  // namespace unimo

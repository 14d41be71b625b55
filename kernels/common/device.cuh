// The few CUDA features that the kernels use, each with an emulation on the host: indices, barriers, shuffles, shared-memory
// accesses, asynchronous copies, number formats, exp2. Kernels use only these names, so their sources compile for both.
// UNIMO_HOST=700 or 800 (or more): compile for the host, with the matrix instructions of that architecture.
#pragma once

#if defined(UNIMO_HOST)
#include <algorithm>
#include <cmath>

#include "emulator.h"
#define UNIMO_ARCH UNIMO_HOST
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#else
#include <cuda_fp16.h>
#if !defined(UNIMO_HALF_ONLY)
#include <cuda_bf16.h>
#endif
#if defined(__CUDA_ARCH__)
#define UNIMO_ARCH __CUDA_ARCH__
#else
#define UNIMO_ARCH 800
#endif
#endif

namespace unimo {

struct Half {};      // tags of the 16-bit formats; values are pairs in 32-bit words
struct BFloat16 {};

struct alignas(8) Words2 {
    unsigned word[2];
};
struct alignas(16) Words4 {
    unsigned word[4];
};
struct Pair {
    float low, high;
};

#if defined(UNIMO_HOST)

inline int thread_index() { return emulator::block->current->index; }
inline int block_x() { return emulator::block->x; }
inline int block_y() { return emulator::block->y; }
inline unsigned char* shared_memory() { return emulator::block->shared; }
inline void block_barrier() { emulator::wait(emulator::State::at_block, 0); }
inline void warp_barrier() { emulator::wait(emulator::State::at_warp, 1); }

inline float shuffle(float value, int source) {
    const auto& mail = emulator::meet(2, [&](auto& mailbox) { mailbox.left[emulator::lane()][0] = value; });
    return mail.left[source & 31][0];
}
inline unsigned shuffle(unsigned value, int source) {
    const auto& mail = emulator::meet(9, [&](auto& mailbox) { mailbox.words[emulator::lane()][0] = value; });
    return mail.words[source & 31][0];
}
inline float shuffle_xor(float value, int mask) { return shuffle(value, emulator::lane() ^ mask); }
inline unsigned shuffle_xor(unsigned value, int mask) {
    const auto& mail = emulator::meet(3, [&](auto& mailbox) { mailbox.words[emulator::lane()][0] = value; });
    return mail.words[(emulator::lane() ^ mask) & 31][0];
}

inline bool any_lane(bool claim) {
    const auto& mail = emulator::meet(10, [&](auto& mailbox) { mailbox.words[emulator::lane()][0] = claim; });
    return std::any_of(mail.words, mail.words + 32, [](const auto& words) { return words[0] != 0; });
}

template <class Value>
Value load(const void* address) {
    emulator::require(reinterpret_cast<std::uintptr_t>(address) % alignof(Value) == 0, "misaligned load");
    Value value;
    std::memcpy(&value, address, sizeof value);
    return value;
}
template <class Value>
void store(void* address, const Value& value) {
    emulator::require(reinterpret_cast<std::uintptr_t>(address) % alignof(Value) == 0, "misaligned store");
    std::memcpy(address, &value, sizeof value);
}

// The bytes are read at once and written by wait_for_copies, so that a missing wait is detected.
template <int kBytes>
void copy_bytes(void* shared, const void* global, bool valid) {
    emulator::require(reinterpret_cast<std::uintptr_t>(shared) % kBytes == 0, "misaligned target of a copy");
    emulator::Copy copy{shared, kBytes, {}};
    if (valid) {
        emulator::require(reinterpret_cast<std::uintptr_t>(global) % kBytes == 0, "misaligned source of a copy");
        std::memcpy(copy.bytes, global, kBytes);
    }
    emulator::block->current->pending.push_back(copy);
}
inline void copy_16_bytes(void* shared, const void* global, bool valid) { copy_bytes<16>(shared, global, valid); }
inline void copy_4_bytes(void* shared, const void* global, bool valid) { copy_bytes<4>(shared, global, valid); }
inline void wait_for_copies() {
    for (const auto& copy : emulator::block->current->pending) std::memcpy(copy.target, copy.bytes, std::size_t(copy.size));
    emulator::block->current->pending.clear();
}

template <class Format>
unsigned pack(float low, float high);
template <class Format>
Pair unpack(unsigned word);
template <>
inline unsigned pack<Half>(float low, float high) {
    return emulator::float_to_half(low) | emulator::float_to_half(high) << 16;
}
template <>
inline unsigned pack<BFloat16>(float low, float high) {
    return emulator::float_to_bfloat16(low) | emulator::float_to_bfloat16(high) << 16;
}
template <>
inline Pair unpack<Half>(unsigned word) {
    return {emulator::half_to_float(word & 0xffffu), emulator::half_to_float(word >> 16)};
}
template <>
inline Pair unpack<BFloat16>(unsigned word) {
    return {emulator::bfloat16_to_float(word & 0xffffu), emulator::bfloat16_to_float(word >> 16)};
}

inline void let_next_kernel_start() {}
inline void wait_for_previous_kernel() {}
inline float exp2_approximate(float x) { return std::exp2(x); }
inline float log2_approximate(float x) { return std::log2(x); }
inline float reciprocal_approximate(float x) { return 1.f / x; }
inline float larger(float a, float b) { return std::fmax(a, b); }
inline float infinity() { return HUGE_VALF; }

#else

__device__ __forceinline__ int thread_index() { return int(threadIdx.x); }
__device__ __forceinline__ int block_x() { return int(blockIdx.x); }
__device__ __forceinline__ int block_y() { return int(blockIdx.y); }
__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ __align__(1024) unsigned char unimo_shared_memory[];
    return unimo_shared_memory;
}
__device__ __forceinline__ void block_barrier() { __syncthreads(); }
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }
__device__ __forceinline__ float shuffle(float value, int source) { return __shfl_sync(0xffffffffu, value, source); }
__device__ __forceinline__ unsigned shuffle(unsigned value, int source) {
    return __shfl_sync(0xffffffffu, value, source);
}
__device__ __forceinline__ float shuffle_xor(float value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ __forceinline__ unsigned shuffle_xor(unsigned value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

__device__ __forceinline__ bool any_lane(bool claim) { return __any_sync(0xffffffffu, claim) != 0; }

template <class Value>
__device__ __forceinline__ Value load(const void* address) {
    return *static_cast<const Value*>(address);
}
template <class Value>
__device__ __forceinline__ void store(void* address, const Value& value) {
    *static_cast<Value*>(address) = value;
}

// Global to shared memory, zeros if not valid (nothing is read then). Landed after wait_for_copies and a barrier.
__device__ __forceinline__ void copy_16_bytes(void* shared, const void* global, bool valid) {
#if UNIMO_ARCH >= 800
    const unsigned target = unsigned(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(target), "l"(global), "r"(bytes) : "memory");
#else
    uint4 value = make_uint4(0, 0, 0, 0);
    if (valid) value = *static_cast<const uint4*>(global);
    *static_cast<uint4*>(shared) = value;
#endif
}
__device__ __forceinline__ void copy_4_bytes(void* shared, const void* global, bool valid) {
#if UNIMO_ARCH >= 800
    const unsigned target = unsigned(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(target), "l"(global), "r"(bytes) : "memory");
#else
    *static_cast<unsigned*>(shared) = valid ? *static_cast<const unsigned*>(global) : 0u;
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if UNIMO_ARCH >= 800
    asm volatile("cp.async.wait_all;\n" ::: "memory");
#endif
}

template <class Format>
__device__ unsigned pack(float low, float high);
template <class Format>
__device__ Pair unpack(unsigned word);
template <>
__device__ __forceinline__ unsigned pack<Half>(float low, float high) {
    const __half2 value = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&value);
}
template <>
__device__ __forceinline__ Pair unpack<Half>(unsigned word) {
    const float2 value = __half22float2(*reinterpret_cast<const __half2*>(&word));
    return {value.x, value.y};
}
#if !defined(UNIMO_HALF_ONLY)
template <>
__device__ __forceinline__ unsigned pack<BFloat16>(float low, float high) {
    const __nv_bfloat162 value = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&value);
}
template <>
__device__ __forceinline__ Pair unpack<BFloat16>(unsigned word) {
    return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
#endif

// A kernel launched to start early may load what earlier kernels do not write, until it waits for them.
__device__ __forceinline__ void let_next_kernel_start() {
#if UNIMO_ARCH >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_previous_kernel() {
#if UNIMO_ARCH >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

__device__ __forceinline__ float exp2_approximate(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
__device__ __forceinline__ float log2_approximate(float x) { return __log2f(x); }
__device__ __forceinline__ float reciprocal_approximate(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

#endif

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int lane_index() { return thread_index() % 32; }
__device__ __forceinline__ int warp_index() { return thread_index() / 32; }

}  // namespace unimo

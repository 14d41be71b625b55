// Matrix products of a warpgroup (four warps) on Hopper, sm_90a (wgmma): 64 x 64 x 64, operands in shared memory or, on the
// left, in registers. The host emulation uses only the operands: matrix descriptors, and the order relative to other accesses,
// are tested on a GPU.
//
// A shared tile has rows of 128 bytes whose eight 16-byte chunks are permuted by row, the hardware's 128-byte swizzle; tiles
// are aligned to 1,024 bytes. The same tile serves as [row][k] (`by_rows`: k runs within a row) and as [k][column]
// (`by_columns`: k runs over the rows).
#pragma once

#include "matrix.cuh"

namespace unimo {

constexpr int kGroupRows = 64;  // rows of a warpgroup's product
constexpr int kGroupThreads = 128;

__device__ __forceinline__ unsigned char* hopper_chunk(unsigned char* tile, int row, int chunk) {
    return tile + row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// 64 x 64 fp32 sums. Lane l of warp w holds, at 4 j + 2 h + e, row 16 w + l / 4 + 8 h and column 8 j + 2 (l % 4) + e.
struct GroupAccumulator {
    float value[32];
    __device__ __forceinline__ float& at(int j, int h, int e) { return value[4 * j + 2 * h + e]; }
};

// The left operand of one step of 16 in registers, in the accumulator's layout: columns 16 step to 16 step + 15.
struct GroupLeft {
    unsigned word[4];
};
template <class Format>
__device__ __forceinline__ void to_group_left(GroupLeft& left, GroupAccumulator& from, int step) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        left.word[i] = pack<Format>(from.at(2 * step + i / 2, i % 2, 0), from.at(2 * step + i / 2, i % 2, 1));
}
#if defined(UNIMO_HOST)

inline void group_fence() { emulator::wait(emulator::State::at_warp, 8); }
inline void group_commit() {
    auto& thread = *emulator::block->current;
    thread.batches.push_back(std::move(thread.begun));
    thread.begun.clear();
}
template <int kPending>
void group_wait() {
    auto& batches = emulator::block->current->batches;
    while (int(batches.size()) > kPending) {
        for (const auto& product : batches.front()) product();
        batches.erase(batches.begin());
    }
}
template <class Value>
void pin(Value&) {}
inline void publish_to_matrix_unit() {}

template <class Format>
float element_of(const unsigned char* tile, int row, int column) {
    const auto* chunk = hopper_chunk(const_cast<unsigned char*>(tile), row, column / 8);
    return unpack<Format>(load<std::uint16_t>(chunk + column % 8 * 2)).low;
}
// The lane's part of a 64-column product, computed when waited for. left(h, k): the lane's two rows; right(k, n).
template <class Left, class Right>
void begin_on_host(GroupAccumulator& sum, Left left, Right right, bool adds) {
    const int lane = lane_index();
    emulator::block->current->begun.push_back([&sum, left, right, adds, lane] {
        for (int j = 0; j < 8; ++j)
            for (int h = 0; h < 2; ++h)
                for (int e = 0; e < 2; ++e) {
                    float value = adds ? sum.at(j, h, e) : 0.f;
                    for (int k = 0; k < 64; ++k) value += left(h, k) * right(k, 8 * j + lane % 4 * 2 + e);
                    sum.at(j, h, e) = value;
                }
    });
}
// left(h, k) from fragments: the four lanes of a row hold it.
template <class Format>
auto rows_of_fragments(const GroupLeft (&left)[4]) {
    std::vector<float> rows(2 * 64);
    for (int step = 0; step < 4; ++step) {
        const auto& mail = emulator::meet(9, [&](auto& mailbox) {
            for (int i = 0; i < 4; ++i) mailbox.words[emulator::lane()][i] = left[step].word[i];
        });
        for (int k = 0; k < 16; ++k)
            for (int h = 0; h < 2; ++h) {
                const unsigned word = mail.words[emulator::lane() / 4 * 4 + k % 8 / 2][k / 8 * 2 + h];
                const Pair pair = unpack<Format>(word);
                rows[h * 64 + 16 * step + k] = k % 2 ? pair.high : pair.low;
            }
    }
    return [rows](int h, int k) { return rows[h * 64 + k]; };
}
template <class Format>
void begin_product(GroupAccumulator& sum, const unsigned char* left, const unsigned char* right) {
    const int row = warp_index() % 4 * 16 + lane_index() / 4;
    begin_on_host(sum, [left, row](int h, int k) { return element_of<Format>(left, row + 8 * h, k); },
                  [right](int k, int n) { return element_of<Format>(right, n, k); }, false);
}
template <class Format>
void begin_sum(GroupAccumulator& sum, const GroupLeft (&left)[4], const unsigned char* right) {
    begin_on_host(sum, rows_of_fragments<Format>(left), [right](int k, int n) { return element_of<Format>(right, k, n); }, true);
}
template <class Format, bool kLeftByColumns>
void begin_shared_sum(GroupAccumulator& sum, const unsigned char* left, const unsigned char* right) {
    const int row = warp_index() % 4 * 16 + lane_index() / 4;
    begin_on_host(sum,
                  [left, row](int h, int k) {
                      return kLeftByColumns ? element_of<Format>(left, k, row + 8 * h) : element_of<Format>(left, row + 8 * h, k);
                  },
                  [right](int k, int n) { return element_of<Format>(right, k, n); }, true);
}

#else

// Descriptor of a matrix in shared memory: address, 1,024 bytes between groups of eight rows (in both fields, as the operand's
// order determines which one is read), 128-byte swizzle.
__device__ __forceinline__ unsigned long long matrix_name(const unsigned char* tile) {
    const unsigned address = unsigned(__cvta_generic_to_shared(tile));
    return static_cast<unsigned long long>((address & 0x3ffff) >> 4) | 64ull << 16 | 64ull << 32 | 1ull << 62;
}
constexpr unsigned long long kStepByRows = 32 >> 4;       // 16 columns on
constexpr unsigned long long kStepByColumns = 2048 >> 4;  // 16 rows on

__device__ __forceinline__ void group_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Waits until at most kPending committed batches are in flight.
template <int kPending>
__device__ __forceinline__ void group_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of an accumulator across a fence or a wait.
__device__ __forceinline__ void pin(GroupAccumulator& sum) {
#pragma unroll
    for (int i = 0; i < 32; ++i) asm volatile("" : "+f"(sum.value[i])::"memory");
}
__device__ __forceinline__ void pin(GroupLeft& left) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(left.word[i])::"memory");
}
// Makes what this thread wrote or copied to shared memory visible to the matrix unit; a barrier must follow.
__device__ __forceinline__ void publish_to_matrix_unit() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

#define UNIMO_32(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15), \
    f(16), f(17), f(18), f(19), f(20), f(21), f(22), f(23), f(24), f(25), f(26), f(27), f(28), f(29), f(30), f(31)
#define UNIMO_SUM(i) "+f"(sum.value[i])
#define UNIMO_SUMS                                                                                                       \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, " \
    "%25, %26, %27, %28, %29, %30, %31}"

// One step of 16: sum (+)= left x right. adds: 0 overwrites the sum.
#define UNIMO_GROUP_MULTIPLY(Format, name)                                                                               \
    template <bool kByColumns, bool kLeftByColumns = false>                                                              \
    __device__ __forceinline__ void group_step(Format, GroupAccumulator& sum, unsigned long long left,                   \
                                               unsigned long long right, int adds) {                                     \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." name         \
                     " " UNIMO_SUMS ", %32, %33, p, 1, 1, %35, %36;\n}\n"                                                \
                     : UNIMO_32(UNIMO_SUM)                                                                               \
                     : "l"(left), "l"(right), "r"(adds), "n"(int(kLeftByColumns)), "n"(int(kByColumns)));                \
    }                                                                                                                    \
    template <bool kByColumns>                                                                                           \
    __device__ __forceinline__ void group_step(Format, GroupAccumulator& sum, const GroupLeft& left,                     \
                                               unsigned long long right, int adds) {                                     \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." name         \
                     " " UNIMO_SUMS ", {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"                                     \
                     : UNIMO_32(UNIMO_SUM)                                                                               \
                     : "r"(left.word[0]), "r"(left.word[1]), "r"(left.word[2]), "r"(left.word[3]), "l"(right), "r"(adds), \
                       "n"(int(kByColumns)));                                                                            \
    }
UNIMO_GROUP_MULTIPLY(Half, "f16.f16")
UNIMO_GROUP_MULTIPLY(BFloat16, "bf16.bf16")

// sum = left x right^T over 64 columns, both by rows in shared memory; left: the warpgroup's 64 rows.
template <class Format>
__device__ __forceinline__ void begin_product(GroupAccumulator& sum, const unsigned char* left, const unsigned char* right) {
    const unsigned long long left_name = matrix_name(left), name = matrix_name(right);
#pragma unroll
    for (int step = 0; step < 4; ++step)
        group_step<false>(Format{}, sum, left_name + step * kStepByRows, name + step * kStepByRows, step);
}
// sum += left x right over 64 rows of `right`, left in registers.
template <class Format>
__device__ __forceinline__ void begin_sum(GroupAccumulator& sum, const GroupLeft (&left)[4], const unsigned char* right) {
    const unsigned long long name = matrix_name(right);
#pragma unroll
    for (int step = 0; step < 4; ++step) group_step<true>(Format{}, sum, left[step], name + step * kStepByColumns, 1);
}
// sum += left x right over 64 rows of `right`, both in shared memory; left is [row][k], or [k][row] if kLeftByColumns.
template <class Format, bool kLeftByColumns>
__device__ __forceinline__ void begin_shared_sum(GroupAccumulator& sum, const unsigned char* left, const unsigned char* right) {
    const unsigned long long left_name = matrix_name(left), name = matrix_name(right);
    constexpr unsigned long long kLeftStep = kLeftByColumns ? kStepByColumns : kStepByRows;
#pragma unroll
    for (int step = 0; step < 4; ++step)
        group_step<true, kLeftByColumns>(Format{}, sum, left_name + step * kLeftStep, name + step * kStepByColumns, 1);
}

#endif

}  // namespace unimo

// Copies of whole tiles by Hopper's tensor memory accelerator (TMA, sm_90a), and the mbarriers that count their bytes.
//
// A box of rows of a matrix in global memory, 128 bytes wide, lands in shared memory with the swizzle of `hopper_chunk`; rows
// outside the matrix land as zeros. One thread starts it; all users of the tile wait for the barrier. A barrier's phases, numbered
// from 0, complete when all arrivals, and all bytes that they announced, have come. Waiters pass the phase's parity.
//
// On the host a copy is a closure: it lands at once under the reversed schedule, when somebody waits for its barrier under the
// natural one, and either way under a shuffled one.
#pragma once

#include "launch.cuh"
#include "warpgroup.cuh"

#if defined(UNIMO_HOST)
#define __grid_constant__
#else
#include <cuda.h>
#endif

namespace unimo {

constexpr int kBoxBytes = 128;  // per row: 64 elements

#if defined(UNIMO_HOST)

struct TensorMap {
    const unsigned char* base;
    int rows, row_bytes, box_rows;
};
inline int map_matrix(TensorMap& map, const void* base, int rows, int row_bytes, int box_rows) {
    emulator::require(reinterpret_cast<std::uintptr_t>(base) % 16 == 0 && row_bytes % 16 == 0, "a misaligned matrix");
    emulator::require(rows > 0 && row_bytes >= kBoxBytes && box_rows > 0 && box_rows <= 256, "a matrix that cannot be mapped");
    map = {static_cast<const unsigned char*>(base), rows, row_bytes, box_rows};
    return kDone;
}
inline int count_multiprocessors() { return 1; }  // few blocks: each takes many turns

struct Barrier {
    std::int32_t bytes;  // announced, not yet landed
    std::uint8_t arrivals, missing, phase, mark;
};
static_assert(sizeof(Barrier) == 8);
constexpr std::uint8_t kInitialized = 0x5a;

inline void initialize(Barrier& barrier, int arrivals) {
    barrier = {0, std::uint8_t(arrivals), std::uint8_t(arrivals), 0, kInitialized};
}
inline void publish_barriers() {}
inline void complete_phase(Barrier& barrier) {
    emulator::require(barrier.mark == kInitialized, "a barrier in shared memory that nobody initialized");
    if (barrier.missing || barrier.bytes) return;
    barrier.phase ^= 1;
    barrier.missing = barrier.arrivals;
}
inline void arrive_with_bytes(Barrier& barrier, int bytes) {
    emulator::require(barrier.missing > 0, "more arrivals than a barrier's phase has");
    barrier.bytes += bytes;
    --barrier.missing;
    complete_phase(barrier);
}
inline void copy_box(void* tile, const TensorMap& map, int column_byte, int row, Barrier& barrier) {
    auto* const target = static_cast<unsigned char*>(tile);
    emulator::require((target - emulator::block->shared) % 1024 == 0, "a tile that does not begin at a multiple of 1,024 bytes");
    emulator::require(column_byte >= 0 && column_byte + kBoxBytes <= map.row_bytes, "a box across the matrix's side");
    const auto land = [=, &barrier] {
        for (int i = 0; i < map.box_rows; ++i)
            for (int chunk = 0; chunk < kBoxBytes / 16; ++chunk) {
                Words4 words{};
                if (row + i >= 0 && row + i < map.rows)
                    words = load<Words4>(map.base + static_cast<long long>(row + i) * map.row_bytes + column_byte + 16 * chunk);
                store(hopper_chunk(target, i, chunk), words);
            }
        barrier.bytes -= map.box_rows * kBoxBytes;
        complete_phase(barrier);
    };
    const bool early = emulator::schedule == emulator::Schedule::reversed ||
                       (emulator::schedule == emulator::Schedule::shuffled && emulator::shuffler() % 2);
    if (early) {
        land();
    } else {
        emulator::block->bulk_copies.push_back({&barrier, land});
    }
}
inline void wait_for_phase(Barrier& barrier, int parity) {
    emulator::wait_until([&barrier, parity] {
        auto& copies = emulator::block->bulk_copies;
        for (std::size_t i = 0; i < copies.size();) {
            if (copies[i].barrier != &barrier) {
                ++i;
                continue;
            }
            const auto land = std::move(copies[i].land);
            copies.erase(copies.begin() + std::ptrdiff_t(i));
            land();
        }
        emulator::require(barrier.mark == kInitialized, "a barrier in shared memory that nobody initialized");
        return barrier.phase != parity;
    });
}

// Counts up, back to 0 after `last`. Returns the count before. Writes before an earlier count are visible after a later one.
inline unsigned count_around(unsigned& counter, unsigned last) {
    const unsigned before = counter;
    counter = before >= last ? 0 : before + 1;
    return before;
}

#else

using TensorMap = CUtensorMap;

// Describes a matrix of 16-bit elements, `rows` x `row_bytes`, to the TMA; boxes have `box_rows` rows. By value, so that a
// kernel's parameter (or a captured graph) can hold it. The driver's function is looked up: nothing links against the driver.
inline int map_matrix(TensorMap& map, const void* base, int rows, int row_bytes, int box_rows) {
    using Encode = decltype(&cuTensorMapEncodeTiled);
    static const Encode encode = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
        return reinterpret_cast<Encode>(result == cudaDriverEntryPointSuccess ? found : nullptr);
    }();
    if (encode == nullptr) return int(cudaErrorNotSupported);
    const cuuint64_t sizes[2] = {cuuint64_t(row_bytes) / 2, cuuint64_t(rows)}, strides[1] = {cuuint64_t(row_bytes)};
    const cuuint32_t box[2] = {kBoxBytes / 2, cuuint32_t(box_rows)}, steps[2] = {1, 1};
    const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(base), sizes, strides, box, steps,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return status == CUDA_SUCCESS ? int(kDone) : int(cudaErrorInvalidValue);
}
// Of the current device.
inline int count_multiprocessors() {
    int device = 0, count = 1;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return count;
}

struct alignas(8) Barrier {
    unsigned long long state;
};
__device__ __forceinline__ unsigned shared_address(const void* address) { return unsigned(__cvta_generic_to_shared(address)); }

// By one thread, followed by publish_barriers and a block barrier.
__device__ __forceinline__ void initialize(Barrier& barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;\n" ::: "memory");
}
// Arrives, and announces bytes that copies will bring in this phase.
__device__ __forceinline__ void arrive_with_bytes(Barrier& barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(&barrier)), "r"(bytes)
                 : "memory");
}
// Starts to fill a tile with a box, given its first row and first byte in a row. By one thread; `map` is a kernel's parameter.
__device__ __forceinline__ void copy_box(void* tile, const TensorMap& map, int column_byte, int row, Barrier& barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];\n" ::"r"(
            shared_address(tile)),
        "l"(&map), "r"(column_byte / 2), "r"(row), "r"(shared_address(&barrier))
        : "memory");
}
// Returns once the latest phase with that parity is over: its copies are then visible, to the matrix unit too.
__device__ __forceinline__ void wait_for_phase(Barrier& barrier, int parity) {
    const unsigned address = shared_address(&barrier);
    unsigned done;
    do {
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
            : "=r"(done)
            : "r"(address), "r"(parity)
            : "memory");
    } while (!done);
}
__device__ __forceinline__ unsigned count_around(unsigned& counter, unsigned last) {
    unsigned before;
    asm volatile("atom.acq_rel.cta.shared::cta.inc.u32 %0, [%1], %2;\n"
                 : "=r"(before)
                 : "r"(shared_address(&counter)), "r"(last)
                 : "memory");
    return before;
}

#endif

}  // namespace unimo

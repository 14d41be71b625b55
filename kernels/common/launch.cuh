// Launch of a kernel with one argument structure, on a GPU or the emulator, and return values of the C functions.
#pragma once

#include <type_traits>

#include "device.cuh"

namespace unimo {

enum Status { kDone = 0, kNoSuchFormat = -1, kGridTooLarge = -2, kBadShape = -3 };  // positive: cudaError_t

struct Grid {
    int x, y, threads, shared_bytes;
    bool starts_early = false;  // before the previous kernel of the stream ends, for which it waits itself (sm_90)
};

constexpr int kMaxGridY = 65535;

inline int tiles(int count, int size) { return (count + size - 1) / size; }

// The instance of `function` for a format by number: 0 fp16, 1 bf16 (not on sm_70).
template <class Function>
int with_format(int format, Function function) {
    if (format == 0) return function(Half{});
#if !defined(UNIMO_HALF_ONLY)
    if (format == 1) return function(BFloat16{});
#endif
    return kNoSuchFormat;
}
// The instance of `function` for a flag of a kernel.
template <class Function>
int with_flag(bool flag, Function function) {
    return flag ? function(std::true_type{}) : function(std::false_type{});
}

#if defined(UNIMO_HOST)
using Stream = void*;
template <class Kernel, class Arguments>
int launch(Kernel kernel, const Arguments& arguments, Grid grid, Stream) {
    if (grid.x == 0 || grid.y == 0) return kDone;
    if (grid.y > kMaxGridY) return kGridTooLarge;
    emulator::launch([=] { kernel(arguments); }, grid.x, grid.y, grid.threads, std::size_t(grid.shared_bytes));
    return kDone;
}
#else
using Stream = cudaStream_t;
template <class Kernel, class Arguments>
int launch(Kernel kernel, const Arguments& arguments, Grid grid, Stream stream) {
    if (grid.x == 0 || grid.y == 0) return kDone;
    if (grid.y > kMaxGridY) return kGridTooLarge;
    if (grid.shared_bytes > 48 * 1024) {
        const auto status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes);
        if (status != cudaSuccess) return int(status);
    }
    if (grid.shared_bytes > 100 * 1024) {  // two blocks fit on a multiprocessor only with the full carveout
        const auto status = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
        if (status != cudaSuccess) return int(status);
    }
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t configuration{};
    configuration.gridDim = dim3(unsigned(grid.x), unsigned(grid.y));
    configuration.blockDim = dim3(unsigned(grid.threads));
    configuration.dynamicSmemBytes = std::size_t(grid.shared_bytes);
    configuration.stream = stream;
    configuration.attrs = &early;
    configuration.numAttrs = grid.starts_early ? 1 : 0;
    return int(cudaLaunchKernelEx(&configuration, kernel, arguments));
}
#endif

}  // namespace unimo

#if defined(UNIMO_HOST)
// 0 natural, 1 reversed, anything else: shuffled with that seed.
extern "C" void unimo_host_schedule(int number) {
    emulator::schedule = number == 0   ? emulator::Schedule::natural
                         : number == 1 ? emulator::Schedule::reversed
                                       : emulator::Schedule::shuffled;
    emulator::shuffler.seed(unsigned(number));
}
#endif

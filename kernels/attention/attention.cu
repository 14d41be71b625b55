// The C interface of packed attention: raw pointers and a stream, nothing of torch, so one library serves every release.
//
// UNIMO_HOPPER (set for sm_90a): the kernels with products of a warpgroup; elsewhere those with products of a warp.
#include "backward_keys.cuh"
#include "backward_queries.cuh"
#include "forward.cuh"
#if defined(UNIMO_HOPPER)
#include "hopper_backward_keys.cuh"
#include "hopper_backward_queries.cuh"
#include "hopper_forward.cuh"
#endif

namespace {

enum Status { kDone = 0, kNoSuchFormat = -1, kTooManyTiles = -2 };  // positive: cudaError_t

constexpr int kMaxTiles = 65535;  // of the grid's second dimension

#if defined(UNIMO_HOST)
using Stream = void*;
template <class Kernel>
int run(Kernel kernel, const unimo::AttentionArguments& arguments, int threads, int shared_bytes, Stream, bool = false) {
    emulator::launch([=] { kernel(arguments); }, arguments.num_heads, arguments.num_tiles, threads, shared_bytes);
    return kDone;
}
#else
using Stream = cudaStream_t;
// starts_early: while the kernel before it in the stream still ends; it waits for it by itself.
template <class Kernel>
int run(Kernel kernel, const unimo::AttentionArguments& arguments, int threads, int shared_bytes, Stream stream,
        bool starts_early = false) {
    if (shared_bytes > 48 * 1024) {
        const auto status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
        if (status != cudaSuccess) return int(status);
    }
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t configuration{};
    configuration.gridDim = dim3(unsigned(arguments.num_heads), unsigned(arguments.num_tiles));
    configuration.blockDim = dim3(unsigned(threads));
    configuration.dynamicSmemBytes = std::size_t(shared_bytes);
    configuration.stream = stream;
    configuration.attrs = &early;
    configuration.numAttrs = starts_early ? 1 : 0;
    return int(cudaLaunchKernelEx(&configuration, kernel, arguments));
}
#endif

#if defined(UNIMO_HOPPER)
constexpr int kBlockRows = unimo::kHopperRows;
template <class Format, bool kDropout>
int forward(const unimo::AttentionArguments& arguments, Stream stream) {
    return run(unimo::hopper_forward<Format, kDropout>, arguments, unimo::kHopperThreads, unimo::kHopperForwardBytes, stream);
}
template <class Format, bool kDropout>
int backward(const unimo::AttentionArguments& arguments, Stream stream) {
    const int status = run(unimo::hopper_backward_queries<Format, kDropout>, arguments, unimo::kHopperThreads,
                           unimo::kHopperBackwardQueriesBytes, stream);
    if (status != kDone) return status;
    return run(unimo::hopper_backward_keys<Format, kDropout>, arguments, unimo::kHopperThreads,
               unimo::kHopperBackwardKeysBytes, stream, /*starts_early=*/true);
}
#else
constexpr int kBlockRows = unimo::kTileRows;
template <class Format, bool kDropout>
int forward(const unimo::AttentionArguments& arguments, Stream stream) {
    return run(unimo::attention_forward<Format, kDropout>, arguments, unimo::kThreads, unimo::kForwardSharedBytes, stream);
}
template <class Format, bool kDropout>
int backward(const unimo::AttentionArguments& arguments, Stream stream) {
    const int status = run(unimo::attention_backward_queries<Format, kDropout>, arguments, unimo::kThreads,
                           unimo::kBackwardQueriesSharedBytes, stream);
    if (status != kDone) return status;
    return run(unimo::attention_backward_keys<Format, kDropout>, arguments, unimo::kThreads,
               unimo::kBackwardKeysSharedBytes, stream);
}
#endif

bool is_empty(const unimo::AttentionArguments& arguments) {
    return arguments.num_tiles == 0 || arguments.num_heads == 0;
}

}  // namespace

// format: 0 fp16, 1 bf16 (not on sm_70). Returns 0, a cudaError_t, or a negative Status.
extern "C" int unimo_attention_forward(const unimo::AttentionArguments* arguments, int format, Stream stream) {
    const bool drops = arguments->dropout_threshold > -32768;
    if (is_empty(*arguments)) return kDone;
    if (arguments->num_tiles > kMaxTiles) return kTooManyTiles;
    if (format == 0)
        return drops ? forward<unimo::Half, true>(*arguments, stream) : forward<unimo::Half, false>(*arguments, stream);
#if !defined(UNIMO_HALF_ONLY)
    if (format == 1)
        return drops ? forward<unimo::BFloat16, true>(*arguments, stream)
                     : forward<unimo::BFloat16, false>(*arguments, stream);
#endif
    return kNoSuchFormat;
}

extern "C" int unimo_attention_backward(const unimo::AttentionArguments* arguments, int format, Stream stream) {
    const bool drops = arguments->dropout_threshold > -32768;
    if (is_empty(*arguments)) return kDone;
    if (arguments->num_tiles > kMaxTiles) return kTooManyTiles;
    if (format == 0)
        return drops ? backward<unimo::Half, true>(*arguments, stream)
                     : backward<unimo::Half, false>(*arguments, stream);
#if !defined(UNIMO_HALF_ONLY)
    if (format == 1)
        return drops ? backward<unimo::BFloat16, true>(*arguments, stream)
                     : backward<unimo::BFloat16, false>(*arguments, stream);
#endif
    return kNoSuchFormat;
}

// Rows of a sequence that one block takes: what the table of blocks is made for.
extern "C" int unimo_attention_block_rows() { return kBlockRows; }

// So that Python's view of the argument structure can be checked against this one.
extern "C" int unimo_attention_argument_bytes() { return int(sizeof(unimo::AttentionArguments)); }

#if defined(UNIMO_HOST)
// 0 natural, 1 reversed, anything else: shuffled with that seed.
extern "C" void unimo_host_schedule(int number) {
    emulator::schedule = number == 0   ? emulator::Schedule::natural
                         : number == 1 ? emulator::Schedule::reversed
                                       : emulator::Schedule::shuffled;
    emulator::shuffler.seed(unsigned(number));
}
#endif

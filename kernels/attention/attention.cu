// C interface of packed attention: raw pointers and a stream, nothing of torch, so one library works with all releases.
//
// UNIMO_HOPPER (set for sm_90a): warpgroup kernels (wgmma); elsewhere warp kernels (mma).
#include "../common/launch.cuh"
#include "backward_keys.cuh"
#include "backward_queries.cuh"
#include "forward.cuh"
#if defined(UNIMO_HOPPER)
#include "hopper_backward_keys.cuh"
#include "hopper_backward_queries.cuh"
#include "hopper_backward_whole.cuh"
#include "hopper_forward.cuh"
#endif

namespace unimo {

// Arguments of the C functions; `arguments.tiles` is the table of query blocks.
struct AttentionCall {
    AttentionArguments arguments;
    const int* key_tiles;  // [num_tiles, 4 or 8] the same blocks in the best order for blocks of keys
    const int* sequences;  // [num_sequences, 4 or 8] likewise, one entry per sequence; its first row is not used
    int num_sequences;

    AttentionArguments of_keys() const {
        AttentionArguments changed = arguments;
        changed.tiles = key_tiles;
        return changed;
    }
    AttentionArguments of_sequences() const {
        AttentionArguments changed = arguments;
        changed.tiles = sequences;
        changed.num_tiles = num_sequences;
        return changed;
    }
};

}  // namespace unimo

namespace {

using unimo::kDone;
using unimo::Stream;

template <class Kernel>
int run(Kernel kernel, const unimo::AttentionArguments& arguments, int threads, int shared_bytes, Stream stream,
        bool starts_early = false) {
    return unimo::launch(kernel, arguments, {arguments.num_heads, arguments.num_tiles, threads, shared_bytes, starts_early},
                         stream);
}

#if defined(UNIMO_HOPPER)
constexpr int kBlockRows = unimo::kHopperRows;
template <class Format, bool kDropout, bool kShares>
int forward(const unimo::AttentionArguments& arguments, Stream stream) {
    return run(unimo::hopper_forward<Format, kDropout, kShares>, arguments, unimo::kHopperThreads, unimo::kHopperForwardBytes, stream);
}
constexpr int kWholeLength = unimo::kWholeLength;
template <class Format, bool kDropout, bool kShares>
int backward(unimo::AttentionCall call, Stream stream) {
    unimo::AttentionArguments& arguments = call.arguments;
    arguments.whole_length = kShares || arguments.whole == unimo::kNotWhole ? 0 : kWholeLength;
    const bool whole = arguments.whole_length > 0;
    int status = kDone;
    if constexpr (!kShares)
        if (whole)
            status = run(unimo::hopper_backward_whole<Format, kDropout>, call.of_sequences(), unimo::kWholeThreads,
                         unimo::kWholeBytes, stream);
    if (status != kDone || (whole && arguments.whole == unimo::kAllWhole)) return status;
    status = run(unimo::hopper_backward_queries<Format, kDropout, kShares>, arguments, unimo::kHopperThreads,
                 unimo::kHopperBackwardQueriesBytes, stream, /*starts_early=*/whole);
    if (status != kDone) return status;
    return run(unimo::hopper_backward_keys<Format, kDropout, kShares>, call.of_keys(), unimo::kHopperThreads,
               unimo::kHopperBackwardKeysBytes, stream, /*starts_early=*/true);
}
#else
constexpr int kBlockRows = unimo::kTileRows;
constexpr int kWholeLength = 0;
template <class Format, bool kDropout, bool kShares>
int forward(const unimo::AttentionArguments& arguments, Stream stream) {
    return run(unimo::attention_forward<Format, kDropout, kShares>, arguments, unimo::kThreads, unimo::kForwardSharedBytes, stream);
}
template <class Format, bool kDropout, bool kShares>
int backward(const unimo::AttentionCall& call, Stream stream) {
    const int status = run(unimo::attention_backward_queries<Format, kDropout, kShares>, call.arguments, unimo::kThreads,
                           unimo::kBackwardQueriesSharedBytes, stream);
    if (status != kDone) return status;
    return run(unimo::attention_backward_keys<Format, kDropout, kShares>, call.of_keys(), unimo::kThreads,
               unimo::kBackwardKeysSharedBytes, stream);
}
#endif

// The instance of `function` for a format, with or without dropout.
template <class Function>
int with_kind(const unimo::AttentionArguments& arguments, int format, Function function) {
    return unimo::with_format(format, [&](auto tag) {
        return unimo::with_flag(arguments.dropout_threshold > -32768, [&](auto drops) { return function(tag, drops); });
    });
}

}  // namespace

// format: see with_format. Returns 0, a cudaError_t, or a negative Status.
extern "C" int unimo_attention_forward(const unimo::AttentionCall* call, int format, Stream stream) {
    const unimo::AttentionArguments& arguments = call->arguments;
    return with_kind(arguments, format, [&](auto tag, auto drops) {
        return unimo::with_flag(arguments.sharing != nullptr, [&](auto shares) {
            return forward<decltype(tag), decltype(drops)::value, decltype(shares)::value>(arguments, stream);
        });
    });
}

extern "C" int unimo_attention_backward(const unimo::AttentionCall* call, int format, Stream stream) {
    return with_kind(call->arguments, format, [&](auto tag, auto drops) {
        return unimo::with_flag(call->arguments.sharing != nullptr, [&](auto shares) {
            return backward<decltype(tag), decltype(drops)::value, decltype(shares)::value>(*call, stream);
        });
    });
}

// Rows of a sequence per block, for building the table of blocks.
extern "C" int unimo_attention_block_rows() { return kBlockRows; }

// Sequences of up to this length can take the whole-sequence backward kernel; 0: none can.
extern "C" int unimo_attention_whole_length() { return kWholeLength; }

// To check Python's definition of the argument structure against this one.
extern "C" int unimo_attention_argument_bytes() { return int(sizeof(unimo::AttentionCall)); }

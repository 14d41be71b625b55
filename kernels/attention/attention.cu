// The C interface of packed attention: raw pointers and a stream, nothing of torch, so one library serves every release.
#include "../common/launch.cuh"
#include "backward_keys.cuh"
#include "backward_queries.cuh"
#include "forward.cuh"

namespace {

using unimo::kDone;
using unimo::Stream;

template <class Kernel>
int run(Kernel kernel, const unimo::AttentionArguments& arguments, int shared_bytes, Stream stream) {
    return unimo::launch(kernel, arguments, {arguments.num_heads, arguments.num_tiles, unimo::kThreads, shared_bytes}, stream);
}

template <class Format, bool kDropout>
int forward(const unimo::AttentionArguments& arguments, Stream stream) {
    return run(unimo::attention_forward<Format, kDropout>, arguments, unimo::kForwardSharedBytes, stream);
}

template <class Format, bool kDropout>
int backward(const unimo::AttentionArguments& arguments, Stream stream) {
    const int status = run(unimo::attention_backward_queries<Format, kDropout>, arguments,
                           unimo::kBackwardQueriesSharedBytes, stream);
    if (status != kDone) return status;
    return run(unimo::attention_backward_keys<Format, kDropout>, arguments, unimo::kBackwardKeysSharedBytes, stream);
}

}  // namespace

// format: 0 fp16, 1 bf16 (not on sm_70). Returns 0, a cudaError_t, or a negative Status.
extern "C" int unimo_attention_forward(const unimo::AttentionArguments* arguments, int format, Stream stream) {
    const bool drops = arguments->dropout_threshold > -32768;
    if (format == 0)
        return drops ? forward<unimo::Half, true>(*arguments, stream) : forward<unimo::Half, false>(*arguments, stream);
#if !defined(UNIMO_HALF_ONLY)
    if (format == 1)
        return drops ? forward<unimo::BFloat16, true>(*arguments, stream)
                     : forward<unimo::BFloat16, false>(*arguments, stream);
#endif
    return unimo::kNoSuchFormat;
}

extern "C" int unimo_attention_backward(const unimo::AttentionArguments* arguments, int format, Stream stream) {
    const bool drops = arguments->dropout_threshold > -32768;
    if (format == 0)
        return drops ? backward<unimo::Half, true>(*arguments, stream)
                     : backward<unimo::Half, false>(*arguments, stream);
#if !defined(UNIMO_HALF_ONLY)
    if (format == 1)
        return drops ? backward<unimo::BFloat16, true>(*arguments, stream)
                     : backward<unimo::BFloat16, false>(*arguments, stream);
#endif
    return unimo::kNoSuchFormat;
}

// So that Python's view of the argument structure can be checked against this one.
extern "C" int unimo_attention_argument_bytes() { return int(sizeof(unimo::AttentionArguments)); }

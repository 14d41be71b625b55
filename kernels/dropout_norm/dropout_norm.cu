// The C interface of dropout, residual and layer norm, and of dropout alone. Columns: a multiple of 8, at most 1,024 for the norm.
#include "../common/launch.cuh"
#include "dropout_norm.cuh"

namespace {

template <class Format, int kChunks, bool kDropout>
int norm_forward(const unimo::DropoutNormArguments& arguments, unimo::Stream stream) {
    const int blocks = (arguments.num_rows + unimo::kNormWarps - 1) / unimo::kNormWarps;
    return unimo::launch(unimo::dropout_norm_forward<Format, kChunks, kDropout>, arguments, {blocks, 1, unimo::kNormThreads, 0},
                         stream);
}
template <class Format, int kChunks, bool kDropout>
int norm_backward(const unimo::DropoutNormArguments& arguments, unimo::Stream stream) {
    const int shared_bytes = 2 * unimo::kNormWarps * arguments.num_columns * int(sizeof(float));
    return unimo::launch(unimo::dropout_norm_backward<Format, kChunks, kDropout>, arguments,
                         {arguments.num_blocks, 1, unimo::kNormThreads, shared_bytes}, stream);
}
template <class Format, int kChunks>
int norm(const unimo::DropoutNormArguments& arguments, bool is_backward, unimo::Stream stream) {
    const bool drops = arguments.dropout_threshold > -32768;
    if (is_backward)
        return drops ? norm_backward<Format, kChunks, true>(arguments, stream)
                     : norm_backward<Format, kChunks, false>(arguments, stream);
    return drops ? norm_forward<Format, kChunks, true>(arguments, stream) : norm_forward<Format, kChunks, false>(arguments, stream);
}
template <class Format>
int norm(const unimo::DropoutNormArguments& arguments, bool is_backward, unimo::Stream stream) {
    const int chunks = (arguments.num_columns + unimo::kWarpColumns - 1) / unimo::kWarpColumns;
    if (arguments.num_columns % unimo::kChunkColumns || chunks > unimo::kMaxNormChunks) return unimo::kBadShape;
    if (chunks <= 1) return norm<Format, 1>(arguments, is_backward, stream);
    if (chunks == 2) return norm<Format, 2>(arguments, is_backward, stream);
    if (chunks == 3) return norm<Format, 3>(arguments, is_backward, stream);
    return norm<Format, unimo::kMaxNormChunks>(arguments, is_backward, stream);
}
int norm_of_format(const unimo::DropoutNormArguments& arguments, int format, bool is_backward, unimo::Stream stream) {
    if (format == 0) return norm<unimo::Half>(arguments, is_backward, stream);
#if !defined(UNIMO_HALF_ONLY)
    if (format == 1) return norm<unimo::BFloat16>(arguments, is_backward, stream);
#endif
    return unimo::kNoSuchFormat;
}

template <class Format>
int dropout(const unimo::DropoutNormArguments& arguments, unimo::Stream stream) {
    if (arguments.num_columns % unimo::kChunkColumns) return unimo::kBadShape;
    const int blocks = (arguments.num_rows + unimo::kNormWarps - 1) / unimo::kNormWarps;
    return unimo::launch(unimo::keyed_dropout<Format>, arguments, {blocks, 1, unimo::kNormThreads, 0}, stream);
}

}  // namespace

// format: 0 fp16, 1 bf16 (not on sm_70). Returns 0, a cudaError_t, or a negative Status.
extern "C" int unimo_dropout_norm_forward(const unimo::DropoutNormArguments* arguments, int format, unimo::Stream stream) {
    return norm_of_format(*arguments, format, false, stream);
}
extern "C" int unimo_dropout_norm_backward(const unimo::DropoutNormArguments* arguments, int format, unimo::Stream stream) {
    return norm_of_format(*arguments, format, true, stream);
}
extern "C" int unimo_dropout(const unimo::DropoutNormArguments* arguments, int format, unimo::Stream stream) {
    if (format == 0) return dropout<unimo::Half>(*arguments, stream);
#if !defined(UNIMO_HALF_ONLY)
    if (format == 1) return dropout<unimo::BFloat16>(*arguments, stream);
#endif
    return unimo::kNoSuchFormat;
}
extern "C" int unimo_dropout_norm_argument_bytes() { return int(sizeof(unimo::DropoutNormArguments)); }

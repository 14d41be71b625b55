// The C interface of cross-entropy over rows of logits.
#include "../common/launch.cuh"
#include "cross_entropy.cuh"

namespace {

template <class Format>
int cross_entropy_forward(const unimo::CrossEntropyArguments& a, unimo::Stream stream) {
    const unimo::Grid grid{(a.num_rows + unimo::kEntropyRows - 1) / unimo::kEntropyRows,
                           (a.num_slabs + unimo::kEntropyWarps - 1) / unimo::kEntropyWarps, unimo::kEntropyThreads, 0};
    const bool more = a.smoothing > 0.f || a.is_correct;
    const int status = more ? unimo::launch(unimo::cross_entropy_parts<Format, true>, a, grid, stream)
                            : unimo::launch(unimo::cross_entropy_parts<Format, false>, a, grid, stream);
    if (status != unimo::kDone) return status;
    const int blocks = (a.num_rows + unimo::kEntropyWarps - 1) / unimo::kEntropyWarps;
    return unimo::launch(unimo::cross_entropy_losses<Format>, a, {blocks, 1, unimo::kEntropyThreads, 0}, stream);
}
template <class Format>
int cross_entropy_backward(const unimo::CrossEntropyArguments& a, unimo::Stream stream) {
    const int slabs = (a.num_words + unimo::kSlopeColumns - 1) / unimo::kSlopeColumns;
    return unimo::launch(unimo::cross_entropy_slopes<Format>, a, {slabs, a.num_blocks, unimo::kEntropyThreads, 0}, stream);
}
template <class Format>
int cross_entropy(const unimo::CrossEntropyArguments& a, bool is_backward, unimo::Stream stream) {
    if (a.num_words < 1 || a.pitch % unimo::kChunkColumns || a.pitch < a.num_words) return unimo::kBadShape;
    if (!is_backward && static_cast<long long>(a.num_slabs) * unimo::kEntropySlab < a.num_words) return unimo::kBadShape;
    return is_backward ? cross_entropy_backward<Format>(a, stream) : cross_entropy_forward<Format>(a, stream);
}
int cross_entropy_of_format(const unimo::CrossEntropyArguments& a, int format, bool is_backward, unimo::Stream stream) {
    if (format == 0) return cross_entropy<unimo::Half>(a, is_backward, stream);
#if !defined(UNIMO_HALF_ONLY)
    if (format == 1) return cross_entropy<unimo::BFloat16>(a, is_backward, stream);
#endif
    return unimo::kNoSuchFormat;
}

}  // namespace

// format: 0 fp16, 1 bf16 (not on sm_70). Returns 0, a cudaError_t, or a negative Status.
extern "C" int unimo_cross_entropy_losses(const unimo::CrossEntropyArguments* arguments, int format, unimo::Stream stream) {
    return cross_entropy_of_format(*arguments, format, false, stream);
}
extern "C" int unimo_cross_entropy_slopes(const unimo::CrossEntropyArguments* arguments, int format, unimo::Stream stream) {
    return cross_entropy_of_format(*arguments, format, true, stream);
}
extern "C" int unimo_cross_entropy_argument_bytes() { return int(sizeof(unimo::CrossEntropyArguments)); }

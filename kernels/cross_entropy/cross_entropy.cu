// C interface of cross-entropy over rows of logits.
#include "../common/launch.cuh"
#include "cross_entropy.cuh"

namespace unimo {

inline bool is_bad(const CrossEntropyArguments& a) {
    return a.num_words < 1 || a.pitch % kChunkColumns || a.pitch < a.num_words;
}

}  // namespace unimo

// format: see with_format. Return 0, a cudaError_t, or a negative Status.
extern "C" int unimo_cross_entropy_losses(const unimo::CrossEntropyArguments* arguments, int format, unimo::Stream stream) {
    using namespace unimo;
    const CrossEntropyArguments& a = *arguments;
    if (is_bad(a) || static_cast<long long>(a.num_slabs) * kEntropySlab < a.num_words) return kBadShape;
    const Grid grid{tiles(a.num_rows, kEntropyRows), tiles(a.num_slabs, kEntropyWarps), kEntropyThreads, 0};
    const Grid of_rows{tiles(a.num_rows, kEntropyWarps), 1, kEntropyThreads, 0};
    return with_format(format, [&](auto tag) {
        using Format = decltype(tag);
        const int status = with_flag(a.smoothing > 0.f || a.is_correct, [&](auto more) {
            return launch(cross_entropy_parts<Format, decltype(more)::value>, a, grid, stream);
        });
        return status != kDone ? status : launch(cross_entropy_losses<Format>, a, of_rows, stream);
    });
}
extern "C" int unimo_cross_entropy_slopes(const unimo::CrossEntropyArguments* arguments, int format, unimo::Stream stream) {
    using namespace unimo;
    if (is_bad(*arguments)) return kBadShape;
    const Grid grid{tiles(arguments->num_words, kSlopeColumns), arguments->num_blocks, kEntropyThreads, 0};
    return with_format(format, [&](auto tag) { return launch(cross_entropy_slopes<decltype(tag)>, *arguments, grid, stream); });
}
extern "C" int unimo_cross_entropy_argument_bytes() { return int(sizeof(unimo::CrossEntropyArguments)); }

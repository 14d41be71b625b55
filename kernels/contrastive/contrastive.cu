// The C interface of the contrastive kernels: raw pointers and a stream, nothing of torch, so one library serves every release.
#include "../common/launch.cuh"
#include "conflicts.cuh"
#include "pairs.cuh"
#include "statistics.cuh"
#include "weights.cuh"

namespace unimo {

inline int tiles(int count, int size) { return (count + size - 1) / size; }

// Of the filter of own items: 64 bits an item where that fits.
inline int item_filter_words(int row_items_width) {
    int words = kMinItemFilterWords;
    while (words < kMaxItemFilterWords && words < 2 * kBandRows * row_items_width) words *= 2;
    return words;
}

inline bool is_empty(const BlockArguments& a) { return a.num_rows == 0 || a.num_columns == 0; }

template <bool kBoth>
int run_statistics(const BlockArguments& a, Stream stream) {
    const Grid grid{tiles(a.num_columns, kBandColumns), tiles(a.num_rows, kBandRows), kStatisticsThreads,
                    kBoth ? kStatisticsSharedBytes : 0};
    const int status = launch(contrastive_statistics<kBoth>, a, grid, stream);
    if (status != kDone) return status;
    const int threads = a.num_rows + (kBoth ? a.num_columns : 0);
    return launch(contrastive_join<kBoth>, a, {tiles(threads, kJoinThreads), 1, kJoinThreads, 0}, stream);
}

template <class Format>
int run_weights(const BlockArguments& a, Stream stream) {
    const Grid grid{tiles(a.num_rows, kWeightBlockRows), 1, kWeightThreads, 0};
    return a.column_logs != nullptr ? launch(contrastive_weights<Format, true>, a, grid, stream)
                                    : launch(contrastive_weights<Format, false>, a, grid, stream);
}

template <class Format, bool kWide>
int run_pair_gradients(const PairArguments& a, Stream stream) {
    const bool few = a.num_scores < static_cast<long long>(kFewScores) * a.num_rows;
    const Grid grid{tiles(a.num_rows, kPairWarps * (few ? kRowsOfFew : 1)), tiles(a.size, kSliceSize), kPairThreads, 0};
    return few ? launch(contrastive_pair_gradients<Format, kWide, true>, a, grid, stream)
               : launch(contrastive_pair_gradients<Format, kWide, false>, a, grid, stream);
}

}  // namespace unimo

// All return 0, a cudaError_t, or a negative Status. format: 0 fp16, 1 bf16 (not on sm_70).

extern "C" int unimo_contrastive_conflicts(const unimo::BlockArguments* arguments, int, unimo::Stream stream) {
    using namespace unimo;
    if (is_empty(*arguments)) return kDone;
    BlockArguments a = *arguments;
    a.item_filter_words = item_filter_words(a.row_items_width);
    const Grid grid{tiles(a.num_columns, kBandColumns), tiles(a.num_rows, kBandRows), kConflictThreads,
                    (kKeyFilterWords + a.item_filter_words + 1) * 4};
    return launch(contrastive_conflicts, a, grid, stream);
}

extern "C" int unimo_contrastive_statistics(const unimo::BlockArguments* arguments, int, unimo::Stream stream) {
    using namespace unimo;
    if (is_empty(*arguments)) return kDone;
    if (arguments->pitch % 4) return kBadShape;
    return arguments->column_maxima != nullptr ? run_statistics<true>(*arguments, stream)
                                               : run_statistics<false>(*arguments, stream);
}

extern "C" int unimo_contrastive_weights(const unimo::BlockArguments* arguments, int format, unimo::Stream stream) {
    using namespace unimo;
    if (is_empty(*arguments)) return kDone;
    if (arguments->pitch % 4) return kBadShape;
    if (format == 0) return run_weights<Half>(*arguments, stream);
#if !defined(UNIMO_HALF_ONLY)
    if (format == 1) return run_weights<BFloat16>(*arguments, stream);
#endif
    return kNoSuchFormat;
}

extern "C" int unimo_contrastive_pair_scores(const unimo::PairArguments* arguments, int format, unimo::Stream stream) {
    using namespace unimo;
    if (arguments->num_scores == 0) return kDone;
    if (arguments->size % kChunk) return kBadShape;
    const Grid grid{tiles(arguments->num_scores, kPairWarps), 1, kPairThreads, 0};
    if (format == 0) return launch(contrastive_pair_scores<Half>, *arguments, grid, stream);
#if !defined(UNIMO_HALF_ONLY)
    if (format == 1) return launch(contrastive_pair_scores<BFloat16>, *arguments, grid, stream);
#endif
    return kNoSuchFormat;
}

// format + 2: the gradient is written in fp32.
extern "C" int unimo_contrastive_pair_gradients(const unimo::PairArguments* arguments, int format, unimo::Stream stream) {
    using namespace unimo;
    if (arguments->num_rows == 0) return kDone;
    if (arguments->size % kChunk) return kBadShape;
    if (format == 0) return run_pair_gradients<Half, false>(*arguments, stream);
    if (format == 2) return run_pair_gradients<Half, true>(*arguments, stream);
#if !defined(UNIMO_HALF_ONLY)
    if (format == 1) return run_pair_gradients<BFloat16, false>(*arguments, stream);
    if (format == 3) return run_pair_gradients<BFloat16, true>(*arguments, stream);
#endif
    return kNoSuchFormat;
}

extern "C" int unimo_contrastive_segments(const unimo::SegmentArguments* arguments, int, unimo::Stream stream) {
    using namespace unimo;
    if (arguments->num_segments == 0) return kDone;
    return launch(contrastive_segments, *arguments, {tiles(arguments->num_segments, kPairWarps), 1, kPairThreads, 0}, stream);
}

// So that Python's view of the argument structures can be checked against this one.
extern "C" int unimo_contrastive_argument_bytes(int which) {
    const int bytes[] = {int(sizeof(unimo::BlockArguments)), int(sizeof(unimo::PairArguments)),
                         int(sizeof(unimo::SegmentArguments))};
    return bytes[which];
}

// C interface of the contrastive kernels: raw pointers and a stream, nothing of torch, so one library works with all releases.
#include "../common/launch.cuh"
#include "conflicts.cuh"
#include "pairs.cuh"
#include "statistics.cuh"
#include "weights.cuh"

namespace unimo {

// Words of the filter of own items: 64 bits per item if they fit.
inline int item_filter_words(int row_items_width) {
    int words = kMinItemFilterWords;
    while (words < kMaxItemFilterWords && words < 2 * kBandRows * row_items_width) words *= 2;
    return words;
}

inline bool is_empty(const BlockArguments& a) { return a.num_rows == 0 || a.num_columns == 0; }

}  // namespace unimo

// All return 0, a cudaError_t, or a negative Status. format: see with_format.

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
    const BlockArguments& a = *arguments;
    return with_flag(a.column_maxima != nullptr, [&](auto both) {
        constexpr bool kBoth = decltype(both)::value;
        const Grid grid{tiles(a.num_columns, kBandColumns), tiles(a.num_rows, kBandRows), kStatisticsThreads,
                        kBoth ? kStatisticsSharedBytes : 0};
        const int status = launch(contrastive_statistics<kBoth>, a, grid, stream);
        if (status != kDone) return status;
        const int threads = a.num_rows + (kBoth ? a.num_columns : 0);
        return launch(contrastive_join<kBoth>, a, {tiles(threads, kJoinThreads), 1, kJoinThreads, 0}, stream);
    });
}

extern "C" int unimo_contrastive_weights(const unimo::BlockArguments* arguments, int format, unimo::Stream stream) {
    using namespace unimo;
    if (is_empty(*arguments)) return kDone;
    if (arguments->pitch % 4) return kBadShape;
    const Grid grid{tiles(arguments->num_rows, kWeightBlockRows), 1, kWeightThreads, 0};
    return with_format(format, [&](auto tag) {
        return with_flag(arguments->column_logs != nullptr, [&](auto both) {
            return launch(contrastive_weights<decltype(tag), decltype(both)::value>, *arguments, grid, stream);
        });
    });
}

extern "C" int unimo_contrastive_pair_scores(const unimo::PairArguments* arguments, int format, unimo::Stream stream) {
    using namespace unimo;
    if (arguments->num_scores == 0) return kDone;
    if (arguments->size % kChunk) return kBadShape;
    const Grid grid{tiles(arguments->num_scores, kPairWarps), 1, kPairThreads, 0};
    return with_format(format, [&](auto tag) { return launch(contrastive_pair_scores<decltype(tag)>, *arguments, grid, stream); });
}

// format + 2: the gradient is written in fp32.
extern "C" int unimo_contrastive_pair_gradients(const unimo::PairArguments* arguments, int format, unimo::Stream stream) {
    using namespace unimo;
    const PairArguments& a = *arguments;
    if (a.num_rows == 0) return kDone;
    if (a.size % kChunk) return kBadShape;
    const bool is_few = a.num_scores < static_cast<long long>(kFewScores) * a.num_rows;
    const Grid grid{tiles(a.num_rows, kPairWarps * (is_few ? kRowsOfFew : 1)), tiles(a.size, kSliceSize), kPairThreads, 0};
    return with_format(format < 2 ? format : format - 2, [&](auto tag) {
        return with_flag(format >= 2, [&](auto wide) {
            return with_flag(is_few, [&](auto few) {
                return launch(contrastive_pair_gradients<decltype(tag), decltype(wide)::value, decltype(few)::value>, a, grid, stream);
            });
        });
    });
}

extern "C" int unimo_contrastive_segments(const unimo::SegmentArguments* arguments, int, unimo::Stream stream) {
    using namespace unimo;
    if (arguments->num_segments == 0) return kDone;
    return launch(contrastive_segments, *arguments, {tiles(arguments->num_segments, kPairWarps), 1, kPairThreads, 0}, stream);
}

extern "C" int unimo_contrastive_segment_gradients(const unimo::SegmentArguments* arguments, int, unimo::Stream stream) {
    using namespace unimo;
    if (arguments->num_values == 0) return kDone;
    return launch(contrastive_segment_gradients, *arguments, {tiles(arguments->num_values, kPairThreads), 1, kPairThreads, 0},
                  stream);
}

// To check Python's definitions of the argument structures against these.
extern "C" int unimo_contrastive_argument_bytes(int which) {
    const int bytes[] = {int(sizeof(unimo::BlockArguments)), int(sizeof(unimo::PairArguments)),
                         int(sizeof(unimo::SegmentArguments))};
    return bytes[which];
}

// C interface of dropout, residual and layer norm, and of only dropout. Columns: a multiple of 8, at most 1,024 for the norm.
#include "../common/launch.cuh"
#include "dropout_norm.cuh"

namespace unimo {

// The instance of `function` for a format, the accesses per row, with or without dropout.
template <class Function>
int with_norm(const DropoutNormArguments& a, int format, Function function) {
    const int chunks = tiles(a.num_columns, kWarpColumns);
    if (a.num_columns % kChunkColumns || chunks > kMaxNormChunks) return kBadShape;
    return with_format(format, [&](auto tag) {
        return with_flag(a.dropout_threshold > -32768, [&](auto drops) {
            if (chunks <= 1) return function(tag, std::integral_constant<int, 1>{}, drops);
            if (chunks == 2) return function(tag, std::integral_constant<int, 2>{}, drops);
            if (chunks == 3) return function(tag, std::integral_constant<int, 3>{}, drops);
            return function(tag, std::integral_constant<int, kMaxNormChunks>{}, drops);
        });
    });
}

}  // namespace unimo

// format: see with_format. Return 0, a cudaError_t, or a negative Status.
extern "C" int unimo_dropout_norm_forward(const unimo::DropoutNormArguments* arguments, int format, unimo::Stream stream) {
    using namespace unimo;
    const Grid grid{tiles(arguments->num_rows, kNormWarps), 1, kNormThreads, 0};
    return with_norm(*arguments, format, [&](auto tag, auto chunks, auto drops) {
        return launch(dropout_norm_forward<decltype(tag), decltype(chunks)::value, decltype(drops)::value>, *arguments, grid, stream);
    });
}
extern "C" int unimo_dropout_norm_backward(const unimo::DropoutNormArguments* arguments, int format, unimo::Stream stream) {
    using namespace unimo;
    const int shared_bytes = 2 * kNormWarps * arguments->num_columns * int(sizeof(float));
    const Grid grid{arguments->num_blocks, 1, kNormThreads, shared_bytes};
    return with_norm(*arguments, format, [&](auto tag, auto chunks, auto drops) {
        return launch(dropout_norm_backward<decltype(tag), decltype(chunks)::value, decltype(drops)::value>, *arguments, grid, stream);
    });
}
extern "C" int unimo_dropout(const unimo::DropoutNormArguments* arguments, int format, unimo::Stream stream) {
    using namespace unimo;
    if (arguments->num_columns % kChunkColumns) return kBadShape;
    const Grid grid{tiles(arguments->num_rows, kNormWarps), 1, kNormThreads, 0};
    return with_format(format, [&](auto tag) { return launch(keyed_dropout<decltype(tag)>, *arguments, grid, stream); });
}
extern "C" int unimo_dropout_norm_argument_bytes() { return int(sizeof(unimo::DropoutNormArguments)); }

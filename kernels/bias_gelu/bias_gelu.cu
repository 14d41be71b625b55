// C interface of bias and gelu.
#include "../common/launch.cuh"
#include "bias_gelu.cuh"

// format: see with_format. Return 0, a cudaError_t, or a negative Status.
extern "C" int unimo_bias_gelu_forward(const unimo::BiasGeluArguments* arguments, int format, unimo::Stream stream) {
    using namespace unimo;
    if (arguments->num_columns % kChunkColumns) return kBadShape;
    const Grid grid{tiles(arguments->num_columns, kGeluColumns), arguments->num_blocks, kGeluThreads, 0};
    return with_format(format, [&](auto tag) { return launch(bias_gelu_forward<decltype(tag)>, *arguments, grid, stream); });
}
extern "C" int unimo_bias_gelu_backward(const unimo::BiasGeluArguments* arguments, int format, unimo::Stream stream) {
    using namespace unimo;
    if (arguments->num_columns % kChunkColumns) return kBadShape;
    const Grid grid{tiles(arguments->num_columns, kGeluColumns), arguments->num_blocks, kGeluThreads, 0};
    return with_format(format, [&](auto tag) { return launch(bias_gelu_backward<decltype(tag)>, *arguments, grid, stream); });
}
extern "C" int unimo_bias_gelu_argument_bytes() { return int(sizeof(unimo::BiasGeluArguments)); }

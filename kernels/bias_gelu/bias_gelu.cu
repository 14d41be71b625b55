// The C interface of bias and gelu.
#include "../common/launch.cuh"
#include "bias_gelu.cuh"

namespace {

template <class Format>
int bias_gelu(const unimo::BiasGeluArguments& arguments, bool is_backward, unimo::Stream stream) {
    if (arguments.num_columns % unimo::kChunkColumns) return unimo::kBadShape;
    const int slabs = (arguments.num_columns + unimo::kGeluColumns - 1) / unimo::kGeluColumns;
    const unimo::Grid grid{slabs, arguments.num_blocks, unimo::kGeluThreads, 0};
    return is_backward ? unimo::launch(unimo::bias_gelu_backward<Format>, arguments, grid, stream)
                       : unimo::launch(unimo::bias_gelu_forward<Format>, arguments, grid, stream);
}
int bias_gelu_of_format(const unimo::BiasGeluArguments& arguments, int format, bool is_backward, unimo::Stream stream) {
    if (format == 0) return bias_gelu<unimo::Half>(arguments, is_backward, stream);
#if !defined(UNIMO_HALF_ONLY)
    if (format == 1) return bias_gelu<unimo::BFloat16>(arguments, is_backward, stream);
#endif
    return unimo::kNoSuchFormat;
}

}  // namespace

// format: 0 fp16, 1 bf16 (not on sm_70). Returns 0, a cudaError_t, or a negative Status.
extern "C" int unimo_bias_gelu_forward(const unimo::BiasGeluArguments* arguments, int format, unimo::Stream stream) {
    return bias_gelu_of_format(*arguments, format, false, stream);
}
extern "C" int unimo_bias_gelu_backward(const unimo::BiasGeluArguments* arguments, int format, unimo::Stream stream) {
    return bias_gelu_of_format(*arguments, format, true, stream);
}
extern "C" int unimo_bias_gelu_argument_bytes() { return int(sizeof(unimo::BiasGeluArguments)); }

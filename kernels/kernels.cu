// All kernels in one library.
#include "attention/attention.cu"
#include "bias_gelu/bias_gelu.cu"
#include "contrastive/contrastive.cu"
#include "cross_entropy/cross_entropy.cu"
#include "dropout_norm/dropout_norm.cu"

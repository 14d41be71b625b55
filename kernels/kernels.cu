// All kernels in one library.
#include "attention/attention.cu"
#include "bias_gelu/bias_gelu.cu"
#include "contrastive/contrastive.cu"
#include "dropout_norm/dropout_norm.cu"

// All kernels in one library.
#include "attention/attention.cu"
#include "contrastive/contrastive.cu"

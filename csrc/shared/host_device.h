// Functions for any processor and for CUDA.
#pragma once

#if defined(__CUDACC__)
#define FASTSSL_SHARED __host__ __device__ inline
#else
#define FASTSSL_SHARED inline
#endif

/* The emulated GPU that a test of the CUDA backend runs on. */
#ifndef HR_TESTS_BACKEND_CUDA_GPU_H
#define HR_TESTS_BACKEND_CUDA_GPU_H

#include "backend/cuda/cuda_backend.h"
#include "runtime.h"

/* Which kernels the backend will choose. */
enum { GPU_PORTABLE, GPU_FUSED };

/* A fresh device that has them: an A100's capability, or an H100's. */
void gpu_be(int kind);
/* Fails the test when something was left behind on the device or was misused. */
void gpu_check_clean(void);

#endif

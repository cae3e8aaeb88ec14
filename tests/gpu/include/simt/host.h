// What host code of a program for a real GPU sees where kernels/common/cuda_compat.h asks for the emulation: CUDA's own
// headers make its keywords empty for a host compiler. Device functions that headers of kernels define are compiled but
// never called, so what they call needs only a name.
#pragma once

#include <cuda_runtime.h>

float __uint_as_float(unsigned bits);
float __fdividef(float a, float b);
float __expf(float x);

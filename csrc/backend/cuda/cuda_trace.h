/* Named ranges for profilers (NVTX): one a step, and one a stage where stages are launched one by one. Without a
 * profiler a range costs a few nanoseconds. */
#ifndef HR_BACKEND_CUDA_CUDA_TRACE_H
#define HR_BACKEND_CUDA_CUDA_TRACE_H

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wcast-qual"
#include <nvtx3/nvToolsExt.h>
#pragma GCC diagnostic pop

static inline void hr_cuda_range_push(const char *name)
{
    (void)nvtxRangePushA(name);
}
static inline void hr_cuda_range_pop(void)
{
    (void)nvtxRangePop();
}

#endif

/* The backends of a program: compiled without CUDA into the room's library, and with it for programs that are linked
 * with the kernels. Nothing else depends on how the build was configured. */
#include "backend/devices.h"

#ifdef HEADRACE_HAVE_CUDA
#include "backend/cuda/cuda_backend.h"
#endif

const hr_backend_ops *const hr_backends[] = {
#ifdef HEADRACE_HAVE_CUDA
    &hr_backend_cuda,
#endif
    &hr_backend_cpu,
    NULL,
};

/* Which table of kernels runs on this machine: the plain one, the only one so far. */
#include "backend/cpu/cpu_kernels.h"

const hr_cpu_kernels *hr_cpu_kernels_select(bool exact)
{
    (void)exact;
    return &hr_cpu_kernels_plain;
}

const hr_cpu_kernels *hr_cpu_kernels_at(uint32_t i, bool *is_usable)
{
    *is_usable = i == 0;
    return i == 0 ? &hr_cpu_kernels_plain : NULL;
}

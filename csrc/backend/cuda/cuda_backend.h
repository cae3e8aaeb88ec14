/* The CUDA backend (docs/design/cuda.md) behind the seam of backend.h: one instance is one device.
 *
 * Built with HEADRACE_CUDA, and for the tests against the emulation. Weights are copied to the device, keys and values
 * are bf16 (kv_dtype F32 is refused), `exact` chooses the reference's roundings of the rotation. Two steps may be in
 * flight. A device of compute capability 9.0 runs the tiled and fused kernels where the model's shapes allow, others
 * from 8.0 on the portable ones; HEADRACE_CUDA=portable in the environment chooses the portable ones everywhere, to
 * find a difference; HEADRACE_CUDA_QUANTISED=0 decodes quantised weights to bf16 as they are loaded, with the same
 * results; HEADRACE_CUDA_PROGRAMMATIC=0 lets each launch begin only when the one before it has ended.
 *
 * Taps: with options.tap, a step waits for the device after each stage and emits what the kernels in use left in
 * memory; what lies inside a fused kernel (conv_bx, k and v of the fused ones) stays silent, and the numbers are those
 * of a run without taps. HEADRACE_CUDA=portable shows all of them. A step with taps or with hr_output.logits waits for
 * the device in step_begin.
 *
 * A step uploads one block, 60 bytes a decode row and little else, through two pinned blocks. When a step brings more
 * changes than one block holds (some 32,000 new pages, or half a megabyte of penalty histories), step_begin waits for
 * them to be copied.
 */
#ifndef HR_BACKEND_CUDA_CUDA_BACKEND_H
#define HR_BACKEND_CUDA_CUDA_BACKEND_H

#include "backend/backend.h"

extern const hr_backend_ops hr_backend_cuda;

/* What a device is. */
typedef struct hr_cuda_device {
    uint32_t index, n_sms;
    int major, minor; /* compute capability */
    char name[64];    /* without the maker's name in front */
    uint64_t free_bytes, total_bytes;
} hr_cuda_device;

/* Looks at device `index`. E_UNSUPPORTED, saying which: no driver, a driver too old, no such device, an architecture
 * before 8.0 or one that the program has no kernels for. The device is this thread's after it. */
headrace_status hr_cuda_probe(uint32_t index, hr_cuda_device *out, headrace_error *err);

#endif

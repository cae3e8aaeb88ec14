/* The weights as the CPU backend multiplies them: a layer table of its own, in which quantised matrices are packed
 * (cpu_pack.h) and all others lie where the file is mapped.
 */
#ifndef HR_BACKEND_CPU_CPU_WEIGHTS_H
#define HR_BACKEND_CPU_CPU_WEIGHTS_H

#include "backend/backend.h"
#include "backend/cpu/cpu_pool.h"

typedef struct hr_cpu_weights {
    const hr_layer *layers; /* [n_layers] */
    hr_matrix head;         /* rows of a tied embedding are read from here too if it is packed, else from the file */
    hr_layer *own_layers;   /* the rest is for close; NULL where nothing is packed */
    hr_ffn_weights *own_experts;
    void *memory;
    size_t memory_bytes;
} hr_cpu_weights;

/* Bytes that packed matrices will take; 0 with options->exact, which multiplies dequantised fp32. */
size_t hr_cpu_weights_bytes(const hr_model *model, const hr_backend_options *options);
/* Checks the scales of all quantised matrices and packs, with all threads of the pool, and gives the mapped pages of
 * what was packed back to the system: they come again if somebody reads them. The model must outlive it. E_MODEL: a
 * scale is not finite (names file, tensor, row, block); E_MEMORY. On failure *out may be closed. */
headrace_status hr_cpu_weights_open(const hr_model *model, const hr_backend_options *options, hr_cpu_pool *pool,
                                    hr_cpu_weights *out, headrace_error *err);
void hr_cpu_weights_close(hr_cpu_weights *weights); /* accepts a zeroed one */

#endif

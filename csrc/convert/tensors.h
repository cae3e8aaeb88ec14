/* The work of a conversion: every row of every tensor read, rounded to its type and written to its place.
 *
 * Threads take blocks of rows in the file's order; each has room for one block (HR_CONVERT_BLOCK_VALUES values, or one
 * row if that is longer) as it was, for one as it will be, and for a row in between as fp32. So memory is bounded by
 * the threads (2 MiB each), not by the model. A row's bytes depend on the row alone: the file is the same for any
 * number of threads.
 */
#ifndef HR_CONVERT_TENSORS_H
#define HR_CONVERT_TENSORS_H

#include "convert/imatrix.h"
#include "convert/output.h"
#include "convert/plan.h"

enum { HR_CONVERT_BLOCK_VALUES = 1 << 18 }; /* 1 MiB of fp32 */

typedef struct hr_convert_work {
    const hr_model *model;
    const hr_plan *plan;
    const float *const *importance; /* [n_tensors]: [n_slabs][cols], or NULL */
    const hr_output *output;
    uint64_t data_at; /* where the data begins in the file */
    uint32_t n_threads;
    /* Called from the calling thread, some times a second, with bytes of the file written and in all; false ends the
     * work with E_CANCELLED. NULL for none. */
    bool (*progress)(uint64_t done, uint64_t total, void *user);
    void *progress_user;
} hr_convert_work;

/* Errors: E_MODEL (tensor, row, column of a value that is not finite or does not fit the type), E_IO, E_MEMORY,
 * E_CANCELLED. Of several bad values the first in the file's order is named. */
headrace_status hr_convert_tensors(const hr_convert_work *work, headrace_error *err);

#endif

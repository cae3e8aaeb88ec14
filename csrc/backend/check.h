/* Whether a batch is one that an instance can run.
 *
 * The engine builds batches from its own books, so a refusal means a mistake of ours; it costs a few comparisons a span
 * and turns a wild write, on the host or on a GPU, into a message. Shared by the backends, so that they refuse the
 * same.
 */
#ifndef HR_BACKEND_CHECK_H
#define HR_BACKEND_CHECK_H

#include "backend/backend.h"

/* What an instance was opened for. */
typedef struct hr_batch_limits {
    const hr_backend_options *options;
    uint32_t n_pages, n_slots, max_context, vocab_size;
    const int32_t
        *slot_token; /* [n_slots]: the id last sampled for a slot, or -1; any id where only the device knows */
} hr_batch_limits;

/* E_ENGINE, naming what is wrong, when the batch is outside the limits; fills row_span [n_rows] with each row's span.
 */
headrace_status hr_batch_check(const hr_batch_limits *limits, const hr_batch *batch, uint32_t *row_span,
                               headrace_error *err);

#endif

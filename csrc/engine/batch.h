/* A plan as the flat arrays that a backend reads. */
#ifndef HR_ENGINE_BATCH_H
#define HR_ENGINE_BATCH_H

#include "backend/backend.h"
#include "engine/scheduler.h"

/* Fills a block lent by the backend, right after the plan was made. The block must have the capacities of the
 * scheduler's limits. */
void hr_batch_fill(hr_batch *batch, const hr_plan *plan);

#endif

/* The CPU backend with two steps in flight, as a device would have them: for tests of the engine that runs ahead.
 *
 * A step is computed when it is begun or when it is waited for, in turn. Ids that the engine did not know when it began
 * the step (HR_TOKEN_FROM_SLOT, hr_history.n_pending) come from what was sampled for the slot, as on a device.
 */
#ifndef TESTS_CSRC_ENGINE_AHEAD_BACKEND_H
#define TESTS_CSRC_ENGINE_AHEAD_BACKEND_H

#include "backend/backend.h"

extern const hr_backend_ops hr_backend_ahead;

#endif

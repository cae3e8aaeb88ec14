/* Which backend computes: from the name that a user gives to the operations that do it. */
#ifndef HR_BACKEND_DEVICES_H
#define HR_BACKEND_DEVICES_H

#include "backend/backend.h"

typedef struct hr_device_choice {
    const hr_backend_ops *ops;
    uint32_t index; /* for hr_backend_options.device_index */
} hr_device_choice;

/* The backends of this build, NULL-terminated, the one that "auto" tries first in front; the last needs no device. A
 * file of its own (backends.c), because a program may be linked with another list. */
extern const hr_backend_ops *const hr_backends[];

/* name: NULL or "auto" (the first backend whose device 0 can be used), "cpu", "cuda", or "cuda:N". Errors:
 * E_UNSUPPORTED with param "device": no such name, not in this build, or no such device and why. */
headrace_status hr_device_choose(const char *name, hr_device_choice *out, headrace_error *err);

#endif

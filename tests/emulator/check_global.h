// Checked mode, device memory: bounds, and the rules of programmatic launches.
#pragma once

#include "check.h"

namespace simt
{

struct GlobalFault {
    const char *what; // null: fine
};
// has_waited: the running thread knows of a griddep_wait() of its block.
GlobalFault global_access(const void *p, size_t n, Access access, bool has_waited);
// What the block wrote joins what its grid wrote.
void global_block_end();

} // namespace simt

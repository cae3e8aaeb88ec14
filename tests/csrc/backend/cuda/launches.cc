// See launches.h. In C++ because the emulation's interface is.
#include "csrc/backend/cuda/launches.h"

#include "simt.h"

#include <stdlib.h>
#include <string.h>

static counted_launch summary(const simt::LaunchRecord &r)
{
    const std::string head = r.kernel.substr(0, r.kernel.find('<'));
    const size_t colon = head.rfind(':'), shape = r.kernel.find("::Shape<");
    const std::string name = colon == std::string::npos ? head : head.substr(colon + 1);
    counted_launch out = {};

    strncpy(out.kernel, name.c_str(), sizeof out.kernel - 1);
    if (shape != std::string::npos)
        out.tile = (uint32_t)strtoul(r.kernel.c_str() + r.kernel.find('<', shape) + 1, nullptr, 10);
    out.is_programmatic = r.programmatic;
    out.bulk_bytes = r.counters.bulk_load_bytes;
    out.async_bytes = r.counters.cp_async_bytes;
    out.written_bytes = r.counters.global_write_bytes;
    return out;
}

void launches_clear(void)
{
    simt::take_launches();
}

uint32_t launches_take(counted_launch *to, uint32_t room)
{
    const std::vector<simt::LaunchRecord> all = simt::take_launches();

    for (size_t i = 0; i < all.size() && i < room; i++)
        to[i] = summary(all[i]);
    return (uint32_t)all.size();
}

bool launches_count_writes(void)
{
    return simt::config.check && simt::is_checked_build();
}

/* "auto" takes a device if there is one that works and says nothing if there is none: the CPU is a full answer. Who
 * asks for a device by name gets that one or the reason why not, never another in its place.
 */
#include "backend/devices.h"

#include "base/log.h"

#include <string.h>

static const hr_backend_ops *find_backend(const char *name, size_t len)
{
    for (size_t i = 0; hr_backends[i]; i++)
        if (strlen(hr_backends[i]->name) == len && memcmp(hr_backends[i]->name, name, len) == 0)
            return hr_backends[i];
    return NULL;
}

static headrace_status probe(const hr_backend_ops *ops, uint32_t index, headrace_error *err)
{
    hr_device_memory memory;

    return ops->device_memory ? ops->device_memory(index, &memory, err) : HEADRACE_OK;
}

static headrace_status choose_first(hr_device_choice *out)
{
    size_t i = 0;

    for (; hr_backends[i + 1]; i++) {
        headrace_error err = {0};

        if (probe(hr_backends[i], 0, &err) == HEADRACE_OK)
            break;
        hr_log(HEADRACE_LOG_INFO, "device: not %s: %.800s", hr_backends[i]->name, err.message);
    }
    *out = (hr_device_choice){.ops = hr_backends[i]};
    return HEADRACE_OK;
}

static headrace_status fail_name(const char *name, headrace_error *err)
{
    return hr_fail_param(err, HEADRACE_E_UNSUPPORTED, "device", "device: '%.40s' is none of: auto, cpu, cuda, cuda:N",
                         name);
}

/* "" or ":N". */
static bool read_index(const char *text, uint32_t *out)
{
    uint32_t index = 0;

    *out = 0;
    if (*text == '\0')
        return true;
    if (*text++ != ':' || *text == '\0' || strlen(text) > 3)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        index = index * 10 + (uint32_t)(*text - '0');
    }
    *out = index;
    return true;
}

headrace_status hr_device_choose(const char *name, hr_device_choice *out, headrace_error *err)
{
    size_t len = name ? strcspn(name, ":") : 0;
    headrace_error cause = {0};

    *out = (hr_device_choice){0};
    if (!name || strcmp(name, "auto") == 0)
        return choose_first(out);
    out->ops = find_backend(name, len);
    if (!read_index(name + len, &out->index))
        return fail_name(name, err);
    if (!out->ops && len == 4 && memcmp(name, "cuda", len) == 0)
        return hr_fail_param(err, HEADRACE_E_UNSUPPORTED, "device",
                             "device: this build has no CUDA, so that '%.40s' is not in it; ./dev build --cuda makes "
                             "one that has, and cpu or auto work here",
                             name);
    if (!out->ops || (!out->ops->device_memory && name[len] != '\0'))
        return fail_name(name, err);
    if (probe(out->ops, out->index, &cause) != HEADRACE_OK)
        return hr_fail_param(err, HEADRACE_E_UNSUPPORTED, "device", "device: '%.40s' cannot be used: %.800s", name,
                             cause.message);
    return HEADRACE_OK;
}

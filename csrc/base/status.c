/* See status.h. The message buffer is fixed: an error path must not itself need memory. */
#include "base/status.h"

#include <stdarg.h>
#include <string.h>

/* What the static analyzer is told of them is for their callers. */
#undef hr_fail
#undef hr_fail_param
#undef hr_prefix

const char *headrace_status_text(headrace_status status)
{
    switch (status) {
#define HEADRACE_X(name, value, text) \
    case HEADRACE_##name:             \
        return text;
        HEADRACE_STATUS_LIST(HEADRACE_X)
#undef HEADRACE_X
    }
    return "unknown status";
}

static void set_message(headrace_error *err, headrace_status status, const char *param, const char *format,
                        va_list args)
{
    if (!err)
        return;
    err->status = status;
    (void)snprintf(err->param, sizeof err->param, "%s", param);
    (void)vsnprintf(err->message, sizeof err->message, format, args);
}

headrace_status hr_fail(headrace_error *err, headrace_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    set_message(err, status, "", format, args);
    va_end(args);
    return status;
}

headrace_status hr_fail_param(headrace_error *err, headrace_status status, const char *param, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    set_message(err, status, param, format, args);
    va_end(args);
    return status;
}

headrace_status hr_prefix(headrace_error *err, headrace_status status, const char *format, ...)
{
    char joined[sizeof err->message];
    va_list args;
    int n;

    if (!err)
        return status;
    va_start(args, format);
    n = vsnprintf(joined, sizeof joined, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof joined)
        return status;
    (void)snprintf(joined + n, sizeof joined - (size_t)n, ": %s", err->message);
    memcpy(err->message, joined, sizeof joined);
    return status;
}

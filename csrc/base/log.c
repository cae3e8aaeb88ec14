/* See log.h. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

static void (*sink)(headrace_log_level level, const char *line, void *user);
static void *sink_user;

void headrace_set_log(void (*fn)(headrace_log_level level, const char *line, void *user), void *user)
{
    sink = fn;
    sink_user = user;
}

void hr_log(headrace_log_level level, const char *format, ...)
{
    char line[1024];
    va_list args;

    if (!sink)
        return;
    va_start(args, format);
    (void)vsnprintf(line, sizeof line, format, args);
    va_end(args);
    sink(level, line, sink_user);
}

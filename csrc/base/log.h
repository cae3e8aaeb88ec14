/* The library's one log sink (a process-wide exception to "no globals", set once by headrace_set_log). */
#ifndef HR_BASE_LOG_H
#define HR_BASE_LOG_H

#include "headrace.h"

void hr_log(headrace_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif

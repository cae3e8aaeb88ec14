/* Errors: one status code, one message that grows outwards.
 *
 * The innermost function states the fact (expected and found) with hr_fail; each outer one may put where it was in
 * front with HR_TRY. A user then reads "opening models/8b: layer 7: conv.in_proj.weight: expected 2 dimensions [out,
 * in], file has 3". A status is returned, never thrown; the message lives in the caller's headrace_error, which may be
 * NULL.
 */
#ifndef HR_BASE_STATUS_H
#define HR_BASE_STATUS_H

#include "headrace.h"

#include <stdio.h>
#include <stdlib.h>

/* Writes status and message into err (if any) and returns status. */
headrace_status hr_fail(headrace_error *err, headrace_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same, and names the request field at fault. */
headrace_status hr_fail_param(headrace_error *err, headrace_status status, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Puts "FORMAT: " in front of the message already in err and returns status. */
headrace_status hr_prefix(headrace_error *err, headrace_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The static analyzer sees one file at a time and would follow the path where these return HEADRACE_OK. */
#ifdef __clang_analyzer__
#define hr_fail(err, status, ...) ((void)hr_fail(err, status, __VA_ARGS__), status)
#define hr_fail_param(err, status, ...) ((void)hr_fail_param(err, status, __VA_ARGS__), status)
#define hr_prefix(err, status, ...) ((void)hr_prefix(err, status, __VA_ARGS__), status)
#endif

/* Returns the failure of expr as it is. err is not touched. */
#define HR_PASS(expr)                     \
    do {                                  \
        headrace_status hr_try_ = (expr); \
        if (hr_try_ != HEADRACE_OK)       \
            return hr_try_;               \
    } while (0)

/* Returns the failure of expr with a prefix; needs a variable named err in scope. */
#define HR_TRY(expr, ...)                                \
    do {                                                 \
        headrace_status hr_try_ = (expr);                \
        if (hr_try_ != HEADRACE_OK)                      \
            return hr_prefix(err, hr_try_, __VA_ARGS__); \
    } while (0)

/* Sets the local `status` and jumps to label on failure; the one exit of functions that hold something. */
#define HR_TRY_GOTO(label, expr)   \
    do {                           \
        status = (expr);           \
        if (status != HEADRACE_OK) \
            goto label;            \
    } while (0)

/* Our own mistakes. Stays on in release builds. */
#define HR_ASSERT(cond)                                                                                \
    do {                                                                                               \
        if (!(cond)) {                                                                                 \
            (void)fprintf(stderr, "headrace: %s:%d: internal error: %s\n", __FILE__, __LINE__, #cond); \
            abort();                                                                                   \
        }                                                                                              \
    } while (0)

#endif

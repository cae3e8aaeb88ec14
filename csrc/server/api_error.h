/* What can go wrong with a request, as the client sees it: one table of codes, so that code, HTTP status, type and
 * metric label cannot drift apart. Messages name the field, what came and what is allowed; never a path, an address or
 * prompt text.
 */
#ifndef HR_SERVER_API_ERROR_H
#define HR_SERVER_API_ERROR_H

#include "base/buffer.h"
#include "headrace.h"

#define HR_API_CODES(X)                                                                   \
    X(INVALID_JSON, 400, "invalid_request_error", "invalid_json")                         \
    X(INVALID_UTF8, 400, "invalid_request_error", "invalid_utf8")                         \
    X(MISSING_FIELD, 400, "invalid_request_error", "missing_field")                       \
    X(INVALID_VALUE, 400, "invalid_request_error", "invalid_value")                       \
    X(UNKNOWN_PARAMETER, 400, "invalid_request_error", "unknown_parameter")               \
    X(UNSUPPORTED_PARAMETER, 400, "invalid_request_error", "unsupported_parameter")       \
    X(CONTEXT_LENGTH, 400, "invalid_request_error", "context_length_exceeded")            \
    X(CHAT_TEMPLATE, 400, "invalid_request_error", "unsupported_chat_template")           \
    X(STRUCTURED_OUTPUTS, 400, "invalid_request_error", "structured_outputs_unavailable") \
    X(REMOTE_MEDIA, 400, "invalid_request_error", "remote_media_disabled")                \
    X(BAD_HTTP, 400, "invalid_request_error", "invalid_http")                             \
    X(INVALID_KEY, 401, "authentication_error", "invalid_api_key")                        \
    X(MODEL_NOT_FOUND, 404, "invalid_request_error", "model_not_found")                   \
    X(NOT_FOUND, 404, "invalid_request_error", "not_found")                               \
    X(METHOD_NOT_ALLOWED, 405, "invalid_request_error", "method_not_allowed")             \
    X(REQUEST_TIMEOUT, 408, "invalid_request_error", "request_timeout")                   \
    X(BODY_TOO_LARGE, 413, "invalid_request_error", "body_too_large")                     \
    X(MEDIA_TYPE, 415, "invalid_request_error", "unsupported_media_type")                 \
    X(HEADERS_TOO_LARGE, 431, "invalid_request_error", "headers_too_large")               \
    X(ENGINE_ERROR, 500, "server_error", "engine_error")                                  \
    X(QUEUE_FULL, 503, "server_error", "queue_full")                                      \
    X(QUEUE_TIMEOUT, 503, "server_error", "queue_timeout")                                \
    X(DRAINING, 503, "server_error", "draining")                                          \
    X(ENGINE_DEAD, 503, "server_error", "engine_dead")                                    \
    X(TOO_MANY_CONNECTIONS, 503, "server_error", "too_many_connections")

typedef enum hr_api_code {
#define HR_X(name, status, type, code) HR_API_##name,
    HR_API_CODES(HR_X)
#undef HR_X
        HR_API_N_CODES
} hr_api_code;

typedef struct hr_api_error {
    hr_api_code code;
    char param[80]; /* "" is written as null */
    char message[640];
} hr_api_error;

int hr_api_http_status(hr_api_code code);
const char *hr_api_code_text(hr_api_code code);

/* Fills *error and returns false, so that a check reads `return hr_api_fail(...)`. param may be NULL. */
bool hr_api_fail(hr_api_error *error, hr_api_code code, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* The same from a failure of the library. */
bool hr_api_fail_library(hr_api_error *error, const headrace_error *failure);
/* {"error": {...}}, without a newline. */
void hr_api_error_json(hr_buffer *out, const hr_api_error *error);

#endif

/* See api_error.h. */
#include "server/api_error.h"

#include "base/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct code_row {
    int status;
    const char *type, *code;
} code_row;

static const code_row code_rows[HR_API_N_CODES] = {
#define HR_X(name, status, type, code) {status, type, code},
    HR_API_CODES(HR_X)
#undef HR_X
};

int hr_api_http_status(hr_api_code code)
{
    return code_rows[code].status;
}

const char *hr_api_code_text(hr_api_code code)
{
    return code_rows[code].code;
}

/* A precision in a format may cut a character in two; what is sent must stay valid, so such halves are dropped. */
static void drop_broken_characters(char *text)
{
    size_t len = strlen(text), n = 0, i = 0;

    while (i < len) {
        bool is_valid;
        size_t step = hr_utf8_step(text + i, len - i, &is_valid);

        if (is_valid) {
            memmove(text + n, text + i, step);
            n += step;
        }
        i += step;
    }
    text[n] = '\0';
}

bool hr_api_fail(hr_api_error *error, hr_api_code code, const char *param, const char *format, ...)
{
    va_list args;

    error->code = code;
    (void)snprintf(error->param, sizeof error->param, "%s", param ? param : "");
    drop_broken_characters(error->param);
    va_start(args, format);
    (void)vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
    drop_broken_characters(error->message);
    return false;
}

bool hr_api_fail_library(hr_api_error *error, const headrace_error *failure)
{
    const char *param = failure->param[0] ? failure->param : NULL;

    switch (failure->status) {
    case HEADRACE_E_ARGUMENT:
        return hr_api_fail(error, HR_API_INVALID_VALUE, param, "%s", failure->message);
    case HEADRACE_E_UNSUPPORTED:
        return hr_api_fail(error, HR_API_UNSUPPORTED_PARAMETER, param, "%s", failure->message);
    case HEADRACE_E_CONTEXT:
        return hr_api_fail(error, HR_API_CONTEXT_LENGTH, param, "%s", failure->message);
    case HEADRACE_E_TEMPLATE:
        return hr_api_fail(error, HR_API_CHAT_TEMPLATE, param ? param : "messages", "%s", failure->message);
    case HEADRACE_E_QUEUE_FULL:
        return hr_api_fail(error, HR_API_QUEUE_FULL, NULL,
                           "The server is busy and its queue is full; try again later.");
    case HEADRACE_E_CLOSED:
        return hr_api_fail(error, HR_API_DRAINING, NULL, "The server is shutting down and takes no new requests.");
    case HEADRACE_E_TIMEOUT:
        return hr_api_fail(error, HR_API_QUEUE_TIMEOUT, NULL,
                           "The request waited too long in the queue; try again later.");
    case HEADRACE_E_MEMORY:
        return hr_api_fail(error, HR_API_ENGINE_ERROR, NULL, "The server has no memory for this request.");
    default: /* files, models and our own mistakes: the details are for the log, not for strangers */
        return hr_api_fail(error, HR_API_ENGINE_ERROR, NULL, "The request failed inside the engine (%s).",
                           headrace_status_text(failure->status));
    }
}

void hr_api_error_json(hr_buffer *out, const hr_api_error *error)
{
    const code_row *row = &code_rows[error->code];

    hr_buffer_add_text(out, "{\"error\":{\"message\":");
    hr_json_string(out, error->message, strlen(error->message));
    hr_buffer_printf(out, ",\"type\":\"%s\",\"param\":", row->type);
    if (error->param[0])
        hr_json_string(out, error->param, strlen(error->param));
    else
        hr_buffer_add_text(out, "null");
    hr_buffer_printf(out, ",\"code\":\"%s\"}}", row->code);
}

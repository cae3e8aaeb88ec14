/* Any bytes as a model's answer: the parts are the same whole and byte by byte, and arguments are JSON objects. */
#include "base/status.h"
#include "text/chat_output.h"

#include <jansson.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void feed(hr_chat_output *output, const char *text, size_t size, size_t piece)
{
    hr_chat_output_init(output, true, true, false, 1);
    for (size_t at = 0; at < size; at += piece)
        hr_chat_output_add(output, text + at, size - at < piece ? size - at : piece);
    hr_chat_output_finish(output);
}

static bool same(const hr_buffer *a, const hr_buffer *b)
{
    return a->len == b->len && (a->len == 0 || memcmp(a->at, b->at, a->len) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    hr_chat_output whole, bytes;

    if (size == 0 || size > 4096)
        return 0;
    feed(&whole, (const char *)data, size, size);
    feed(&bytes, (const char *)data, size, 1);
    HR_ASSERT(same(&whole.content, &bytes.content) && same(&whole.reasoning, &bytes.reasoning));
    HR_ASSERT(whole.n_calls == bytes.n_calls);
    for (size_t i = 0; i < whole.n_calls; i++) {
        json_error_t err;
        json_t *arguments = json_loads(whole.calls[i].arguments, JSON_ALLOW_NUL, &err);

        HR_ASSERT(strcmp(whole.calls[i].name, bytes.calls[i].name) == 0);
        HR_ASSERT(strcmp(whole.calls[i].arguments, bytes.calls[i].arguments) == 0);
        HR_ASSERT(json_is_object(arguments) || strstr(err.text, "too big") || strstr(err.text, "overflow") ||
                  strstr(err.text, "NUL byte"));
        json_decref(arguments);
    }
    hr_chat_output_deinit(&whole);
    hr_chat_output_deinit(&bytes);
    return 0;
}

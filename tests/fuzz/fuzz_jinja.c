/* Any bytes as a chat template, run over a fixed conversation: it renders or says why not, within the limits. */
#include "text/chat_template.h"

#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static json_t *conversation(void)
{
    return json_pack(
        "{s:[{s:s, s:s}, {s:s, s:s, s:[{s:{s:s, s:{s:s, s:[i, n, f]}}}]}, {s:s, s:[{s:s, s:s}]}], s:[{s:s}], s:b, s:s}",
        "messages", "role", "user", "content", "h\xC3\xA9llo <|im_end|>", "role", "assistant", "content",
        "<think>a</think>b", "tool_calls", "function", "name", "f", "arguments", "s", "x", "l", 1, 2.5, "role", "user",
        "content", "type", "text", "text", "part", "tools", "name", "f", "add_generation_prompt", 1, "bos_token",
        "<s>");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static json_t *context;
    hr_chat_template *parsed;
    hr_chat_rendering rendering;
    headrace_error err;

    if (!context)
        context = conversation();
    if (!context || size > 4096)
        return 0;
    if (hr_chat_template_parse("fuzz", (const char *)data, size, &parsed, &err) != HEADRACE_OK)
        return 0;
    if (hr_chat_template_render(parsed, context, 0, &rendering, &err) == HEADRACE_OK) {
        size_t sum = 0;

        for (size_t i = 0; i < rendering.n_ranges; i++)
            sum += rendering.ranges[i].len;
        HR_ASSERT(sum == rendering.text.len);
        hr_chat_rendering_deinit(&rendering);
    }
    hr_chat_template_close(parsed);
    return 0;
}

/* What a chat model says, parted: the public face of text/chat_output.h. The strings of a delta are the parser's own;
 * they stay until the next call, which is when the room's "taken" marks are set. */
#include "api/api.h"

#include "base/status.h"
#include "text/chat_output.h"

#include <stdlib.h>

struct headrace_chat_parser {
    hr_chat_output output;
    headrace_tool_call *calls; /* views of output.calls, as the last take gave them */
    size_t n_calls_capacity;
    bool was_taken;
};

headrace_status headrace_chat_parser_create(uint32_t flags, uint64_t id_seed, headrace_chat_parser **out,
                                            headrace_error *err)
{
    headrace_chat_parser *parser = calloc(1, sizeof *parser);

    *out = NULL;
    if (!parser)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a chat parser");
    hr_chat_output_init(&parser->output, flags & HEADRACE_OUTPUT_REASONING, flags & HEADRACE_OUTPUT_TOOLS,
                        flags & HEADRACE_OUTPUT_IN_REASONING, id_seed);
    *out = parser;
    return HEADRACE_OK;
}

static void forget_taken(headrace_chat_parser *parser)
{
    if (parser->was_taken)
        hr_chat_output_taken(&parser->output);
    parser->was_taken = false;
}

void headrace_chat_parser_add(headrace_chat_parser *parser, const char *text, size_t len)
{
    forget_taken(parser);
    hr_chat_output_add(&parser->output, text, len);
}

void headrace_chat_parser_finish(headrace_chat_parser *parser)
{
    forget_taken(parser);
    hr_chat_output_finish(&parser->output);
}

headrace_status headrace_chat_parser_take(headrace_chat_parser *parser, headrace_chat_delta *out, headrace_error *err)
{
    const hr_chat_output *output = &parser->output;
    size_t n, first;

    forget_taken(parser);
    first = output->n_calls_taken;
    n = output->n_calls - first;
    if (output->content.failed || output->reasoning.failed || output->pending.failed || output->failed)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the text of an answer");
    if (n > parser->n_calls_capacity) {
        headrace_tool_call *calls = realloc(parser->calls, n * sizeof *calls);

        if (!calls)
            return hr_fail(err, HEADRACE_E_MEMORY, "no memory for tool calls");
        parser->calls = calls;
        parser->n_calls_capacity = n;
    }
    for (size_t i = 0; i < n; i++) {
        const hr_tool_call *call = &output->calls[first + i];

        parser->calls[i] = (headrace_tool_call){.id = call->id, .name = call->name, .arguments = call->arguments};
    }
    *out = (headrace_chat_delta){.content = output->content.at ? output->content.at : "",
                                 .reasoning = output->reasoning.at ? output->reasoning.at : "",
                                 .content_len = output->content.len,
                                 .reasoning_len = output->reasoning.len,
                                 .calls = n ? parser->calls : NULL,
                                 .n_calls = (uint32_t)n,
                                 .first_call = (uint32_t)first};
    parser->was_taken = true;
    return HEADRACE_OK;
}

void headrace_chat_parser_destroy(headrace_chat_parser *parser)
{
    if (!parser)
        return;
    hr_chat_output_deinit(&parser->output);
    free(parser->calls);
    free(parser);
}

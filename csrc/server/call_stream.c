/* Chunks of a streamed answer. See call.h.
 *
 * The cost of a token is here: everything that is the same in every chunk is written once (chunk_head), and an event
 * becomes a few appends to one buffer that goes out in one send.
 */
#include "server/call.h"

#include <string.h>

void hr_stream_head(hr_call *call)
{
    hr_buffer *head = &call->chunk_head;

    hr_buffer_add_text(head, "data: {\"id\":");
    hr_json_string(head, call->id, strlen(call->id));
    hr_buffer_printf(head, ",\"object\":\"%s\",\"created\":%lld,\"model\":",
                     call->is_chat ? "chat.completion.chunk" : "text_completion", (long long)call->created_s);
    hr_json_string(head, call->model_name, strlen(call->model_name));
    hr_buffer_printf(head, ",\"system_fingerprint\":\"%s\",\"choices\":[", call->server->fingerprint);
}

static void begin_chunk(const hr_call *call, const hr_choice *choice, hr_buffer *out)
{
    hr_buffer_add(out, call->chunk_head.at, call->chunk_head.len);
    hr_buffer_add(out, "{\"index\":", 9);
    if (choice->index < 10)
        hr_buffer_add_char(out, (char)('0' + choice->index));
    else
        hr_json_uint(out, choice->index);
}

static void end_chunk(const hr_call *call, hr_buffer *out)
{
    hr_usage usage;

    hr_buffer_add(out, "]", 1);
    if (call->request.include_usage && call->request.continuous_usage) {
        usage = hr_call_usage(call);
        hr_buffer_add_text(out, ",\"usage\":");
        hr_usage_write(out, &usage);
    } else if (call->request.include_usage) {
        hr_buffer_add_text(out, ",\"usage\":null");
    }
    hr_buffer_add(out, "}\n\n", 3);
}

/* What tokens bring beside text: logprobs and ids, in the first chunk of an event. */
static void write_extras(const hr_call *call, hr_choice *choice, hr_buffer *out)
{
    hr_buffer_add_text(out, ",\"logprobs\":");
    hr_logprobs_write(out, &choice->logprobs);
    hr_logprobs_clear(&choice->logprobs);
    if (call->request.return_token_ids && choice->ids.len) {
        hr_buffer_add_text(out, ",\"token_ids\":[");
        hr_buffer_add(out, choice->ids.at, choice->ids.len);
        hr_buffer_add_char(out, ']');
        hr_buffer_clear(&choice->ids);
    }
}

static void write_prompt_ids(const hr_call *call, const hr_call_stream *stream, hr_buffer *out)
{
    const hr_prompt *prompt = &call->prompts.at[stream->prompt_idx];

    hr_buffer_add_text(out, ",\"prompt_token_ids\":");
    hr_ids_write(out, prompt->ids, prompt->n_ids);
}

/* ---------------------------------------------------------------- chat */

static void chat_role(const hr_call *call, const hr_call_stream *stream, const hr_choice *choice, hr_buffer *out)
{
    begin_chunk(call, choice, out);
    hr_buffer_add_text(out,
                       ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null");
    if (call->request.return_token_ids)
        write_prompt_ids(call, stream, out);
    hr_buffer_add_char(out, '}');
    end_chunk(call, out);
}

static void chat_text(const hr_call *call, hr_choice *choice, const char *name, const char *text, size_t len,
                      hr_buffer *out)
{
    begin_chunk(call, choice, out);
    hr_buffer_add_text(out, ",\"delta\":{\"");
    hr_buffer_add_text(out, name);
    hr_buffer_add_text(out, "\":");
    hr_json_string(out, text, len);
    hr_buffer_add_char(out, '}');
    write_extras(call, choice, out);
    hr_buffer_add_text(out, ",\"finish_reason\":null}");
    end_chunk(call, out);
}

static void chat_calls(const hr_call *call, hr_choice *choice, const hr_delta *delta, hr_buffer *out)
{
    begin_chunk(call, choice, out);
    hr_buffer_add_text(out, ",\"delta\":{\"tool_calls\":[");
    for (uint32_t i = 0; i < delta->n_calls; i++) {
        hr_buffer_printf(out, "%s{\"index\":%u,", i ? "," : "", delta->first_call + i);
        hr_answer_write_tool_call(out, &delta->calls[i]);
        hr_buffer_add_char(out, '}');
    }
    hr_buffer_add_text(out, "]}");
    write_extras(call, choice, out);
    hr_buffer_add_text(out, ",\"finish_reason\":null}");
    end_chunk(call, out);
}

static void chat_end(const hr_call *call, hr_choice *choice, hr_buffer *out)
{
    begin_chunk(call, choice, out);
    hr_buffer_add_text(out, ",\"delta\":{}");
    write_extras(call, choice, out);
    hr_buffer_printf(out, ",\"finish_reason\":\"%s\",\"stop_reason\":", hr_finish_reason(call, choice));
    hr_stop_reason_write(call, choice, out);
    hr_buffer_add_char(out, '}');
    end_chunk(call, out);
}

static void chat_event(const hr_call *call, const hr_call_stream *stream, hr_choice *choice, const hr_delta *delta,
                       hr_buffer *out)
{
    if (!choice->has_begun)
        chat_role(call, stream, choice, out);
    if (delta->reasoning_len)
        chat_text(call, choice, "reasoning_content", delta->reasoning, delta->reasoning_len, out);
    if (delta->text_len)
        chat_text(call, choice, "content", delta->text, delta->text_len, out);
    if (delta->n_calls)
        chat_calls(call, choice, delta, out);
    if (choice->finish != HEADRACE_FINISH_NONE)
        chat_end(call, choice, out);
    else if (choice->logprobs.n || choice->ids.len) /* tokens whose text is held back */
        chat_text(call, choice, "content", "", 0, out);
}

/* ---------------------------------------------------------------- completions */

static void completion_event(const hr_call *call, const hr_call_stream *stream, hr_choice *choice,
                             const hr_delta *delta, hr_buffer *out)
{
    const char *reason = hr_finish_reason(call, choice);

    if (!reason && delta->text_len == 0 && !choice->logprobs.n && !choice->ids.len && !choice->text.len)
        return;
    begin_chunk(call, choice, out);
    hr_buffer_add_text(out, ",\"text\":");
    if (choice->text.len) { /* the echo goes out with the first tokens */
        hr_buffer_add(&choice->text, delta->text, delta->text_len);
        hr_json_string(out, choice->text.at, choice->text.len);
        hr_buffer_clear(&choice->text);
    } else {
        hr_json_string(out, delta->text, delta->text_len);
    }
    write_extras(call, choice, out);
    if (call->request.return_token_ids && !choice->has_begun)
        write_prompt_ids(call, stream, out);
    if (reason) {
        hr_buffer_printf(out, ",\"finish_reason\":\"%s\",\"stop_reason\":", reason);
        hr_stop_reason_write(call, choice, out);
        hr_buffer_add_char(out, '}');
    } else {
        hr_buffer_add_text(out, ",\"finish_reason\":null}");
    }
    end_chunk(call, out);
}

void hr_stream_event(hr_call *call, hr_call_stream *stream, hr_choice *choice, const hr_delta *delta, hr_buffer *out)
{
    if (call->is_chat)
        chat_event(call, stream, choice, delta, out);
    else
        completion_event(call, stream, choice, delta, out);
}

void hr_stream_tail(hr_call *call, hr_buffer *out)
{
    if (call->request.include_usage) {
        hr_usage usage = hr_call_usage(call);

        hr_buffer_add(out, call->chunk_head.at, call->chunk_head.len);
        hr_buffer_add_text(out, "],\"usage\":");
        hr_usage_write(out, &usage);
        if (call->server->options.request_metrics) {
            hr_buffer_add_text(out, ",\"metrics\":");
            hr_metrics_write(call, out);
        }
        hr_buffer_add_text(out, "}\n\n");
    }
    hr_buffer_add_text(out, "data: [DONE]\n\n");
}

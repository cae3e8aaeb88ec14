/* Whole answers, and the pieces that chunks share with them. See call.h. */
#include "server/call.h"

#include <stdlib.h>
#include <string.h>

const char *hr_finish_reason(const hr_call *call, const hr_choice *choice)
{
    (void)call;
    switch (choice->finish) {
    case HEADRACE_FINISH_STOP:
        return choice->n_calls ? "tool_calls" : "stop";
    case HEADRACE_FINISH_LENGTH:
        return "length";
    default:
        return NULL;
    }
}

/* The stop string or id that the client asked for; null for the model's own end. */
void hr_stop_reason_write(const hr_call *call, const hr_choice *choice, hr_buffer *out)
{
    const headrace_sampling *sampling = &call->request.sampling;

    if (choice->finish == HEADRACE_FINISH_STOP && choice->stop_string >= 0 &&
        (uint32_t)choice->stop_string < sampling->n_stop) {
        const char *text = sampling->stop[choice->stop_string];

        hr_json_string(out, text, strlen(text));
        return;
    }
    for (uint32_t i = 0; choice->finish == HEADRACE_FINISH_STOP && i < sampling->n_stop_ids; i++) {
        if (sampling->stop_ids[i] == choice->stop_id) {
            hr_json_int(out, choice->stop_id);
            return;
        }
    }
    hr_buffer_add_text(out, "null");
}

void hr_answer_write_tool_call(hr_buffer *out, const headrace_tool_call *tool_call)
{
    hr_buffer_add_text(out, "\"id\":");
    hr_json_string(out, tool_call->id, strlen(tool_call->id));
    hr_buffer_add_text(out, ",\"type\":\"function\",\"function\":{\"name\":");
    hr_json_string(out, tool_call->name, strlen(tool_call->name));
    hr_buffer_add_text(out, ",\"arguments\":");
    hr_json_string(out, tool_call->arguments, strlen(tool_call->arguments));
    hr_buffer_add_char(out, '}');
}

hr_usage hr_call_usage(const hr_call *call)
{
    hr_usage usage = {0};

    for (uint32_t i = 0; i < call->n_streams; i++) {
        usage.n_prompt += call->prompts.at[i].n_ids;
        usage.n_cached += call->streams[i].n_cached_tokens;
    }
    for (uint32_t i = 0; i < call->n_choices; i++)
        usage.n_completion += call->choices[i].n_tokens;
    return usage;
}

void hr_choice_keep(hr_choice *choice, const hr_delta *delta)
{
    hr_buffer_add(&choice->text, delta->text, delta->text_len);
    hr_buffer_add(&choice->reasoning, delta->reasoning, delta->reasoning_len);
    for (uint32_t i = 0; i < delta->n_calls; i++) {
        hr_buffer_add_text(&choice->calls, choice->calls.len ? ",{" : "{");
        hr_answer_write_tool_call(&choice->calls, &delta->calls[i]);
        hr_buffer_add_char(&choice->calls, '}');
    }
}

static void write_text(hr_buffer *out, const hr_buffer *text)
{
    hr_json_string(out, text->at ? text->at : "", text->len);
}

static void write_message(const hr_choice *choice, hr_buffer *out)
{
    hr_buffer_add_text(out, ",\"message\":{\"role\":\"assistant\",\"content\":");
    if (choice->text.len == 0 && choice->n_calls)
        hr_buffer_add_text(out, "null");
    else
        write_text(out, &choice->text);
    if (choice->reasoning.len) {
        hr_buffer_add_text(out, ",\"reasoning_content\":");
        write_text(out, &choice->reasoning);
    }
    hr_buffer_add_text(out, ",\"refusal\":null");
    if (choice->n_calls) {
        hr_buffer_add_text(out, ",\"tool_calls\":[");
        hr_buffer_add(out, choice->calls.at, choice->calls.len);
        hr_buffer_add_char(out, ']');
    }
    hr_buffer_add_char(out, '}');
}

static void write_choice(const hr_call *call, const hr_choice *choice, hr_buffer *out)
{
    const hr_call_stream *stream = &call->streams[choice->index / call->request.n];
    const hr_prompt *prompt = &call->prompts.at[stream->prompt_idx];
    const char *reason = hr_finish_reason(call, choice);

    hr_buffer_printf(out, "{\"index\":%u", choice->index);
    if (call->is_chat) {
        write_message(choice, out);
    } else {
        hr_buffer_add_text(out, ",\"text\":");
        write_text(out, &choice->text);
    }
    hr_buffer_add_text(out, ",\"logprobs\":");
    hr_logprobs_write(out, &choice->logprobs);
    hr_buffer_printf(out, ",\"finish_reason\":\"%s\",\"stop_reason\":", reason ? reason : "stop");
    hr_stop_reason_write(call, choice, out);
    if (call->request.return_token_ids) {
        hr_buffer_add_text(out, ",\"token_ids\":[");
        hr_buffer_add(out, choice->ids.at ? choice->ids.at : "", choice->ids.len);
        hr_buffer_add_char(out, ']');
    }
    if (!call->is_chat && call->request.return_token_ids) {
        hr_buffer_add_text(out, ",\"prompt_token_ids\":");
        hr_ids_write(out, prompt->ids, prompt->n_ids);
    }
    if (!call->is_chat && call->wants_prompt_logprobs) {
        hr_buffer_add_text(out, ",\"prompt_logprobs\":");
        hr_buffer_add(out, stream->prompt_logprobs.at, stream->prompt_logprobs.len);
    }
    hr_buffer_add_char(out, '}');
}

/* Times of the first prompt's stream, in milliseconds. */
void hr_metrics_write(const hr_call *call, hr_buffer *out)
{
    const hr_call_stream *stream = &call->streams[0];
    uint64_t generation_us = stream->total_us > stream->ttft_us ? stream->total_us - stream->ttft_us : 0;
    uint32_t n = call->choices[0].n_tokens;
    double itl_ms = n > 1 ? (double)generation_us / 1000.0 / (double)(n - 1) : 0.0;

    hr_buffer_printf(out,
                     "{\"queue_time_ms\":%.3f,\"time_to_first_token_ms\":%.3f,\"generation_time_ms\":%.3f,"
                     "\"mean_itl_ms\":%.3f,\"tokens_per_second\":%.3f",
                     (double)stream->queue_us / 1000.0, (double)stream->ttft_us / 1000.0,
                     (double)generation_us / 1000.0, itl_ms, itl_ms > 0.0 ? 1000.0 / itl_ms : 0.0);
    if (call->server->engine_info.speculation)
        hr_buffer_printf(out, ",\"draft_tokens\":%llu,\"accepted_draft_tokens\":%llu",
                         (unsigned long long)stream->n_draft_tokens, (unsigned long long)stream->n_accepted_tokens);
    hr_buffer_add_char(out, '}');
}

void hr_answer_write(hr_call *call, hr_buffer *out)
{
    hr_usage usage = hr_call_usage(call);

    hr_buffer_add_text(out, "{\"id\":");
    hr_json_string(out, call->id, strlen(call->id));
    hr_buffer_printf(out, ",\"object\":\"%s\",\"created\":%lld,\"model\":",
                     call->is_chat ? "chat.completion" : "text_completion", (long long)call->created_s);
    hr_json_string(out, call->model_name, strlen(call->model_name));
    hr_buffer_printf(out, ",\"system_fingerprint\":\"%s\",\"choices\":[", call->server->fingerprint);
    for (uint32_t i = 0; i < call->n_choices; i++) {
        if (i)
            hr_buffer_add_char(out, ',');
        write_choice(call, &call->choices[i], out);
    }
    hr_buffer_add_text(out, "],\"usage\":");
    hr_usage_write(out, &usage);
    if (call->is_chat && call->request.return_token_ids) {
        hr_buffer_add_text(out, ",\"prompt_token_ids\":");
        hr_ids_write(out, call->prompts.at[0].ids, call->prompts.at[0].n_ids);
    }
    if (call->is_chat && call->wants_prompt_logprobs) {
        hr_buffer_add_text(out, ",\"prompt_logprobs\":");
        hr_buffer_add(out, call->streams[0].prompt_logprobs.at, call->streams[0].prompt_logprobs.len);
    }
    if (call->server->options.request_metrics) {
        hr_buffer_add_text(out, ",\"metrics\":");
        hr_metrics_write(call, out);
    }
    hr_buffer_add_char(out, '}');
}

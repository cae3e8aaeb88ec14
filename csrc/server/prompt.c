/* See prompt.h. */
#include "server/prompt.h"

#include <stdlib.h>
#include <string.h>

#define COMPLETION_TOKENS_DEFAULT 16

static bool no_memory(hr_api_error *error)
{
    return hr_api_fail(error, HR_API_ENGINE_ERROR, NULL, "The server has no memory for this request.");
}

/* Library memory into ours; with room for one id in front. */
static bool take_ids(hr_prompt *prompt, int32_t *ids, size_t n_ids, int32_t first_id, hr_api_error *error)
{
    size_t n_first = first_id >= 0;

    prompt->ids = malloc((n_ids + n_first + 1) * sizeof *prompt->ids);
    if (prompt->ids) {
        if (n_first)
            prompt->ids[0] = first_id;
        memcpy(prompt->ids + n_first, ids, n_ids * sizeof *ids);
        prompt->n_ids = n_ids + n_first;
    }
    headrace_free(ids);
    return prompt->ids || no_memory(error);
}

/* The text of a raw prompt. The client writes the whole of it here, template and all, so that special tokens are read
 * as such; the first token is put in front unless the text already begins with it. */
static bool encode_text(hr_prompt *prompt, const hr_server *server, const hr_openai_request *request,
                        const json_t *text, hr_api_error *error)
{
    headrace_error failure = {0};
    int32_t *ids = NULL;
    size_t n_ids = 0;
    bool add_first = request->add_special_tokens && server->bos_id >= 0;

    if (headrace_encode(server->model, json_string_value(text), json_string_length(text), HEADRACE_ENCODE_SPECIAL, &ids,
                        &n_ids, &failure) != HEADRACE_OK) {
        (void)hr_api_fail_library(error, &failure);
        return false;
    }
    if (n_ids > 0 && ids[0] == server->bos_id)
        add_first = false;
    prompt->has_added_first = add_first;
    return take_ids(prompt, ids, n_ids, add_first ? server->bos_id : -1, error);
}

static bool ends_with_open_think(const char *text, size_t len)
{
    static const char tag[] = "<think>";
    size_t n = sizeof tag - 1;

    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == ' '))
        len--;
    return len >= n && memcmp(text + len - n, tag, n) == 0;
}

/* What of a request the renderer reads, after our changes. */
static char *dump_conversation(const hr_openai_request *request)
{
    static const char *const names[] = {"messages", "tools", "add_generation_prompt", "continue_final_message",
                                        "chat_template_kwargs"};
    const char *choice = json_string_value(json_object_get(request->body, "tool_choice"));
    bool hides_tools = choice && strcmp(choice, "none") == 0, ok = true;
    json_t *reduced = json_object();
    char *text;

    for (size_t i = 0; reduced && i < sizeof names / sizeof *names; i++) {
        json_t *value = json_object_get(request->body, names[i]);

        if (value && !(hides_tools && strcmp(names[i], "tools") == 0))
            ok = json_object_set(reduced, names[i], value) == 0 && ok;
    }
    text = reduced && ok ? json_dumps(reduced, JSON_COMPACT) : NULL;
    json_decref(reduced);
    return text;
}

static bool render_chat(hr_prompt *prompt, const hr_server *server, const hr_openai_request *request, const char *raw,
                        size_t raw_len, hr_api_error *error)
{
    headrace_error failure = {0};
    char *changed = NULL, *text = NULL;
    size_t text_len = 0, n_ids = 0;
    int32_t *ids = NULL;
    headrace_status status;

    if (request->body_changed) {
        changed = dump_conversation(request);
        if (!changed)
            return no_memory(error);
        raw = changed;
        raw_len = strlen(changed);
    }
    status = headrace_chat_render(server->model, raw, raw_len, 0, &text, &text_len, &ids, &n_ids, &failure);
    free(changed);
    if (status != HEADRACE_OK) {
        (void)hr_api_fail_library(error, &failure);
        return false;
    }
    prompt->opens_reasoning = ends_with_open_think(text, text_len);
    headrace_free(text);
    return take_ids(prompt, ids, n_ids, -1, error);
}

/* One of several prompts, or the only one. */
static bool read_prompt(hr_prompt *prompt, const hr_server *server, const hr_openai_request *request,
                        const json_t *value, const char *param, hr_api_error *error)
{
    if (json_is_string(value)) {
        if (!encode_text(prompt, server, request, value, error))
            return false;
    } else if (!hr_read_ids(value, param, server->model_info.vocab_size, &prompt->ids, &prompt->n_ids, error)) {
        return false;
    }
    if (prompt->n_ids == 0 && request->kind == HR_FOR_COMPLETIONS)
        return hr_api_fail(error, HR_API_INVALID_VALUE, param, "%s has no tokens.", param);
    return true;
}

static bool read_prompts(hr_prompt_list *prompts, const hr_server *server, const hr_openai_request *request,
                         hr_api_error *error)
{
    const json_t *value = json_object_get(request->body, "prompt");
    bool is_list = json_is_array(value) && !json_is_integer(json_array_get(value, 0));
    char param[32];

    if (!is_list)
        return read_prompt(&prompts->at[0], server, request, value, "prompt", error);
    for (size_t i = 0; i < prompts->n; i++) {
        (void)snprintf(param, sizeof param, "prompt[%zu]", i);
        if (!read_prompt(&prompts->at[i], server, request, json_array_get(value, i), param, error))
            return false;
    }
    return true;
}

bool hr_prompts_init(hr_prompt_list *prompts, const hr_server *server, const hr_openai_request *request,
                     const char *raw, size_t raw_len, hr_api_error *error)
{
    const json_t *value = json_object_get(request->body, "prompt");
    bool is_chat = !value || json_is_null(value), ok;

    prompts->n =
        !is_chat && json_is_array(value) && !json_is_integer(json_array_get(value, 0)) ? json_array_size(value) : 1;
    prompts->at = calloc(prompts->n, sizeof *prompts->at);
    if (!prompts->at)
        return no_memory(error);
    ok = is_chat ? render_chat(&prompts->at[0], server, request, raw, raw_len, error)
                 : read_prompts(prompts, server, request, error);
    if (!ok)
        hr_prompts_deinit(prompts);
    return ok;
}

void hr_prompts_deinit(hr_prompt_list *prompts)
{
    for (size_t i = 0; prompts->at && i < prompts->n; i++)
        free(prompts->at[i].ids);
    free(prompts->at);
    *prompts = (hr_prompt_list){0};
}

static void truncate(hr_prompt *prompt, size_t keep)
{
    if (prompt->n_ids <= keep)
        return;
    prompt->has_added_first = false;
    memmove(prompt->ids, prompt->ids + (prompt->n_ids - keep), keep * sizeof *prompt->ids);
    prompt->n_ids = keep;
}

bool hr_prompt_fit(hr_prompt *prompt, const hr_server *server, const hr_openai_request *request, uint32_t *max_tokens,
                   hr_api_error *error)
{
    uint32_t context = server->engine_info.max_model_len, wanted = request->has_max_tokens ? request->max_tokens : 0;
    const char *param = request->kind == HR_FOR_CHAT ? "messages" : "prompt";

    if (request->truncate_prompt_tokens > 0)
        truncate(prompt, (size_t)request->truncate_prompt_tokens);
    else if (request->truncate_prompt_tokens < 0)
        truncate(prompt, wanted < context ? context - (wanted ? wanted : 1) : 1);
    if (prompt->n_ids >= context)
        return hr_api_fail(error, HR_API_CONTEXT_LENGTH, param,
                           "The prompt has %zu tokens; this model's context length is %u tokens, prompt and answer "
                           "together.",
                           prompt->n_ids, context);
    if (wanted > context - prompt->n_ids)
        return hr_api_fail(
            error, HR_API_CONTEXT_LENGTH, param,
            "The prompt has %zu tokens and max_tokens is %u, together %zu; this model's context length is "
            "%u tokens.",
            prompt->n_ids, wanted, prompt->n_ids + wanted, context);
    if (!request->has_max_tokens && request->kind == HR_FOR_COMPLETIONS)
        wanted = COMPLETION_TOKENS_DEFAULT < context - prompt->n_ids ? COMPLETION_TOKENS_DEFAULT
                                                                     : context - (uint32_t)prompt->n_ids;
    if (wanted && request->sampling.min_tokens > wanted)
        return hr_api_fail(error, HR_API_INVALID_VALUE, "min_tokens",
                           "min_tokens is %u; it must be at most max_tokens, %u.", request->sampling.min_tokens,
                           wanted);
    *max_tokens = wanted;
    return true;
}

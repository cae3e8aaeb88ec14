/* headrace_chat_render: a request's conversation through the checkpoint's template to text and ids.
 *
 * The ids are made from the rendering's ranges, not from its text: what came from a message cannot become a special
 * token (unless the caller asks for the reference behaviour).
 */
#include "api/api.h"

#include <string.h>

static headrace_status add_special(json_t *context, const char *name, const hr_tokenizer *tokenizer, int32_t id,
                                   headrace_error *err)
{
    const char *bytes;
    size_t len;
    bool is_special;

    if (json_object_get(context, name) || id < 0 || !hr_tokenizer_bytes(tokenizer, id, &bytes, &len, &is_special))
        return HEADRACE_OK;
    if (json_object_set_new(context, name, json_stringn(bytes, len)) != 0)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a chat");
    return HEADRACE_OK;
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* continue_final_message, as transformers defines it: the text ends with the last message's content (without the spaces
 * at its ends, unless they were rendered), so that the model goes on writing it. */
static headrace_status cut_after_final_message(hr_chat_rendering *rendering, const json_t *messages,
                                               headrace_error *err)
{
    const json_t *content = json_object_get(json_array_get(messages, json_array_size(messages) - 1), "content");
    const char *wanted = json_string_value(content), *found = NULL;
    size_t len = json_string_length(content), full, end;

    if (!wanted)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "continue_final_message",
                             "continue_final_message: the last message has no text content");
    for (; len > 0 && is_space(*wanted); len--)
        wanted++;
    for (full = len; len > 0 && is_space(wanted[len - 1]);)
        len--;
    for (size_t at = rendering->text.len >= len ? rendering->text.len - len + 1 : 0; at-- > 0 && !found && len > 0;)
        if (memcmp(rendering->text.at + at, wanted, len) == 0)
            found = rendering->text.at + at;
    if (!found)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "continue_final_message",
                             "continue_final_message: the template does not render the last message's content");
    end = (size_t)(found - rendering->text.at);
    end += rendering->text.len - end >= full && memcmp(found, wanted, full) == 0 ? full : len;
    rendering->text.len = end;
    rendering->text.at[end] = '\0';
    for (size_t i = 0; i < rendering->n_ranges; i++) {
        if (rendering->ranges[i].len > end)
            rendering->ranges[i].len = end;
        end -= rendering->ranges[i].len;
    }
    return HEADRACE_OK;
}

static headrace_status render_request(const headrace_model *model, const json_t *request, hr_chat_rendering *rendering,
                                      headrace_error *err)
{
    const hr_tokenizer *tokenizer = model->tokenizer;
    json_t *context = hr_chat_normalize(model->chat_template, request, err);
    headrace_status status;

    if (!context)
        return err->status;
    HR_TRY_GOTO(done, add_special(context, "bos_token", tokenizer, hr_tokenizer_bos(tokenizer), err));
    HR_TRY_GOTO(done, add_special(context, "eos_token", tokenizer, hr_tokenizer_eos(tokenizer), err));
    HR_TRY_GOTO(done, hr_chat_template_render(model->chat_template, context, -1, rendering, err));
    if (json_is_true(json_object_get(context, "continue_final_message")))
        status = cut_after_final_message(rendering, json_object_get(context, "messages"), err);
done:
    json_decref(context);
    return status;
}

/* Either output may be NULL. */
static headrace_status hand_over(const headrace_model *model, hr_chat_rendering *rendering, uint32_t flags, char **text,
                                 size_t *text_len, int32_t **ids, size_t *n_ids, headrace_error *err)
{
    const char *bytes = rendering->text.at ? rendering->text.at : "";

    if (ids && flags & HEADRACE_CHAT_PARSE_SPECIAL)
        HR_PASS(hr_tokenizer_encode(model->tokenizer, bytes, rendering->text.len, HEADRACE_ENCODE_SPECIAL, ids, n_ids,
                                    err));
    else if (ids)
        HR_PASS(hr_tokenizer_encode_ranges(model->tokenizer, bytes, rendering->ranges, rendering->n_ranges, ids, n_ids,
                                           err));
    if (!text)
        return HEADRACE_OK;
    *text = hr_buffer_take(&rendering->text, text_len);
    if (*text)
        return HEADRACE_OK;
    if (ids) {
        free(*ids);
        *ids = NULL;
    }
    return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a chat");
}

static headrace_status render(const headrace_model *model, const char *json, size_t json_len, uint32_t flags,
                              char **text, size_t *text_len, int32_t **ids, size_t *n_ids, headrace_error *err)
{
    hr_chat_rendering rendering = {0};
    json_error_t error;
    json_t *request;
    headrace_status status;

    HR_PASS(hr_need_tokenizer(model, err));
    if (!model->chat_template) {
        *err = model->template_error;
        return err->status;
    }
    request = json_loadb(json, json_len, JSON_ALLOW_NUL, &error);
    if (!request)
        return hr_fail(err, HEADRACE_E_ARGUMENT, "the request is not valid JSON: byte %d: %s", error.position,
                       error.text);
    if (json_is_object(request))
        status = render_request(model, request, &rendering, err);
    else
        status = hr_fail(err, HEADRACE_E_ARGUMENT, "the request is not a JSON object");
    if (status == HEADRACE_OK)
        status = hand_over(model, &rendering, flags, text, text_len, ids, n_ids, err);
    hr_chat_rendering_deinit(&rendering);
    json_decref(request);
    return status;
}

headrace_status headrace_chat_render(const headrace_model *model, const char *json, size_t json_len, uint32_t flags,
                                     char **text, size_t *text_len, int32_t **ids, size_t *n_ids, headrace_error *err)
{
    headrace_error own = {.status = HEADRACE_OK}; /* hr_chat_normalize tells its status only here */
    headrace_status status;

    if (text)
        *text = NULL;
    if (ids)
        *ids = NULL;
    status = render(model, json, json_len, flags, text, text_len, ids, n_ids, &own);
    if (status != HEADRACE_OK && err)
        *err = own;
    return status;
}

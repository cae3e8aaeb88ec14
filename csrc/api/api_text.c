/* Text functions of a model: encode, decode, chat rendering. */
#include "api/api.h"

#include "base/utf8.h"

#include <string.h>

headrace_status hr_need_tokenizer(const headrace_model *model, headrace_error *err)
{
    if (model->tokenizer)
        return HEADRACE_OK;
    return hr_fail(err, HEADRACE_E_UNSUPPORTED,
                   "%s has no tokenizer (a folder needs tokenizer.json, a GGUF file tokenizer.ggml.*); only token ids "
                   "can be used with it",
                   model->network->path);
}

/* Appends text with every invalid sequence as U+FFFD. */
static void add_repaired(hr_buffer *out, const char *text, size_t len)
{
    for (size_t at = 0; at < len;) {
        bool is_valid;
        size_t step = hr_utf8_step(text + at, len - at, &is_valid);

        if (is_valid)
            hr_buffer_add(out, text + at, step);
        else
            hr_buffer_add(out, "\xEF\xBF\xBD", 3);
        at += step;
    }
}

headrace_status headrace_encode(const headrace_model *model, const char *text, size_t text_len, uint32_t flags,
                                int32_t **ids, size_t *n_ids, headrace_error *err)
{
    hr_buffer repaired = {0};
    headrace_status status;

    *ids = NULL;
    *n_ids = 0;
    HR_PASS(hr_need_tokenizer(model, err));
    if (!hr_utf8_is_valid(text, text_len, NULL)) {
        add_repaired(&repaired, text, text_len);
        if (repaired.failed) {
            hr_buffer_deinit(&repaired);
            return hr_fail(err, HEADRACE_E_MEMORY, "no memory for %zu bytes of text", text_len);
        }
        text = repaired.at;
        text_len = repaired.len;
    }
    status = hr_tokenizer_encode(model->tokenizer, text, text_len, flags, ids, n_ids, err);
    hr_buffer_deinit(&repaired);
    return status;
}

headrace_status headrace_decode(const headrace_model *model, const int32_t *ids, size_t n_ids, uint32_t flags,
                                char **text, size_t *text_len, headrace_error *err)
{
    hr_buffer bytes = {0}, repaired = {0};
    uint32_t vocab_size = model->network->arch.vocab_size;

    *text = NULL;
    *text_len = 0;
    HR_PASS(hr_need_tokenizer(model, err));
    for (size_t i = 0; i < n_ids; i++) {
        const char *at;
        size_t len;
        bool is_special;

        if (ids[i] < 0 || (uint32_t)ids[i] >= vocab_size) {
            hr_buffer_deinit(&bytes);
            return hr_fail_param(err, HEADRACE_E_ARGUMENT, "ids", "ids[%zu]: id %d is outside 0..%u", i, ids[i],
                                 vocab_size - 1);
        }
        if (hr_tokenizer_bytes(model->tokenizer, ids[i], &at, &len, &is_special) &&
            !(is_special && flags & HEADRACE_DECODE_SKIP_SPECIAL))
            hr_buffer_add(&bytes, at, len);
    }
    add_repaired(&repaired, bytes.at, bytes.len);
    hr_buffer_add(&repaired, "", 0); /* allocates the terminator of an empty text */
    repaired.failed |= bytes.failed;
    hr_buffer_deinit(&bytes);
    *text = hr_buffer_take(&repaired, text_len);
    if (!*text) {
        hr_buffer_deinit(&repaired);
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the text of %zu ids", n_ids);
    }
    return HEADRACE_OK;
}

bool headrace_token_bytes(const headrace_model *model, int32_t id, const char **bytes, size_t *len, bool *is_special)
{
    bool special;

    return model->tokenizer && hr_tokenizer_bytes(model->tokenizer, id, bytes, len, is_special ? is_special : &special);
}

const char *headrace_chat_template_names(void)
{
    return hr_chat_template_builtin_names();
}

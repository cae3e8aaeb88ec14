/* Vocabulary, special ids and chat template of a Hugging Face folder as GGUF keys. See metadata.h.
 *
 * Vocabulary and merges come from the tokenizer as it was read and checked (text/tokenizer_write.h). What GGUF cannot
 * say is refused: it names splitting expressions instead of holding them, and its readers take a piece that is a token
 * as a whole. So the entries are read back here, before anything is written, and both readings have to give the same
 * ids for every token's text.
 */
#include "convert/metadata.h"

#include "base/file.h"
#include "base/log.h"
#include "text/pretokenize.h"
#include "text/tokenizer_write.h"

#include <limits.h>
#include <string.h>

enum { TEMPLATE_BYTES_MAX = 1 << 20 };

typedef struct files {
    const hr_model *model;
    const json_t *config;                 /* config.json */
    json_t *tokenizer, *tokenizer_config; /* tokenizer.json, tokenizer_config.json; NULL: none */
    hr_gguf_writer *writer;
    headrace_error *err;
} files;

/* ---------------------------------------------------------------- vocabulary */

/* The tokenizer was opened, so the path to the expression is there. */
static headrace_status check_splitter(const files *in)
{
    const json_t *stages = json_object_get(json_object_get(in->tokenizer, "pre_tokenizer"), "pretokenizers");
    const json_t *regex = json_object_get(json_object_get(json_array_get(stages, 0), "pattern"), "Regex");
    const char *text = json_string_value(regex);

    if (text && strcmp(text, hr_splitter_lfm2) == 0)
        return HEADRACE_OK;
    return hr_fail(in->err, HEADRACE_E_UNSUPPORTED,
                   "%s/tokenizer.json: its splitting expression is not LFM2's; GGUF files only name expressions "
                   "(tokenizer.ggml.pre), and there is no name for this one",
                   in->model->path);
}

static headrace_status compare_readings(const files *in, const hr_tokenizer *tokenizer)
{
    hr_buffer header = {0};
    hr_gguf gguf = {0};
    hr_gguf_writer alone = {0};
    hr_tokenizer *again = NULL;
    headrace_error *err = in->err;
    headrace_status status;

    HR_TRY_GOTO(done, hr_tokenizer_put_gguf(tokenizer, in->model->arch.vocab_size, &alone, err));
    HR_TRY_GOTO(done, hr_gguf_header(&alone, &header, err));
    HR_TRY_GOTO(done, hr_gguf_parse((const unsigned char *)header.at, header.len, "the new vocabulary", &gguf, err));
    HR_TRY_GOTO(done, hr_tokenizer_open_gguf(&gguf, in->model->arch.vocab_size, &again, err));
    status = hr_tokenizer_compare(tokenizer, again, err);
done:
    hr_tokenizer_close(again);
    hr_gguf_close(&gguf);
    hr_buffer_deinit(&header);
    hr_gguf_writer_deinit(&alone);
    return status == HEADRACE_OK ? status : hr_prefix(err, status, "%s/tokenizer.json", in->model->path);
}

static headrace_status put_vocabulary(const files *in)
{
    hr_tokenizer *tokenizer = NULL;
    char path[PATH_MAX];
    headrace_status status;

    (void)snprintf(path, sizeof path, "%s/tokenizer.json", in->model->path);
    HR_PASS(hr_tokenizer_open_json(path, in->model->arch.vocab_size, &tokenizer, in->err));
    HR_TRY_GOTO(done, check_splitter(in));
    HR_TRY_GOTO(done, compare_readings(in, tokenizer));
    status = hr_tokenizer_put_gguf(tokenizer, in->model->arch.vocab_size, in->writer, in->err);
done:
    hr_tokenizer_close(tokenizer);
    return status;
}

/* ---------------------------------------------------------------- what is put around a text */

static const char *token_text(const json_t *value)
{
    return json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
}

static const char *special_in(const json_t *step)
{
    return json_string_value(json_object_get(json_object_get(step, "SpecialToken"), "id"));
}

typedef enum answer { UNSAID, NO, YES } answer;

/* A post-processor's template: bos in front of one text; between the two of a pair (behind the bos) a separator. */
static void read_template(const files *in, const json_t *processor, answer adds[3])
{
    const json_t *single = json_object_get(processor, "single"), *pair = json_object_get(processor, "pair");
    const char *bos = token_text(json_object_get(in->tokenizer_config, "bos_token"));
    const char *sep = token_text(json_object_get(in->tokenizer_config, "sep_token"));
    const char *eos = token_text(json_object_get(in->tokenizer_config, "eos_token"));
    const char *first = json_array_size(single) > 1 ? special_in(json_array_get(single, 0)) : NULL, *between;
    size_t n = json_array_size(pair), begin;

    if (first)
        adds[0] = !bos || strcmp(first, bos) == 0 ? YES : NO;
    between = n > 0 ? special_in(json_array_get(pair, 0)) : NULL;
    begin = first && between && strcmp(first, between) == 0 ? 1 : 0;
    if (n < begin + 3 || !json_object_get(json_array_get(pair, begin), "Sequence"))
        return;
    adds[2] = NO;
    for (size_t i = begin + 1; i + 1 < n; i++) {
        between = special_in(json_array_get(pair, i));
        if (between && ((sep && strcmp(between, sep) == 0) || (eos && strcmp(between, eos) == 0)))
            adds[2] = YES;
    }
}

static void put_flags(const files *in)
{
    static const char *const names[3] = {"bos", "eos", "sep"};
    const json_t *root = json_object_get(in->tokenizer, "post_processor");
    const json_t *list = json_object_get(root, "processors");
    answer adds[3] = {UNSAID, UNSAID, UNSAID};
    char key[64];

    for (size_t i = 0; i < (list ? json_array_size(list) : 1); i++) {
        const json_t *each = list ? json_array_get(list, i) : root;
        const char *type = json_string_value(json_object_get(each, "type"));

        for (size_t k = 0; k < 2 && type && strcmp(type, "ByteLevel") == 0; k++)
            adds[k] = adds[k] == UNSAID ? NO : adds[k];
        if (type && strcmp(type, "TemplateProcessing") == 0)
            read_template(in, each, adds);
    }
    for (size_t i = 0; i < 3; i++) {
        const json_t *said;

        (void)snprintf(key, sizeof key, "add_%s_token", names[i]);
        said = json_object_get(in->tokenizer_config, key);
        if (adds[i] == UNSAID && json_is_boolean(said))
            adds[i] = json_is_true(said) ? YES : NO;
        (void)snprintf(key, sizeof key, "tokenizer.ggml.add_%s_token", names[i]);
        if (adds[i] != UNSAID)
            hr_gguf_put_bool(in->writer, key, adds[i] == YES);
    }
}

/* ---------------------------------------------------------------- special ids */

/* -1: no added token has this text. */
static json_int_t id_of(const json_t *tokenizer, const char *text)
{
    const json_t *added = json_object_get(tokenizer, "added_tokens");

    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *token = json_array_get(added, i);
        const char *content = json_string_value(json_object_get(token, "content"));

        if (content && strcmp(content, text) == 0 && json_is_integer(json_object_get(token, "id")))
            return json_integer_value(json_object_get(token, "id"));
    }
    return -1;
}

/* By the text in tokenizer_config.json, else by the id in config.json. */
static headrace_status put_special_ids(const files *in)
{
    static const char *const names[][2] = {{"bos", "bos"},       {"eos", "eos"},     {"unk", "unknown"},
                                           {"sep", "seperator"}, {"pad", "padding"}, {"mask", "mask"}};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char field[32], key[64];
        const char *text;
        const json_t *given;
        json_int_t id = -1;

        (void)snprintf(field, sizeof field, "%s_token", names[i][0]);
        text = token_text(json_object_get(in->tokenizer_config, field));
        if (text)
            id = id_of(in->tokenizer, text);
        (void)snprintf(field, sizeof field, "%s_token_id", names[i][0]);
        given = hr_metadata_field(in->config, field);
        if (id < 0 && json_is_integer(given))
            id = json_integer_value(given);
        if (id >= (json_int_t)in->model->arch.vocab_size)
            return hr_fail(in->err, HEADRACE_E_MODEL, "%s: the %s token has id %lld; the model has ids 0 to %u",
                           in->model->path, names[i][0], (long long)id, in->model->arch.vocab_size - 1);
        (void)snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", names[i][1]);
        if (id >= 0)
            hr_gguf_put_u32(in->writer, key, (uint32_t)id);
    }
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- chat template */

/* A name of an additional template as a key may have it. */
static void clean_name(const char *name, char out[64])
{
    size_t n = 0;

    for (; name[n] && n < 63; n++) {
        char c = name[n];
        bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');

        out[n] = c == '\0' || is_plain ? c : '_';
    }
    out[n] = '\0';
}

/* tokenizer_config.json may have one, or a list of named ones of which "default" is the usual. */
static void put_named_templates(const files *in, const json_t *list)
{
    size_t n_named = 0, i;
    json_t *each;
    char name[64], key[128];

    for (int round = 0; round < 2; round++) { /* first the templates, then the list of their names */
        if (round == 1 && n_named > 0)
            hr_gguf_put_strings(in->writer, "tokenizer.chat_templates", n_named);
        json_array_foreach((json_t *)(uintptr_t)list, i, each)
        {
            const char *given = json_string_value(json_object_get(each, "name"));
            const json_t *text = json_object_get(each, "template");

            if (!given || !given[0] || !json_is_string(text))
                continue;
            clean_name(given, name);
            if (strcmp(name, "default") == 0) {
                if (round == 0)
                    hr_gguf_put_string(in->writer, "tokenizer.chat_template", json_string_value(text),
                                       json_string_length(text));
            } else if (round == 0) {
                (void)snprintf(key, sizeof key, "tokenizer.chat_template.%s", name);
                hr_gguf_put_string(in->writer, key, json_string_value(text), json_string_length(text));
                n_named++;
            } else {
                hr_gguf_put_element(in->writer, name, strlen(name));
            }
        }
    }
}

/* chat_template.jinja is the folder's template wherever it lies beside another one (the libraries that write both read
 * it first). */
static headrace_status put_chat_template(const files *in)
{
    const json_t *value = json_object_get(in->tokenizer_config, "chat_template");
    char path[PATH_MAX];
    char *text;
    size_t len;

    (void)snprintf(path, sizeof path, "%s/chat_template.jinja", in->model->path);
    if (hr_file_exists(path)) {
        HR_PASS(hr_file_read(path, TEMPLATE_BYTES_MAX, &text, &len, in->err));
        hr_gguf_put_string(in->writer, "tokenizer.chat_template", text, len);
        free(text);
    } else if (json_is_string(value)) {
        hr_gguf_put_string(in->writer, "tokenizer.chat_template", json_string_value(value), json_string_length(value));
    } else {
        put_named_templates(in, value);
    }
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- together */

headrace_status hr_metadata_put_tokenizer(const hr_metadata_source *source, const json_t *config,
                                          hr_gguf_writer *writer, headrace_error *err)
{
    const char *folder = source->model->path;
    files in = {.model = source->model, .config = config, .writer = writer, .err = err};
    headrace_status status;

    HR_TRY_GOTO(done, hr_metadata_read_json(folder, "tokenizer.json", &in.tokenizer, err));
    HR_TRY_GOTO(done, hr_metadata_read_json(folder, "tokenizer_config.json", &in.tokenizer_config, err));
    if (in.tokenizer) {
        HR_TRY_GOTO(done, put_vocabulary(&in));
    } else {
        hr_log(HEADRACE_LOG_WARNING, "%s: no tokenizer.json: the file will hold no vocabulary", folder);
        hr_gguf_put_string(writer, "tokenizer.ggml.model", "none", 4);
    }
    HR_TRY_GOTO(done, put_special_ids(&in));
    put_flags(&in);
    status = put_chat_template(&in);
done:
    json_decref(in.tokenizer);
    json_decref(in.tokenizer_config);
    return status;
}

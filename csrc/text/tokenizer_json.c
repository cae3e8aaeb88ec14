/* Reads a Hugging Face tokenizer.json.
 *
 * The file describes a pipeline of which the family uses one shape: no normaliser, one regex Split, byte-level BPE, an
 * optional bos in front. Any other shape would need other code to give the same ids, so it is refused and the field is
 * named; nothing that changes ids is skipped over. Truncation and padding are the caller's business and are ignored, as
 * serving libraries do.
 *
 * tokenizer.json does not say which token ends a text: that comes from tokenizer_config.json beside it, when there is
 * one.
 */
#include "base/file.h"
#include "text/tokenizer_parts.h"

#include <jansson.h>
#include <string.h>

enum { FILE_MAX = 512 * 1024 * 1024, CONFIG_MAX = 64 * 1024 * 1024 };

/* ---------------------------------------------------------------- small readers */

static const char *type_of(const json_t *value)
{
    const char *type = json_string_value(json_object_get(value, "type"));

    return type ? type : json_is_object(value) ? "without type" : "not an object";
}

/* Absent, null, false, 0 or "": the feature is not used. */
static bool is_off(const json_t *value)
{
    return !value || json_is_null(value) || json_is_false(value) ||
           (json_is_number(value) && json_number_value(value) == 0) ||
           (json_is_string(value) && json_string_length(value) == 0);
}

static bool is_true(const json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

/* A text for messages: the value as JSON, cut off after some of it. Jansson leaves out pieces that do not fit. */
static const char *show(const json_t *value, char out[64])
{
    size_t n;

    memset(out, 0, 64);
    n = json_dumpb(value, out, 60, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII);
    if (n > 60) {
        out[60] = '\0';
        memcpy(out + strlen(out), "...", 4);
    }
    return out;
}

static headrace_status refuse_field(const char *field, const json_t *value, const char *expected, headrace_error *err)
{
    char text[64];

    return hr_fail(err, HEADRACE_E_MODEL, "%s: %s is not supported (expected %s)", field,
                   value ? show(value, text) : "nothing", expected);
}

/* ---------------------------------------------------------------- the model */

static headrace_status read_vocabulary(hr_tokenizer *t, json_t *model, headrace_error *err)
{
    json_t *vocab = json_object_get(model, "vocab"), *id;
    const char *spelling;
    size_t len;

    if (!json_is_object(vocab))
        return refuse_field("model.vocab", vocab, "an object of tokens and ids", err);
    json_object_keylen_foreach(vocab, spelling, len, id)
    {
        if (!json_is_integer(id))
            return hr_fail(err, HEADRACE_E_MODEL, "model.vocab: the id of \"%.60s\" is not an integer", spelling);
        HR_TRY(hr_vocabulary_add_token(&t->vocabulary, json_integer_value(id), spelling, len, err), "model.vocab");
    }
    return HEADRACE_OK;
}

static headrace_status read_merge(hr_tokenizer *t, const json_t *merge, headrace_error *err)
{
    const char *text = json_string_value(merge), *space;
    json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);

    if (json_array_size(merge) == 2 && json_is_string(left) && json_is_string(right))
        return hr_vocabulary_add_merge(&t->vocabulary, json_string_value(left), json_string_length(left),
                                       json_string_value(right), json_string_length(right), err);
    space = text ? strchr(text, ' ') : NULL;
    if (!space || strchr(space + 1, ' '))
        return hr_fail(err, HEADRACE_E_MODEL, "merge %u is neither [\"left\", \"right\"] nor \"left right\"",
                       t->vocabulary.n_merges);
    return hr_vocabulary_add_merge(&t->vocabulary, text, (size_t)(space - text), space + 1, strlen(space + 1), err);
}

static headrace_status read_merges(hr_tokenizer *t, json_t *model, headrace_error *err)
{
    json_t *merges = json_object_get(model, "merges"), *merge;
    size_t i;

    if (!json_is_array(merges))
        return refuse_field("model.merges", merges, "an array of pairs", err);
    HR_TRY(hr_vocabulary_index(&t->vocabulary, json_array_size(merges), err), "model.vocab");
    json_array_foreach(merges, i, merge) HR_TRY(read_merge(t, merge, err), "model.merges");
    return HEADRACE_OK;
}

static headrace_status check_model(hr_tokenizer *t, const json_t *model, headrace_error *err)
{
    static const char *const unused[] = {"dropout",  "unk_token",    "continuing_subword_prefix", "end_of_word_suffix",
                                         "fuse_unk", "byte_fallback"};
    const json_t *ignore_merges = json_object_get(model, "ignore_merges");

    if (strcmp(type_of(model), "BPE") != 0)
        return hr_fail(err, HEADRACE_E_MODEL, "model.type: \"%.60s\" is not supported (expected \"BPE\")",
                       type_of(model));
    for (size_t i = 0; i < sizeof unused / sizeof unused[0]; i++) {
        char field[64];

        (void)snprintf(field, sizeof field, "model.%s", unused[i]);
        if (!is_off(json_object_get(model, unused[i])))
            return refuse_field(field, json_object_get(model, unused[i]), "null or false", err);
    }
    if (!is_off(ignore_merges) && !json_is_true(ignore_merges))
        return refuse_field("model.ignore_merges", ignore_merges, "true or false", err);
    t->ignore_merges = json_is_true(ignore_merges);
    return HEADRACE_OK;
}

static headrace_status read_added_token(hr_tokenizer *t, const json_t *token, headrace_error *err)
{
    static const char *const unsupported[] = {"single_word", "lstrip", "rstrip"};
    const json_t *id = json_object_get(token, "id"), *content = json_object_get(token, "content");
    const json_t *normalized = json_object_get(token, "normalized");
    bool is_special = is_true(token, "special");

    if (!json_is_integer(id) || !json_is_string(content))
        return hr_fail(err, HEADRACE_E_MODEL, "needs an integer \"id\" and a string \"content\"");
    for (size_t i = 0; i < sizeof unsupported / sizeof unsupported[0]; i++) {
        if (!is_off(json_object_get(token, unsupported[i])))
            return hr_fail(err, HEADRACE_E_MODEL, "\"%.60s\" has %s set, which is not supported",
                           json_string_value(content), unsupported[i]);
    }
    return hr_vocabulary_mark_added(&t->vocabulary, json_integer_value(id), json_string_value(content),
                                    json_string_length(content), is_special,
                                    normalized ? json_is_true(normalized) : !is_special, err);
}

static headrace_status read_added_tokens(hr_tokenizer *t, const json_t *root, headrace_error *err)
{
    const json_t *tokens = json_object_get(root, "added_tokens");

    if (tokens && !json_is_null(tokens) && !json_is_array(tokens))
        return refuse_field("added_tokens", tokens, "an array", err);
    for (size_t i = 0; i < json_array_size(tokens); i++)
        HR_TRY(read_added_token(t, json_array_get(tokens, i), err), "added_tokens[%zu]", i);
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- the pipeline around it */

static headrace_status read_split(hr_tokenizer *t, const json_t *split, headrace_error *err)
{
    const json_t *regex = json_object_get(json_object_get(split, "pattern"), "Regex");
    const char *behavior = json_string_value(json_object_get(split, "behavior"));

    if (!json_is_string(regex))
        return refuse_field("pre_tokenizer Split: pattern", json_object_get(split, "pattern"), "{\"Regex\": ...}", err);
    if (!behavior || strcmp(behavior, "Isolated") != 0)
        return refuse_field("pre_tokenizer Split: behavior", json_object_get(split, "behavior"), "\"Isolated\"", err);
    if (!is_off(json_object_get(split, "invert")))
        return refuse_field("pre_tokenizer Split: invert", json_object_get(split, "invert"), "false", err);
    HR_TRY(hr_splitter_init(&t->splitter, json_string_value(regex), json_string_length(regex), err),
           "pre_tokenizer Split");
    return HEADRACE_OK;
}

/* ByteLevel with its own splitting off. Both options are on when they are left out. */
static headrace_status check_byte_level(const json_t *stage, headrace_error *err)
{
    static const char *const options[] = {"add_prefix_space", "use_regex"};

    if (strcmp(type_of(stage), "ByteLevel") != 0)
        return hr_fail(err, HEADRACE_E_MODEL,
                       "pre_tokenizer: \"%.60s\" is not supported there (expected \"ByteLevel\")", type_of(stage));
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        char field[64];

        (void)snprintf(field, sizeof field, "pre_tokenizer ByteLevel: %s", options[i]);
        if (!json_is_false(json_object_get(stage, options[i])))
            return refuse_field(field, json_object_get(stage, options[i]), "false", err);
    }
    return HEADRACE_OK;
}

static headrace_status read_pre_tokenizer(hr_tokenizer *t, const json_t *root, headrace_error *err)
{
    const json_t *stage = json_object_get(root, "pre_tokenizer"), *stages = json_object_get(stage, "pretokenizers");

    if (strcmp(type_of(stage), "Sequence") != 0 || json_array_size(stages) != 2 ||
        strcmp(type_of(json_array_get(stages, 0)), "Split") != 0)
        return refuse_field("pre_tokenizer", stage, "a Sequence of Split and ByteLevel", err);
    HR_PASS(read_split(t, json_array_get(stages, 0), err));
    return check_byte_level(json_array_get(stages, 1), err);
}

static headrace_status check_decoder(const json_t *root, headrace_error *err)
{
    const json_t *decoder = json_object_get(root, "decoder");

    if (strcmp(type_of(decoder), "Sequence") == 0 && json_array_size(json_object_get(decoder, "decoders")) == 1)
        decoder = json_array_get(json_object_get(decoder, "decoders"), 0);
    return strcmp(type_of(decoder), "ByteLevel") == 0 ? HEADRACE_OK
                                                      : refuse_field("decoder", decoder, "ByteLevel", err);
}

/* TemplateProcessing for one text: [bos] text. */
static headrace_status read_template(hr_tokenizer *t, const json_t *processor, headrace_error *err)
{
    const json_t *single = json_object_get(processor, "single"), *token, *ids;
    const char *name;
    size_t n = json_array_size(single);

    if (n < 1 || n > 2 || !json_object_get(json_array_get(single, n - 1), "Sequence"))
        return refuse_field("post_processor TemplateProcessing: single", single,
                            "at most one token, in front of the text", err);
    if (n == 1)
        return HEADRACE_OK;
    token = json_object_get(json_array_get(single, 0), "SpecialToken");
    name = json_string_value(json_object_get(token, "id"));
    ids = name ? json_object_get(json_object_get(json_object_get(processor, "special_tokens"), name), "ids") : NULL;
    if (!name || json_array_size(ids) != 1 || !json_is_integer(json_array_get(ids, 0)))
        return refuse_field("post_processor TemplateProcessing: single", single, "one known token in front of the text",
                            err);
    if (json_integer_value(json_array_get(ids, 0)) != hr_tokenizer_find_special(t, name, strlen(name)))
        return hr_fail(
            err, HEADRACE_E_MODEL, "post_processor: \"%.60s\" has id %lld there, and %d among the added tokens", name,
            (long long)json_integer_value(json_array_get(ids, 0)), hr_tokenizer_find_special(t, name, strlen(name)));
    t->bos = (int32_t)json_integer_value(json_array_get(ids, 0));
    t->adds_bos = true;
    return HEADRACE_OK;
}

static headrace_status read_post_processor(hr_tokenizer *t, const json_t *root, headrace_error *err)
{
    const json_t *processor = json_object_get(root, "post_processor");
    bool is_sequence = strcmp(type_of(processor), "Sequence") == 0;
    size_t n = is_sequence ? json_array_size(json_object_get(processor, "processors")) : 1;

    if (!processor || json_is_null(processor))
        return HEADRACE_OK;
    for (size_t i = 0; i < n; i++) {
        const json_t *stage = is_sequence ? json_array_get(json_object_get(processor, "processors"), i) : processor;

        if (strcmp(type_of(stage), "ByteLevel") == 0)
            continue; /* moves offsets, which are not used here */
        if (strcmp(type_of(stage), "TemplateProcessing") != 0 || t->adds_bos)
            return refuse_field("post_processor", stage, "ByteLevel and one TemplateProcessing", err);
        HR_PASS(read_template(t, stage, err));
    }
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- the file */

static headrace_status read_root(hr_tokenizer *t, const json_t *root, headrace_error *err)
{
    json_t *model = json_object_get(root, "model");

    if (!json_is_object(root))
        return hr_fail(err, HEADRACE_E_MODEL, "is not a JSON object");
    if (!is_off(json_object_get(root, "normalizer")))
        return refuse_field("normalizer", json_object_get(root, "normalizer"), "null", err);
    HR_PASS(check_model(t, model, err));
    HR_PASS(read_vocabulary(t, model, err));
    HR_PASS(read_added_tokens(t, root, err));
    HR_PASS(read_merges(t, model, err));
    HR_TRY(hr_added_tokens_init(&t->added, &t->vocabulary, err), "added_tokens");
    HR_PASS(read_pre_tokenizer(t, root, err));
    HR_PASS(check_decoder(root, err));
    HR_PASS(read_post_processor(t, root, err));
    hr_tokenizer_guess_eos(t);
    return HEADRACE_OK;
}

static headrace_status parse(const char *text, size_t len, json_t **root, headrace_error *err)
{
    json_error_t error;

    *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
    if (!*root)
        return hr_fail(err, HEADRACE_E_MODEL, "is not valid JSON: line %d, byte %d: %s", error.line, error.position,
                       error.text);
    return HEADRACE_OK;
}

headrace_status hr_tokenizer_parse_json(const char *text, size_t len, const char *path, uint32_t vocab_size,
                                        hr_tokenizer **out, headrace_error *err)
{
    headrace_status status = HEADRACE_OK;
    json_t *root = NULL;
    hr_tokenizer *t = hr_tokenizer_new(vocab_size);

    *out = NULL;
    if (!t)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the tokenizer %s", path);
    HR_TRY_GOTO(done, parse(text, len, &root, err));
    HR_TRY_GOTO(done, read_root(t, root, err));
    *out = t;
    t = NULL;
done:
    json_decref(root);
    hr_tokenizer_close(t);
    return status == HEADRACE_OK ? status : hr_prefix(err, status, "%s", path);
}

/* A token named in tokenizer_config.json as text or as an object with "content"; absent and null leave *id alone. */
static headrace_status read_named_token(const hr_tokenizer *t, const json_t *config, const char *key, int32_t *id,
                                        headrace_error *err)
{
    const json_t *value = json_object_get(config, key);

    if (json_is_object(value))
        value = json_object_get(value, "content");
    if (!value || json_is_null(value))
        return HEADRACE_OK;
    if (!json_is_string(value))
        return refuse_field(key, value, "a token's text", err);
    *id = hr_tokenizer_find_special(t, json_string_value(value), json_string_length(value));
    if (*id < 0)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: \"%.60s\" is not an added token of tokenizer.json", key,
                       json_string_value(value));
    return HEADRACE_OK;
}

static headrace_status read_config(hr_tokenizer *t, const char *path, headrace_error *err)
{
    headrace_status status;
    json_t *config = NULL;
    char *text = NULL;
    size_t len;

    HR_TRY_GOTO(done, hr_file_read(path, CONFIG_MAX, &text, &len, err));
    status = parse(text, len, &config, err);
    if (status == HEADRACE_OK && !t->adds_bos)
        status = read_named_token(t, config, "bos_token", &t->bos, err);
    if (status == HEADRACE_OK)
        status = read_named_token(t, config, "eos_token", &t->eos, err);
    if (status != HEADRACE_OK)
        (void)hr_prefix(err, status, "%s", path);
done:
    json_decref(config);
    free(text);
    return status;
}

headrace_status hr_tokenizer_open_json(const char *path, uint32_t vocab_size, hr_tokenizer **out, headrace_error *err)
{
    const char *slash = strrchr(path, '/');
    headrace_status status;
    char *text, *config_path;
    size_t len;

    *out = NULL;
    HR_PASS(hr_file_read(path, FILE_MAX, &text, &len, err));
    status = hr_tokenizer_parse_json(text, len, path, vocab_size, out, err);
    free(text);
    if (!*out)
        return status;
    if (asprintf(&config_path, "%.*stokenizer_config.json", slash ? (int)(slash - path) + 1 : 0, path) < 0)
        status = hr_fail(err, HEADRACE_E_MEMORY, "no memory for the path of tokenizer_config.json");
    else if (hr_file_exists(config_path))
        status = read_config(*out, config_path, err);
    if (status != HEADRACE_OK) {
        hr_tokenizer_close(*out);
        *out = NULL;
    }
    free(config_path);
    return status;
}

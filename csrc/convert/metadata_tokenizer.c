/* Vocabulary, special ids and chat template of a Hugging Face folder as GGUF keys. See metadata.h.
 *
 * Vocabulary and merges come from the tokenizer as it was read and checked (text/tokenizer_write.h), and so does what
 * it puts around a text: the file has to say what this folder does here, not what its other fields would do elsewhere.
 * What GGUF cannot say is refused: it names splitting expressions instead of holding them, its readers take a piece
 * that is a token as a whole, and it has two keys for end ids. So all entries are read back here, before anything is
 * written, and both readings have to give the same ids for every token's text.
 */
#include "convert/metadata.h"

#include "base/file.h"
#include "base/log.h"
#include "text/pretokenize.h"
#include "text/tokenizer_write.h"

#include <limits.h>
#include <string.h>

enum { TEMPLATE_BYTES_MAX = 1 << 20, ENDS_MAX = 2 };

/* Where 7 ends a text, every reader here takes 2 as well (hr_config_finish), and no key has to say so. */
enum { ID_IM_END = 7, ID_END_OF_TEXT = 2 };

typedef struct files {
    const hr_model *model;
    const json_t *config;                 /* config.json */
    json_t *tokenizer, *tokenizer_config; /* tokenizer.json, tokenizer_config.json; NULL: none */
    hr_tokenizer *opened;                 /* NULL: no tokenizer.json */
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

static headrace_status put_vocabulary(const files *in)
{
    if (!in->opened) {
        hr_log(HEADRACE_LOG_WARNING, "%s: no tokenizer.json: the file will hold no vocabulary", in->model->path);
        hr_gguf_put_string(in->writer, "tokenizer.ggml.model", "none", 4);
        return HEADRACE_OK;
    }
    HR_PASS(check_splitter(in));
    return hr_tokenizer_put_gguf(in->opened, in->model->arch.vocab_size, in->writer, in->err);
}

/* ---------------------------------------------------------------- what is put around a text */

/* What an empty text becomes, with bos if texts begin with one: its id, or -1. */
static headrace_status begin_of(const hr_tokenizer *tokenizer, int32_t *id, headrace_error *err)
{
    int32_t *ids;
    size_t n;

    HR_PASS(hr_tokenizer_encode(tokenizer, "", 0, HEADRACE_ENCODE_BOS, &ids, &n, err));
    *id = n > 0 ? ids[0] : -1;
    free(ids);
    return HEADRACE_OK;
}

/* tokenizer.json alone decides: add_bos_token and the like of tokenizer_config.json have no effect on a folder, nor has
 * the template for a pair of texts. All three are said, since where a key is missing readers differ. */
static headrace_status put_flags(const files *in)
{
    int32_t begin;

    HR_PASS(begin_of(in->opened, &begin, in->err));
    hr_gguf_put_bool(in->writer, "tokenizer.ggml.add_bos_token", begin >= 0);
    hr_gguf_put_bool(in->writer, "tokenizer.ggml.add_eos_token", false);
    hr_gguf_put_bool(in->writer, "tokenizer.ggml.add_sep_token", false);
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- special ids */

static const char *token_text(const json_t *value)
{
    return json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
}

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

/* id < 0: none. */
static void put_id(const files *in, const char *name, int32_t id)
{
    char key[64];

    (void)snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", name);
    if (id >= 0)
        hr_gguf_put_u32(in->writer, key, (uint32_t)id);
}

/* A folder may have two, the network's and the tokenizer's; there is one key. */
static void put_begin(const files *in)
{
    int32_t said = in->model->arch.bos_id, own = in->opened ? hr_tokenizer_bos(in->opened) : said;
    int32_t id = own >= 0 ? own : said;

    if (said >= 0 && own != said)
        hr_log(HEADRACE_LOG_WARNING,
               "%s: bos_token_id of config.json is %d and the tokenizer's is %d (-1: none); the file will say %d for "
               "both",
               in->model->path, said, own, id);
    put_id(in, "bos", id);
}

/* The ids that end a text and that a key has to name, `first` before the others if it is one of them. */
static size_t list_ends(const hr_arch *arch, int32_t first, int32_t ends[HR_EOS_MAX])
{
    bool is_implied = false;
    size_t n = 0;

    for (uint32_t i = 0; i < arch->n_eos_ids; i++) {
        is_implied = is_implied || arch->eos_ids[i] == ID_IM_END;
        if (arch->eos_ids[i] == first)
            ends[n++] = first;
    }
    for (uint32_t i = 0; i < arch->n_eos_ids; i++)
        if (arch->eos_ids[i] != first && !(is_implied && arch->eos_ids[i] == ID_END_OF_TEXT))
            ends[n++] = arch->eos_ids[i];
    return n;
}

/* All ids that end an answer of the folder, from config.json and generation_config.json: one that the file left out
 * would be run past. The tokenizer's comes first, as llama.cpp's converter has it. */
static headrace_status put_ends(const files *in)
{
    static const char *const names[ENDS_MAX] = {"eos", "eot"};
    const hr_arch *arch = &in->model->arch;
    int32_t own = in->opened ? hr_tokenizer_eos(in->opened) : -1, ends[HR_EOS_MAX];
    size_t n = list_ends(arch, own, ends);
    hr_buffer list = {0};
    headrace_status status;

    for (size_t i = 0; i < n && i < ENDS_MAX; i++)
        put_id(in, names[i], ends[i]);
    if (own >= 0 && n > 0 && ends[0] != own)
        hr_log(HEADRACE_LOG_WARNING,
               "%s: the tokenizer's end token is %d, at which config.json ends no text; the file will say %d for both",
               in->model->path, own, ends[0]);
    if (n <= ENDS_MAX)
        return HEADRACE_OK;
    for (size_t i = 0; i < n; i++)
        hr_buffer_printf(&list, "%s%d", i > 0 ? ", " : "", ends[i]);
    status = hr_fail(in->err, HEADRACE_E_UNSUPPORTED,
                     "%s: eos_token_id of config.json and generation_config.json: %s end a text; a GGUF file has room "
                     "for %d of them",
                     in->model->path, list.at ? list.at : "too many", ENDS_MAX);
    hr_buffer_deinit(&list);
    return status;
}

/* By the text in tokenizer_config.json, else by the id in config.json. */
static headrace_status put_special_ids(const files *in)
{
    static const char *const names[][2] = {
        {"unk", "unknown"}, {"sep", "seperator"}, {"pad", "padding"}, {"mask", "mask"}};

    put_begin(in);
    HR_PASS(put_ends(in));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char field[32];
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
        put_id(in, names[i][1], (int32_t)(id < 0 ? -1 : id));
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

/* False for an entry without text, without a name, or of the name "default", which has no key of its own. */
static bool has_key(const json_t *entry, char name[64])
{
    const char *given = json_string_value(json_object_get(entry, "name"));

    if (!given || !given[0] || strcmp(given, "default") == 0 || !json_is_string(json_object_get(entry, "template")))
        return false;
    clean_name(given, name);
    return true;
}

/* tokenizer_config.json may have one, or a list of named ones. Of a list this program's reader of folders takes the
 * last "default", else the first that is there: that one is the file's, whatever its name. Of equal names the last
 * counts, as in the libraries that make a table of them. */
static headrace_status put_named_templates(const files *in, const json_t *list)
{
    json_t *by_name = json_object();
    const json_t *chosen = NULL;
    const char *key;
    json_t *text;
    char name[64], full[128];
    bool ok = by_name != NULL;

    for (size_t i = 0; i < json_array_size(list) && ok; i++) {
        const json_t *each = json_array_get(list, i);
        const char *given = json_string_value(json_object_get(each, "name"));

        text = json_object_get(each, "template");
        if (json_is_string(text) && (!chosen || (given && strcmp(given, "default") == 0)))
            chosen = text;
        if (!has_key(each, name))
            continue;
        if (json_object_get(by_name, name))
            hr_log(HEADRACE_LOG_WARNING,
                   "%s/tokenizer_config.json: chat_template: '%.60s' takes the place of another one that would be '%s' "
                   "in a GGUF file, too",
                   in->model->path, given, name);
        ok = json_object_set(by_name, name, text) == 0;
    }
    json_object_foreach(by_name, key, text)
    {
        (void)snprintf(full, sizeof full, "tokenizer.chat_template.%s", key);
        hr_gguf_put_string(in->writer, full, json_string_value(text), json_string_length(text));
    }
    if (json_object_size(by_name) > 0)
        hr_gguf_put_strings(in->writer, "tokenizer.chat_templates", json_object_size(by_name));
    json_object_foreach(by_name, key, text) hr_gguf_put_element(in->writer, key, strlen(key));
    if (chosen)
        hr_gguf_put_string(in->writer, "tokenizer.chat_template", json_string_value(chosen),
                           json_string_length(chosen));
    json_decref(by_name);
    return ok ? HEADRACE_OK : hr_fail(in->err, HEADRACE_E_MEMORY, "no memory for the names of chat templates");
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
        return put_named_templates(in, value);
    }
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- together */

static headrace_status put_all(const files *in)
{
    HR_PASS(put_vocabulary(in));
    HR_PASS(put_special_ids(in));
    if (in->opened)
        HR_PASS(put_flags(in));
    return put_chat_template(in);
}

static headrace_status compare_readings(const files *in, const hr_gguf *gguf)
{
    hr_tokenizer *again = NULL;
    int32_t left = -1, right = -1;
    headrace_status status;

    HR_TRY_GOTO(done, hr_tokenizer_open_gguf(gguf, in->model->arch.vocab_size, &again, in->err));
    HR_TRY_GOTO(done, hr_tokenizer_compare(in->opened, again, in->err));
    HR_TRY_GOTO(done, begin_of(in->opened, &left, in->err));
    HR_TRY_GOTO(done, begin_of(again, &right, in->err));
    if (left != right)
        status = hr_fail(in->err, HEADRACE_E_UNSUPPORTED,
                         "a text begins with id %d (-1: none); in a GGUF file it would begin with %d", left, right);
done:
    hr_tokenizer_close(again);
    return status == HEADRACE_OK ? status : hr_prefix(in->err, status, "%s/tokenizer.json", in->model->path);
}

/* Made apart and read back; what was read is what `writer` gets. */
static headrace_status put_checked(files *in, hr_gguf_writer *writer)
{
    hr_buffer header = {0};
    hr_gguf gguf = {0};
    hr_gguf_writer alone = {0};
    headrace_status status;

    in->writer = &alone;
    HR_TRY_GOTO(done, put_all(in));
    HR_TRY_GOTO(done, hr_gguf_header(&alone, &header, in->err));
    HR_TRY_GOTO(
        done, hr_gguf_parse((const unsigned char *)header.at, header.len, "the tokenizer's metadata", &gguf, in->err));
    if (in->opened)
        HR_TRY_GOTO(done, compare_readings(in, &gguf));
    for (uint32_t i = 0; i < gguf.n_entries; i++)
        hr_gguf_put_entry(writer, &gguf.entries[i]);
done:
    hr_gguf_close(&gguf);
    hr_buffer_deinit(&header);
    hr_gguf_writer_deinit(&alone);
    return status;
}

headrace_status hr_metadata_put_tokenizer(const hr_metadata_source *source, const json_t *config,
                                          hr_gguf_writer *writer, headrace_error *err)
{
    const char *folder = source->model->path;
    files in = {.model = source->model, .config = config, .err = err};
    char path[PATH_MAX];
    headrace_status status;

    HR_TRY_GOTO(done, hr_metadata_read_json(folder, "tokenizer.json", &in.tokenizer, err));
    HR_TRY_GOTO(done, hr_metadata_read_json(folder, "tokenizer_config.json", &in.tokenizer_config, err));
    (void)snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    if (in.tokenizer)
        HR_TRY_GOTO(done, hr_tokenizer_open_json(path, source->model->arch.vocab_size, &in.opened, err));
    status = put_checked(&in, writer);
done:
    hr_tokenizer_close(in.opened);
    json_decref(in.tokenizer);
    json_decref(in.tokenizer_config);
    return status;
}

/* headrace_model: the network, and beside it the text side, each where its checkpoint keeps it.
 *
 * A checkpoint without a tokenizer or with a chat template that the interpreter does not know still computes: what is
 * missing is said by the functions that need it, not by refusing to open. Only what the caller asked for by name (a
 * template) must be there.
 */
#include "api/api.h"

#include "base/file.h"
#include "base/log.h"

#include <jansson.h>
#include <string.h>
#include <unistd.h>

enum { TEMPLATE_BYTES_MAX = 1 << 20, CONFIG_BYTES_MAX = 64 << 20 };

/* ---------------------------------------------------------------- the embedded model */

static char beside_program[4096]; /* PREFIX/share/headrace/tiny for PREFIX/bin/program; written once */

static void find_beside_program(void)
{
    char exe[2048];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);

    for (int up = 0; up < 2 && n > 0; up++) {
        char *slash;

        exe[n] = '\0';
        slash = strrchr(exe, '/');
        n = slash ? slash - exe : 0;
    }
    if (n <= 0)
        return;
    exe[n] = '\0';
    (void)snprintf(beside_program, sizeof beside_program, "%s/share/headrace/tiny", exe);
}

const char *headrace_embedded_model_path(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const char *places[] = {getenv("HEADRACE_TINY_MODEL"), beside_program, HEADRACE_INSTALLED_TINY,
                            HEADRACE_SOURCE_TINY};

    (void)pthread_once(&once, find_beside_program);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (places[i] && places[i][0] && hr_file_is_directory(places[i]))
            return places[i];
    return NULL;
}

/* ---------------------------------------------------------------- chat template */

static headrace_status parse_file(headrace_model *model, const char *path, const char *name, headrace_error *err)
{
    headrace_status status;
    size_t len = 0;
    char *text = NULL;

    HR_PASS(hr_file_read(path, TEMPLATE_BYTES_MAX, &text, &len, err));
    status = hr_chat_template_parse(name, text, len, &model->chat_template, err);
    free(text);
    return status;
}

/* What the caller named: a built-in template or a file. */
static headrace_status open_named_template(headrace_model *model, const char *name, headrace_error *err)
{
    const char *text = hr_chat_template_builtin(name);

    model->chat_template_name = hr_arena_strndup(&model->network->arena, name, strlen(name));
    if (!model->chat_template_name)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a chat template");
    if (text)
        return hr_chat_template_parse(name, text, strlen(text), &model->chat_template, err);
    if (!hr_file_exists(name))
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "chat_template",
                             "chat_template: '%s' is neither a file nor a built-in template (%s)", name,
                             hr_chat_template_builtin_names());
    return parse_file(model, name, model->chat_template_name, err);
}

/* "chat_template" of tokenizer_config.json: a text, or a list of named ones of which "default" is meant. */
static headrace_status parse_config(headrace_model *model, const char *path, bool *found, headrace_error *err)
{
    headrace_status status = HEADRACE_OK;
    json_error_t error;
    json_t *root, *value, *entry, *chosen = NULL;
    size_t len = 0, i;
    char *text = NULL;

    HR_PASS(hr_file_read(path, CONFIG_BYTES_MAX, &text, &len, err));
    root = json_loadb(text, len, JSON_ALLOW_NUL, &error);
    free(text);
    if (!root)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: byte %d: %s", path, error.position, error.text);
    value = json_object_get(root, "chat_template");
    if (json_is_string(value))
        chosen = value;
    json_array_foreach(value, i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "name"));
        json_t *body = json_object_get(entry, "template");

        if (json_is_string(body) && (!chosen || (name && strcmp(name, "default") == 0)))
            chosen = body;
    }
    *found = chosen != NULL;
    if (chosen)
        status = hr_chat_template_parse(path, json_string_value(chosen), json_string_length(chosen),
                                        &model->chat_template, err);
    json_decref(root);
    return status;
}

static headrace_status parse_folder_template(headrace_model *model, bool *found, headrace_error *err)
{
    char path[4096];

    (void)snprintf(path, sizeof path, "%s/chat_template.jinja", model->network->path);
    if (hr_file_exists(path)) {
        *found = true;
        return parse_file(model, path, path, err);
    }
    (void)snprintf(path, sizeof path, "%s/tokenizer_config.json", model->network->path);
    return hr_file_exists(path) ? parse_config(model, path, found, err) : HEADRACE_OK;
}

static headrace_status parse_gguf_template(headrace_model *model, bool *found, headrace_error *err)
{
    const hr_gguf *gguf = &model->network->gguf;
    hr_gguf_string text;

    if (!hr_gguf_find(gguf, "tokenizer.chat_template"))
        return HEADRACE_OK;
    *found = true;
    HR_PASS(hr_gguf_str(gguf, "tokenizer.chat_template", &text, err));
    if (text.len > TEMPLATE_BYTES_MAX)
        return hr_fail(err, HEADRACE_E_TEMPLATE, "tokenizer.chat_template has %llu bytes; the limit is %d",
                       (unsigned long long)text.len, TEMPLATE_BYTES_MAX);
    return hr_chat_template_parse("tokenizer.chat_template", text.at, (size_t)text.len, &model->chat_template, err);
}

/* The checkpoint's own. What is wrong with it is kept for the functions that need it. */
static void open_own_template(headrace_model *model)
{
    headrace_error *err = &model->template_error;
    bool is_gguf = model->network->format == HR_MODEL_GGUF, found = false;
    headrace_status status =
        is_gguf ? parse_gguf_template(model, &found, err) : parse_folder_template(model, &found, err);

    if (status != HEADRACE_OK) {
        size_t len = strlen(err->message);

        (void)snprintf(err->message + len, sizeof err->message - len,
                       "; give another template by name (%s) or as a Jinja file (chat_template, --chat-template)",
                       hr_chat_template_builtin_names());
        hr_log(HEADRACE_LOG_WARNING, "chat is off: %s", err->message);
    } else if (!found) {
        (void)hr_fail(
            err, HEADRACE_E_UNSUPPORTED,
            "%s has no chat template; give one by name (%s) or as a Jinja file (chat_template, --chat-template)",
            model->network->path, hr_chat_template_builtin_names());
    } else {
        model->chat_template_name = "checkpoint";
    }
}

/* ---------------------------------------------------------------- open and close */

/* "none" is how a file without text says so. */
static bool gguf_has_tokenizer(const hr_gguf *gguf)
{
    hr_gguf_string kind;

    if (!hr_gguf_find(gguf, "tokenizer.ggml.model"))
        return false;
    return hr_gguf_str(gguf, "tokenizer.ggml.model", &kind, NULL) != HEADRACE_OK || kind.len != 4 ||
           memcmp(kind.at, "none", 4) != 0;
}

static headrace_status open_tokenizer(headrace_model *model, headrace_error *err)
{
    const hr_model *network = model->network;
    char path[4096];

    if (network->format == HR_MODEL_GGUF) {
        if (!gguf_has_tokenizer(&network->gguf))
            return HEADRACE_OK;
        return hr_tokenizer_open_gguf(&network->gguf, network->arch.vocab_size, &model->tokenizer, err);
    }
    if ((size_t)snprintf(path, sizeof path, "%s/tokenizer.json", network->path) >= sizeof path)
        return hr_fail(err, HEADRACE_E_IO, "path is longer than %zu bytes", sizeof path);
    if (!hr_file_exists(path))
        return HEADRACE_OK;
    return hr_tokenizer_open_json(path, network->arch.vocab_size, &model->tokenizer, err);
}

/* "BF16", or the types by their share of the bytes. */
static void describe_dtypes(headrace_model *model)
{
    const hr_tensor_file *file = model->network->file;
    uint64_t bytes[HR_DTYPE_COUNT] = {0};
    size_t at = 0, size = sizeof model->weight_dtypes;

    if (model->network->is_dummy)
        (void)snprintf(model->weight_dtypes, size, "BF16 (dummy)");
    if (!file || file->weight_bytes == 0)
        return;
    for (uint32_t i = 0; i < file->n_tensors; i++)
        bytes[file->tensors[i].dtype] += file->tensors[i].n_bytes;
    for (int rank = 0; rank < HR_DTYPE_COUNT && at < size; rank++) {
        int best = 0, percent;

        for (int d = 1; d < HR_DTYPE_COUNT; d++)
            if (bytes[d] > bytes[best])
                best = d;
        if (bytes[best] == 0)
            break;
        percent = (int)(100.0 * (double)bytes[best] / (double)file->weight_bytes + 0.5);
        if (bytes[best] == file->weight_bytes)
            at += (size_t)snprintf(model->weight_dtypes + at, size - at, "%s", hr_dtypes[best].name);
        else
            at += (size_t)snprintf(model->weight_dtypes + at, size - at, "%s%s %s%d%%", rank > 0 ? ", " : "",
                                   hr_dtypes[best].name, percent > 0 ? "" : "<", percent > 0 ? percent : 1);
        bytes[best] = 0;
    }
}

headrace_status hr_model_find(const char *path, const char **out, headrace_error *err)
{
    if (!path || !path[0])
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "path", "path: is empty");
    *out = path;
    if (strcmp(path, "tiny") != 0 || hr_file_exists("tiny") || hr_file_is_directory("tiny"))
        return HEADRACE_OK;
    *out = headrace_embedded_model_path();
    return *out
               ? HEADRACE_OK
               : hr_fail(err, HEADRACE_E_IO, "the embedded model was not found; set HEADRACE_TINY_MODEL to its folder");
}

headrace_status headrace_model_open(const headrace_model_options *options, headrace_model **out, headrace_error *err)
{
    headrace_model_options own;
    hr_model_open_options network_options;
    headrace_model *model;
    headrace_status status;

    *out = NULL;
    headrace_model_options_init(&own);
    HR_PASS(hr_options_read(&own, sizeof own, options, "model options", err));
    HR_PASS(hr_model_find(own.path, &own.path, err));
    network_options = (hr_model_open_options){.skip_weights = own.skip_weights,
                                              .dummy_weights = own.dummy_weights,
                                              .ignore_generation_config = own.ignore_generation_config,
                                              .progress = own.progress,
                                              .progress_user = own.progress_user};
    model = calloc(1, sizeof *model);
    if (!model)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a model");
    HR_TRY_GOTO(done, hr_model_open(own.path, &network_options, &model->network, err));
    HR_TRY_GOTO(done, open_tokenizer(model, err));
    if (own.chat_template)
        HR_TRY_GOTO(done, open_named_template(model, own.chat_template, err));
    else
        open_own_template(model);
    describe_dtypes(model);
    *out = model;
    return HEADRACE_OK;
done:
    headrace_model_close(model);
    return status;
}

void headrace_model_close(headrace_model *model)
{
    if (!model)
        return;
    hr_chat_template_close(model->chat_template);
    hr_tokenizer_close(model->tokenizer);
    hr_model_close(model->network);
    free(model);
}

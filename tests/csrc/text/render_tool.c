/* Renders chat templates for tests/python/test_chat_template.py, which compares with jinja2.
 *
 * Reads one JSON object a line: {"builtin": NAME | "path": FILE | "source": TEXT, "context": {...}, "date": seconds,
 * "normalize": bool}. Writes one a line: {"text", "ranges": [[length, parse_special], ...]} or {"error", "status"}. The
 * last template is kept, so that a run over one template parses it once.
 */
#include "base/file.h"
#include "text/chat_template.h"

#include <string.h>

typedef struct tool {
    char *key; /* what `parsed` was made from */
    hr_chat_template *parsed;
} tool;

static headrace_status load(tool *t, const json_t *request, headrace_error *err)
{
    const char *builtin = json_string_value(json_object_get(request, "builtin"));
    const char *path = json_string_value(json_object_get(request, "path"));
    const char *source = json_string_value(json_object_get(request, "source"));
    const char *key = builtin ? builtin : path ? path : source ? source : "";
    const char *text = builtin ? hr_chat_template_builtin(builtin) : source;
    char *file = NULL;
    size_t len = text ? strlen(text) : 0;
    headrace_status status = HEADRACE_OK;

    if (t->parsed && strcmp(t->key, key) == 0)
        return HEADRACE_OK;
    hr_chat_template_close(t->parsed);
    t->parsed = NULL;
    free(t->key);
    t->key = strdup(key);
    if (path) {
        HR_PASS(hr_file_read(path, 1 << 20, &file, &len, err));
        text = file;
    }
    if (!text || !t->key)
        status = hr_fail(err, HEADRACE_E_ARGUMENT, "no template");
    else
        status = hr_chat_template_parse(builtin ? builtin : path ? path : "source", text, len, &t->parsed, err);
    free(file);
    return status;
}

static headrace_status answer(tool *t, const json_t *request, json_t *reply, headrace_error *err)
{
    const json_t *context = json_object_get(request, "context"), *date = json_object_get(request, "date");
    json_t *normalized = NULL, *ranges = json_array();
    hr_chat_rendering rendering;
    headrace_status status;

    (void)json_object_set_new(reply, "ranges", ranges);
    HR_PASS(load(t, request, err));
    if (json_is_true(json_object_get(request, "normalize"))) {
        normalized = hr_chat_normalize(t->parsed, context, err);
        if (!normalized)
            return err->status;
        (void)json_object_set_new(normalized, "bos_token", json_string("<|startoftext|>"));
    }
    status = hr_chat_template_render(t->parsed, normalized ? normalized : context,
                                     date ? (int64_t)json_integer_value(date) * 1000000 : -1, &rendering, err);
    json_decref(normalized);
    HR_PASS(status);
    (void)json_object_set_new(reply, "text",
                              json_stringn(rendering.text.at ? rendering.text.at : "", rendering.text.len));
    for (size_t i = 0; i < rendering.n_ranges; i++)
        (void)json_array_append_new(
            ranges, json_pack("[I, b]", (json_int_t)rendering.ranges[i].len, rendering.ranges[i].parse_special));
    hr_chat_rendering_deinit(&rendering);
    return HEADRACE_OK;
}

int main(int argc, char **argv)
{
    tool t = {0};
    char *line = NULL;
    size_t capacity = 0;
    ssize_t len;

    if (argc == 3 && strcmp(argv[1], "--builtin") == 0)
        return fputs(hr_chat_template_builtin(argv[2]), stdout) < 0;
    while ((len = getline(&line, &capacity, stdin)) > 0) {
        json_error_t json_error;
        headrace_error err = {0};
        json_t *request = json_loadb(line, (size_t)len, JSON_ALLOW_NUL, &json_error), *reply = json_object();

        if (!request)
            (void)hr_fail(&err, HEADRACE_E_ARGUMENT, "%s", json_error.text);
        if (!request || answer(&t, request, reply, &err) != HEADRACE_OK) {
            (void)json_object_set_new(reply, "error", json_string(err.message));
            (void)json_object_set_new(reply, "param", json_string(err.param));
            (void)json_object_set_new(reply, "status", json_integer(err.status));
        }
        (void)json_dumpf(reply, stdout, JSON_COMPACT);
        (void)putchar('\n');
        json_decref(reply);
        json_decref(request);
    }
    hr_chat_template_close(t.parsed);
    free(t.key);
    free(line);
    return fflush(stdout) == 0 ? 0 : 1;
}

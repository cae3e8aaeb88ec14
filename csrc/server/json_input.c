/* See json_input.h. Depth is counted before Jansson sees the text, because Jansson recurses up to its own, larger
 * limit. */
#include "server/json_input.h"

#include "base/utf8.h"

/* Whether brackets nest too deep; strings are stepped over. */
static bool is_too_deep(const char *text, size_t len)
{
    uint32_t depth = 0;
    bool in_string = false;

    for (size_t i = 0; i < len; i++) {
        char c = text[i];

        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > HR_JSON_DEPTH_MAX)
                return true;
        } else if ((c == ']' || c == '}') && depth > 0) {
            depth--;
        }
    }
    return false;
}

static const char *reason_of(const json_error_t *failure)
{
    switch (json_error_code(failure)) {
    case json_error_premature_end_of_input:
        return "it ends too early";
    case json_error_end_of_input_expected:
        return "something follows its end";
    case json_error_duplicate_key:
        return "an object has the same key twice";
    case json_error_numeric_overflow:
        return "a number is too large";
    case json_error_null_character:
    case json_error_null_byte_in_key:
        return "a key holds a NUL character";
    case json_error_invalid_utf8:
        return "a string is not valid Unicode";
    default:
        return "it breaks the syntax (a lone surrogate counts as well)";
    }
}

json_t *hr_json_parse_object(const char *text, size_t len, hr_api_error *error)
{
    json_error_t failure;
    json_t *root;
    size_t bad_offset;

    if (!hr_utf8_is_valid(text, len, &bad_offset)) {
        (void)hr_api_fail(error, HR_API_INVALID_UTF8, NULL, "The body is not valid UTF-8 at byte %zu.", bad_offset);
        return NULL;
    }
    if (is_too_deep(text, len)) {
        (void)hr_api_fail(error, HR_API_INVALID_JSON, NULL, "The body nests deeper than %d levels.", HR_JSON_DEPTH_MAX);
        return NULL;
    }
    root = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &failure);
    if (!root) {
        (void)hr_api_fail(error, HR_API_INVALID_JSON, NULL, "The body is not valid JSON: %s (line %d, column %d).",
                          reason_of(&failure), failure.line, failure.column);
        return NULL;
    }
    if (!json_is_object(root)) {
        (void)hr_api_fail(error, HR_API_INVALID_JSON, NULL, "The body must be a JSON object.");
        json_decref(root);
        return NULL;
    }
    return root;
}

/* Template text to tokens.
 *
 * White space is the delicate part: a chat template's output is compared byte for byte with what the model was trained
 * on. The rules are Jinja's with trim_blocks and lstrip_blocks: a block tag eats the newline behind it and the blanks
 * in front of it on its line,
 * `-` eats all white space on its side, `+` keeps it, one newline at the very end of the template is dropped.
 */
#include "text/jinja_ast.h"
#include "base/utf8.h"
#include "text/python_text.h"

#include <errno.h>
#include <string.h>

typedef struct lexer {
    const char *name;
    const char *text; /* newlines normalised, terminated */
    size_t len, at;
    uint32_t line;
    hr_arena *arena;
    hr_jinja_token *tokens;
    size_t n, capacity;
    char open[HR_JINJA_MAX_NESTING]; /* brackets to be closed inside the current tag */
    size_t n_open;
    headrace_error *err;
} lexer;

#define LEX_FAIL(lex, ...)                                                                                    \
    hr_prefix((lex)->err, hr_fail((lex)->err, HEADRACE_E_TEMPLATE, __VA_ARGS__), "chat template %s, line %u", \
              (lex)->name, (lex)->line)

static headrace_status add_token(lexer *lex, hr_jinja_token_kind kind, const char *text, size_t len)
{
    hr_jinja_token *token;

    if (lex->n == lex->capacity) {
        size_t capacity = lex->capacity ? lex->capacity * 2 : 256;
        hr_jinja_token *grown = hr_arena_calloc(lex->arena, capacity, sizeof *grown);

        if (!grown)
            return hr_fail(lex->err, HEADRACE_E_MEMORY, "no memory to read chat template %s", lex->name);
        if (lex->n > 0)
            memcpy(grown, lex->tokens, lex->n * sizeof *grown);
        lex->tokens = grown;
        lex->capacity = capacity;
    }
    token = &lex->tokens[lex->n++];
    *token = (hr_jinja_token){.kind = kind, .line = lex->line, .len = len};
    token->text = hr_arena_strndup(lex->arena, text, len);
    if (!token->text)
        return hr_fail(lex->err, HEADRACE_E_MEMORY, "no memory to read chat template %s", lex->name);
    return HEADRACE_OK;
}

static void move_to(lexer *lex, size_t at)
{
    while (lex->at < at) {
        if (lex->text[lex->at++] == '\n')
            lex->line++;
    }
}

static bool has(const lexer *lex, size_t at, const char *text)
{
    size_t len = strlen(text);

    return lex->len - at >= len && memcmp(lex->text + at, text, len) == 0;
}

static size_t skip_space(const lexer *lex, size_t at)
{
    return at + hr_python_leading_space(lex->text + at, lex->len - at);
}

static const char *find(const lexer *lex, size_t from, const char *text)
{
    return from < lex->len ? memmem(lex->text + from, lex->len - from, text, strlen(text)) : NULL;
}

/* Behind an end tag at `at`: what the sign in front of it and trim_blocks eat. */
static size_t behind_tag(const lexer *lex, size_t at, char sign, bool trims_newline)
{
    at += 2;
    if (sign == '-')
        return skip_space(lex, at);
    if (sign != '+' && trims_newline && at < lex->len && lex->text[at] == '\n')
        at++;
    return at;
}

/* The text in front of a tag that begins at `end`, cut as the tag's sign and lstrip_blocks say. */
static headrace_status add_data(lexer *lex, size_t end, char sign, bool lstrips)
{
    const char *text = lex->text + lex->at;
    size_t len = end - lex->at;
    bool line_starts = lex->at == 0 || lex->text[lex->at - 1] == '\n';

    if (sign == '-') {
        len = hr_python_trimmed_len(text, len);
    } else if (sign != '+' && lstrips) {
        const char *newline = memrchr(text, '\n', len);
        size_t line = newline ? (size_t)(newline - text) + 1 : 0;

        if ((line > 0 || line_starts) && hr_python_leading_space(text + line, len - line) == len - line)
            len = line;
    }
    if (len > 0)
        HR_PASS(add_token(lex, HR_JINJA_TOKEN_DATA, text, len));
    move_to(lex, end);
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- inside tags */

static headrace_status lex_string(lexer *lex)
{
    const char *from = lex->text + lex->at + 1;
    char quote = lex->text[lex->at];
    size_t end = lex->at + 1;
    hr_buffer value = {0};
    const char *problem;

    headrace_status status = HEADRACE_OK;

    while (end < lex->len && lex->text[end] != quote)
        end += lex->text[end] == '\\' ? 2 : 1;
    if (end >= lex->len)
        return LEX_FAIL(lex, "a string is not closed");
    problem = hr_python_unescape(&value, from, (size_t)(lex->text + end - from));
    if (problem)
        status = LEX_FAIL(lex, "in a string: %s", problem);
    else if (value.failed)
        status = hr_fail(lex->err, HEADRACE_E_MEMORY, "no memory to read chat template %s", lex->name);
    else
        status = add_token(lex, HR_JINJA_TOKEN_STRING, value.at ? value.at : "", value.len);
    hr_buffer_deinit(&value);
    move_to(lex, end + 1);
    return status;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Copies digits without underscores; false when they are too many. */
static size_t copy_digits(const lexer *lex, size_t at, char *out, size_t *n, size_t capacity)
{
    while (at < lex->len &&
           (is_digit(lex->text[at]) || (lex->text[at] == '_' && at + 1 < lex->len && is_digit(lex->text[at + 1])))) {
        if (is_digit(lex->text[at]) && *n + 1 < capacity)
            out[(*n)++] = lex->text[at];
        at++;
    }
    return at;
}

static headrace_status lex_based_integer(lexer *lex, int base)
{
    char *end;
    size_t at = lex->at + 2;

    errno = 0;
    long long value = strtoll(lex->text + at, &end, base);
    if (end == lex->text + at || errno != 0 || lex->text[at] == '-' || lex->text[at] == '+')
        return LEX_FAIL(lex, "a number is not readable or beyond 64 bits");
    HR_PASS(add_token(lex, HR_JINJA_TOKEN_INTEGER, lex->text + lex->at, (size_t)(end - lex->text) - lex->at));
    lex->tokens[lex->n - 1].integer = value;
    move_to(lex, (size_t)(end - lex->text));
    return HEADRACE_OK;
}

static headrace_status lex_number(lexer *lex)
{
    char digits[400];
    size_t n = 0, at = lex->at;
    bool is_real = false;
    char marker = at + 1 < lex->len && lex->text[at] == '0' ? (char)(lex->text[at + 1] | 0x20) : '\0';

    if (marker == 'x' || marker == 'o' || marker == 'b')
        return lex_based_integer(lex, marker == 'x' ? 16 : marker == 'o' ? 8 : 2);
    at = copy_digits(lex, at, digits, &n, sizeof digits - 40);
    if (at + 1 < lex->len && lex->text[at] == '.' && is_digit(lex->text[at + 1])) {
        is_real = true;
        digits[n++] = '.';
        at = copy_digits(lex, at + 1, digits, &n, sizeof digits - 20);
    }
    if (at + 1 < lex->len && (lex->text[at] | 0x20) == 'e') {
        size_t exponent = at + 1;
        bool has_sign = lex->text[exponent] == '+' || lex->text[exponent] == '-';

        if (exponent + has_sign < lex->len && is_digit(lex->text[exponent + has_sign])) {
            is_real = true;
            digits[n++] = 'e';
            if (has_sign)
                digits[n++] = lex->text[exponent];
            at = copy_digits(lex, exponent + has_sign, digits, &n, sizeof digits);
        }
    }
    digits[n] = '\0';
    if (!is_real && n > 1 && digits[0] == '0' && strspn(digits, "0") != n)
        return LEX_FAIL(lex, "a number may not begin with 0");
    HR_PASS(add_token(lex, is_real ? HR_JINJA_TOKEN_FLOAT : HR_JINJA_TOKEN_INTEGER, digits, n));
    errno = 0;
    if (is_real)
        lex->tokens[lex->n - 1].real = strtod(digits, NULL);
    else
        lex->tokens[lex->n - 1].integer = strtoll(digits, NULL, 10);
    if (!is_real && errno != 0)
        return LEX_FAIL(lex, "the number %.40s is beyond 64 bits", digits);
    move_to(lex, at);
    return HEADRACE_OK;
}

static headrace_status lex_operator(lexer *lex)
{
    static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
    char c = lex->text[lex->at];
    size_t len = 1;

    for (size_t i = 0; i < sizeof two / sizeof *two; i++) {
        if (has(lex, lex->at, two[i]))
            len = 2;
    }
    if (len == 1 && !strchr("+-/*%~[](){}><=.:|,;", c)) {
        bool is_valid;
        size_t step = hr_utf8_step(lex->text + lex->at, lex->len - lex->at, &is_valid);

        return LEX_FAIL(lex, "unexpected character '%.*s'", (int)step, lex->text + lex->at);
    }
    if (c == '(' || c == '[' || c == '{') {
        if (lex->n_open == HR_JINJA_MAX_NESTING)
            return LEX_FAIL(lex, "more than %d brackets inside each other", HR_JINJA_MAX_NESTING);
        lex->open[lex->n_open++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        if (lex->n_open == 0)
            return LEX_FAIL(lex, "unexpected '%c'", c);
        if (lex->open[--lex->n_open] != c)
            return LEX_FAIL(lex, "unexpected '%c', expected '%c'", c, lex->open[lex->n_open]);
    }
    HR_PASS(add_token(lex, HR_JINJA_TOKEN_OPERATOR, lex->text + lex->at, len));
    move_to(lex, lex->at + len);
    return HEADRACE_OK;
}

static bool is_name_character(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c);
}

/* Everything between a begin tag (already passed) and its end tag. */
static headrace_status lex_inside(lexer *lex, bool is_block)
{
    const char *end_tag = is_block ? "%}" : "}}";

    lex->n_open = 0;
    while (lex->at < lex->len) {
        char c = lex->text[lex->at];
        size_t space;

        if (lex->n_open == 0) {
            bool has_sign = c == '-' || (c == '+' && is_block);
            size_t tag = lex->at + has_sign;

            if (has(lex, tag, end_tag)) {
                HR_PASS(add_token(lex, is_block ? HR_JINJA_TOKEN_BLOCK_END : HR_JINJA_TOKEN_PRINT_END, end_tag, 2));
                move_to(lex, behind_tag(lex, tag, has_sign ? c : '\0', is_block));
                return HEADRACE_OK;
            }
        }
        space = hr_python_space(lex->text + lex->at, lex->len - lex->at);
        if (space > 0) {
            move_to(lex, lex->at + space);
        } else if (is_digit(c)) {
            HR_PASS(lex_number(lex));
        } else if (is_name_character(c)) {
            size_t end = lex->at;

            while (end < lex->len && is_name_character(lex->text[end]))
                end++;
            HR_PASS(add_token(lex, HR_JINJA_TOKEN_NAME, lex->text + lex->at, end - lex->at));
            move_to(lex, end);
        } else if (c == '\'' || c == '"') {
            HR_PASS(lex_string(lex));
        } else {
            HR_PASS(lex_operator(lex));
        }
    }
    return LEX_FAIL(lex, "the template ends inside a tag; '%s' is missing", end_tag);
}

/* ---------------------------------------------------------------- between tags */

/* Whether a raw tag begins at `tag`; *behind is where its text begins. */
static bool is_raw_tag(const lexer *lex, size_t tag, char sign, size_t *behind)
{
    size_t at = skip_space(lex, tag + 2 + (sign != '\0'));

    if (!has(lex, at, "raw"))
        return false;
    at = skip_space(lex, at + 3);
    if (has(lex, at, "-%}"))
        *behind = skip_space(lex, at + 3);
    else if (has(lex, at, "%}"))
        *behind = at + 2;
    else
        return false;
    return true;
}

static headrace_status lex_raw(lexer *lex)
{
    const char *found;

    for (size_t from = lex->at; (found = find(lex, from, "{%")) != NULL; from++) {
        size_t tag = (size_t)(found - lex->text), at = tag + 2;
        char sign = '\0', end_sign = '\0';

        from = tag;
        if (at < lex->len && (lex->text[at] == '-' || lex->text[at] == '+'))
            sign = lex->text[at++];
        at = skip_space(lex, at);
        if (!has(lex, at, "endraw"))
            continue;
        at = skip_space(lex, at + 6);
        if (at < lex->len && (lex->text[at] == '-' || lex->text[at] == '+'))
            end_sign = lex->text[at++];
        if (!has(lex, at, "%}"))
            continue;
        HR_PASS(add_data(lex, tag, sign, true));
        move_to(lex, behind_tag(lex, at, end_sign, true));
        return HEADRACE_OK;
    }
    return LEX_FAIL(lex, "{%% raw %%} is not closed; {%% endraw %%} is missing");
}

static headrace_status lex_comment(lexer *lex)
{
    const char *found = find(lex, lex->at, "#}");
    size_t end = found ? (size_t)(found - lex->text) : 0;
    char sign = '\0';

    if (!found)
        return LEX_FAIL(lex, "a comment is not closed; '#}' is missing");
    if (end > lex->at && (lex->text[end - 1] == '-' || lex->text[end - 1] == '+'))
        sign = lex->text[end - 1];
    move_to(lex, behind_tag(lex, end, sign, true));
    return HEADRACE_OK;
}

static headrace_status lex_tag(lexer *lex, size_t tag)
{
    char kind = lex->text[tag + 1], sign = '\0';
    size_t behind;

    if (tag + 2 < lex->len && (lex->text[tag + 2] == '-' || lex->text[tag + 2] == '+'))
        sign = lex->text[tag + 2];
    HR_PASS(add_data(lex, tag, sign, kind != '{'));
    if (kind == '%' && is_raw_tag(lex, tag, sign, &behind)) {
        move_to(lex, behind);
        return lex_raw(lex);
    }
    if (kind != '#')
        HR_PASS(
            add_token(lex, kind == '%' ? HR_JINJA_TOKEN_BLOCK_BEGIN : HR_JINJA_TOKEN_PRINT_BEGIN, lex->text + tag, 2));
    move_to(lex, tag + 2 + (sign != '\0'));
    return kind == '#' ? lex_comment(lex) : lex_inside(lex, kind == '%');
}

/* A copy with \r\n and \r as \n, without one newline at the end. */
static char *normalise(const char *text, size_t *len, hr_arena *arena)
{
    char *copy = hr_arena_alloc(arena, *len + 1);
    size_t n = 0;

    for (size_t i = 0; copy && i < *len; i++) {
        if (text[i] == '\r' && i + 1 < *len && text[i + 1] == '\n')
            continue;
        copy[n++] = text[i] == '\r' ? '\n' : text[i];
    }
    if (n > 0 && copy[n - 1] == '\n')
        n--;
    if (copy)
        copy[n] = '\0';
    *len = n;
    return copy;
}

headrace_status hr_jinja_lex(const char *name, const char *text, size_t len, hr_arena *arena, hr_jinja_token **tokens,
                             headrace_error *err)
{
    lexer lex = {.name = name, .line = 1, .arena = arena, .err = err};
    size_t bad;

    if (len > HR_JINJA_MAX_TEXT)
        return hr_fail(err, HEADRACE_E_TEMPLATE, "chat template %s has %zu bytes; at most %d are read", name, len,
                       HR_JINJA_MAX_TEXT);
    if (!hr_utf8_is_valid(text, len, &bad))
        return hr_fail(err, HEADRACE_E_TEMPLATE, "chat template %s is not valid UTF-8 at byte %zu", name, bad);
    lex.len = len;
    lex.text = normalise(text, &lex.len, arena);
    if (!lex.text)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory to read chat template %s", name);
    while (lex.at < lex.len) {
        size_t tag = lex.at;

        while (tag + 1 < lex.len && !(lex.text[tag] == '{' && (lex.text[tag + 1] == '%' || lex.text[tag + 1] == '{' ||
                                                               lex.text[tag + 1] == '#')))
            tag++;
        if (tag + 1 >= lex.len)
            HR_PASS(add_data(&lex, lex.len, '+', false));
        else
            HR_PASS(lex_tag(&lex, tag));
    }
    HR_PASS(add_token(&lex, HR_JINJA_TOKEN_EOF, "", 0));
    *tokens = lex.tokens;
    return HEADRACE_OK;
}

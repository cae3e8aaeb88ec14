/* See pretokenize.h.
 *
 * The expression comes from the model file and was written for Oniguruma; PCRE2 runs it. The two agree on the small
 * common language that such splitters use, and differ in corners that would change ids silently (\h, \w, scripts,
 * nested classes, anchors,
 * {,n}). So the pattern is read first, and anything outside the common language is refused by name. White space and the
 * classes of new characters are made equal by new_characters.c.
 *
 * Time: with the family's expressions every failed attempt at a position is followed by a match about as long as what
 * was scanned, so that the whole is linear; runs of a million blanks are one scan. The match limit grows with the text
 * for the interpreter, which counts each step back, and still stops an expression that blows up.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pretokenize.h"

#include "text/new_characters.h"

#include <pcre2.h>
#include <string.h>

const char hr_splitter_lfm2[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

enum {
    PATTERN_MAX = 4096,
    MATCH_LIMIT_BASE = 1000000,
    MATCH_LIMIT_PER_BYTE = 16,
    HEAP_LIMIT_KIB = 64 * 1024, /* the interpreter's backtracking points */
    JIT_STACK_MIN = 32 * 1024,
    JIT_STACK_MAX = 4 * 1024 * 1024,
};

static bool is_one_of(char c, const char *set)
{
    return c != '\0' && strchr(set, c) != NULL;
}

/* The length of an escape at p ("\s", "\p{L}") that both libraries read alike, or 0. */
static size_t known_escape(const char *p, size_t len)
{
    static const char *const categories[] = {"L", "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me",
                                             "N", "Nd", "Nl", "No", "P",  "S",  "Sm", "Sc", "Sk", "So"};

    if (len < 2)
        return 0;
    if (is_one_of(p[1], "sSdDrnt.*+?()[]{}|^$/\\-'\"<>#&@!%,;:=_~`"))
        return 2;
    if (!is_one_of(p[1], "pP"))
        return 0;
    for (size_t i = 0; i < sizeof categories / sizeof categories[0]; i++) {
        size_t n = strlen(categories[i]);

        if (len >= n + 4 && p[2] == '{' && p[3 + n] == '}' && memcmp(p + 3, categories[i], n) == 0)
            return n + 4;
    }
    return 0;
}

static headrace_status refuse(const char *pattern, size_t len, size_t at, headrace_error *err)
{
    return hr_fail(err, HEADRACE_E_MODEL,
                   "the splitting expression uses \"%.*s\" at byte %zu, which is outside the supported common language "
                   "of Oniguruma and PCRE2",
                   (int)(len - at < 12 ? len - at : 12), pattern + at, at);
}

/* Checks what stands at p outside a class and returns its length, 0 when it is not in the common language. */
static size_t known_construct(const char *p, size_t len)
{
    static const char *const groups[] = {"(?:", "(?i:", "(?=", "(?!", "(?>"};

    if (*p == '\\')
        return known_escape(p, len);
    if (is_one_of(*p, "^$"))
        return 0; /* Oniguruma's match at line ends */
    if (*p == '{')
        return len > 1 && p[1] >= '0' && p[1] <= '9';
    if (*p == '}')
        return !(len > 1 && p[1] == '+');                     /* possessive here, a repeated repeat there */
    if (*p != '(' || len < 2 || (p[1] != '?' && p[1] != '*')) /* "(*": settings of PCRE2 */
        return 1;
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        if (len >= strlen(groups[i]) && memcmp(p, groups[i], strlen(groups[i])) == 0)
            return strlen(groups[i]);
    }
    return 0;
}

static headrace_status check_common(const char *pattern, size_t len, headrace_error *err)
{
    bool is_class = false;

    for (size_t i = 0, step; i < len; i += step) {
        const char *p = pattern + i;

        if (!is_class) {
            step = known_construct(p, len - i);
            is_class = *p == '[';
            if (is_class && len - i > 1)
                step += p[1] == '^';
            if (is_class && i + step < len && pattern[i + step] == ']')
                return refuse(pattern, len, i, err); /* an empty class, or one that begins with a bracket */
        } else {
            step = *p == '\\' ? known_escape(p, len - i) : 1;
            if (*p == '[' || (*p == '&' && len - i > 1 && p[1] == '&'))
                step = 0; /* nested and intersected classes */
            is_class = *p != ']';
        }
        if (step == 0)
            return refuse(pattern, len, i, err);
    }
    return HEADRACE_OK;
}

headrace_status hr_splitter_init(hr_splitter *splitter, const char *pattern, size_t len, headrace_error *err)
{
    pcre2_compile_context *context;
    int code = 0;
    PCRE2_SIZE offset = 0;
    uint32_t matches_empty = 0;

    *splitter = (hr_splitter){0};
    if (len == 0 || len > PATTERN_MAX)
        return hr_fail(err, HEADRACE_E_MODEL, "the splitting expression has %zu bytes; 1 .. %d are supported", len,
                       PATTERN_MAX);
    HR_PASS(check_common(pattern, len, err));
    context = pcre2_compile_context_create(NULL);
    if (!context)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the splitting expression");
    (void)pcre2_set_newline(context, PCRE2_NEWLINE_LF); /* for '.', as in Oniguruma */
    splitter->code = pcre2_compile((PCRE2_SPTR)pattern, len, PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code,
                                   &offset, context);
    pcre2_compile_context_free(context);
    if (!splitter->code) {
        PCRE2_UCHAR reason[128] = "";

        (void)pcre2_get_error_message(code, reason, sizeof reason);
        return hr_fail(err, HEADRACE_E_MODEL, "the splitting expression is wrong at byte %zu: %s", (size_t)offset,
                       (const char *)reason);
    }
    (void)pcre2_pattern_info(splitter->code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
    if (matches_empty) {
        hr_splitter_deinit(splitter);
        return hr_fail(err, HEADRACE_E_MODEL, "the splitting expression can match an empty text");
    }
    splitter->is_jit = pcre2_jit_compile(splitter->code, PCRE2_JIT_COMPLETE) == 0;
    return HEADRACE_OK;
}

void hr_splitter_deinit(hr_splitter *splitter)
{
    pcre2_code_free(splitter->code);
    *splitter = (hr_splitter){0};
}

headrace_status hr_split_walk_init(hr_split_walk *walk, const hr_splitter *splitter, headrace_error *err)
{
    *walk = (hr_split_walk){0};
    walk->match = pcre2_match_data_create(1, NULL);
    walk->context = pcre2_match_context_create(NULL);
    if (splitter->is_jit)
        walk->stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, NULL);
    if (!walk->match || !walk->context || (splitter->is_jit && !walk->stack)) {
        hr_split_walk_deinit(walk);
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for splitting text");
    }
    (void)pcre2_set_heap_limit(walk->context, HEAP_LIMIT_KIB);
    if (walk->stack)
        pcre2_jit_stack_assign(walk->context, NULL, walk->stack);
    return HEADRACE_OK;
}

void hr_split_walk_deinit(hr_split_walk *walk)
{
    pcre2_match_data_free(walk->match);
    pcre2_match_context_free(walk->context);
    pcre2_jit_stack_free(walk->stack);
    hr_buffer_deinit(&walk->replaced);
    *walk = (hr_split_walk){0};
}

headrace_status hr_split_begin(hr_split_walk *walk, const char *text, size_t len, headrace_error *err)
{
    uint64_t limit = MATCH_LIMIT_BASE + (uint64_t)len * MATCH_LIMIT_PER_BYTE;

    (void)pcre2_set_match_limit(walk->context, limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX);
    walk->text = text;
    if (hr_replace_new_characters(text, len, &walk->replaced)) {
        if (walk->replaced.failed) {
            hr_buffer_deinit(&walk->replaced);
            return hr_fail(err, HEADRACE_E_MEMORY, "no memory for splitting %zu bytes of text", len);
        }
        walk->text = walk->replaced.at;
    }
    walk->len = len;
    walk->at = walk->match_begin = walk->match_end = 0;
    return HEADRACE_OK;
}

headrace_status hr_split_next(hr_split_walk *walk, const hr_splitter *splitter, size_t *piece_len, headrace_error *err)
{
    size_t end;

    *piece_len = 0;
    if (walk->at == walk->len)
        return HEADRACE_OK;
    if (walk->match_end <= walk->at) { /* nothing found ahead */
        const PCRE2_SIZE *found;
        int rc = pcre2_match(splitter->code, (PCRE2_SPTR)walk->text, walk->len, walk->at,
                             PCRE2_NO_UTF_CHECK | (splitter->is_jit ? 0 : PCRE2_NO_JIT), walk->match, walk->context);

        if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
            PCRE2_UCHAR reason[128] = "";

            (void)pcre2_get_error_message(rc, reason, sizeof reason);
            return hr_fail(err, HEADRACE_E_UNSUPPORTED, "splitting the text failed at byte %zu of %zu: %s", walk->at,
                           walk->len, (const char *)reason);
        }
        found = pcre2_get_ovector_pointer(walk->match);
        walk->match_begin = rc < 0 ? walk->len : found[0];
        walk->match_end = rc < 0 ? walk->len : found[1];
    }
    end = walk->match_begin > walk->at ? walk->match_begin : walk->match_end;
    HR_ASSERT(end > walk->at);
    *piece_len = end - walk->at;
    walk->at = end;
    return HEADRACE_OK;
}

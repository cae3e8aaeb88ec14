/* See model_id.h. Everything is ASCII rules: other characters are letters without case. */
#include "convert/model_id.h"

#include <ctype.h>
#include <math.h>
#include <string.h>
#include <strings.h>

enum { PARTS_MAX = 64 };

/* What a part between two hyphens may be. */
enum { BASENAME = 1, SIZE = 2, FINETUNE = 4, VERSION = 8, TYPE = 16 };

typedef struct part {
    char text[HR_MODEL_ID_MAX];
    unsigned kinds;
} part;

typedef struct parts {
    part at[PARTS_MAX];
    uint32_t n;
} parts;

/* ---------------------------------------------------------------- what one part looks like */

static size_t digits(const char *text)
{
    return strspn(text, "0123456789");
}

/* (v|iter)?N(.N)* */
static bool is_version(const char *text)
{
    if (strncasecmp(text, "iter", 4) == 0)
        text += 4;
    else if (tolower((unsigned char)*text) == 'v')
        text++;
    for (;;) {
        size_t n = digits(text);

        if (n == 0)
            return false;
        text += n;
        if (*text == '\0')
            return true;
        if (*text++ != '.')
            return false;
    }
}

/* A quantised or floating type: i?qN(_C)*, b?fp?(16|32). */
static bool is_type(const char *text)
{
    const char *at = text;

    if (tolower((unsigned char)*at) == 'i')
        at++;
    if (tolower((unsigned char)at[0]) == 'q' && isdigit((unsigned char)at[1])) {
        for (at += 2; at[0] == '_' && (isalnum((unsigned char)at[1]) || at[1] == '_'); at += 2)
            continue;
        return *at == '\0';
    }
    at = text + (tolower((unsigned char)*text) == 'b');
    if (tolower((unsigned char)*at++) != 'f')
        return false;
    at += tolower((unsigned char)*at) == 'p';
    return strcmp(at, "16") == 0 || strcmp(at, "32") == 0;
}

/* (A|Nx)?N([._]N)?[KMBT]N?, or a word for a size. */
static bool is_size(const char *text)
{
    static const char *const words[] = {"small", "mini", "medium", "large", "xl", "xxl"};
    size_t n;

    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcasecmp(text, words[i]) == 0)
            return true;
    n = digits(text);
    if (n > 0 && tolower((unsigned char)text[n]) == 'x')
        text += n + 1;
    else if (tolower((unsigned char)*text) == 'a')
        text++;
    n = digits(text);
    if (n == 0)
        return false;
    text += n;
    if (*text == '.' || *text == '_') {
        n = digits(text + 1);
        if (n == 0)
            return false;
        text += n + 1;
    }
    if (*text == '\0' || !strchr("kmbtKMBT", *text))
        return false;
    text++;
    return *text == '\0' || (isdigit((unsigned char)*text) && text[1] == '\0');
}

static bool is_finetune(const char *text)
{
    static const char *const words[] = {"chat", "instruct", "vision", "lora"};

    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcasecmp(text, words[i]) == 0)
            return true;
    return false;
}

/* Normalises a size in place ("7b1" is 7.1B) and tells whether it is one: a number far from the parameters is a
 * context's length or the like. */
static void read_size(part *p, uint64_t n_parameters)
{
    char *text = p->text, *end;
    size_t len = strlen(text);
    double value;

    for (char *c = text; *c; c++)
        if (*c == '_')
            *c = '.';
    if (isdigit((unsigned char)text[len - 1]) && len + 1 < sizeof p->text) {
        char unit = text[len - 2], digit = text[len - 1];

        (void)snprintf(text + len - 2, 4, ".%c%c", digit, unit);
        len++;
    }
    if (len > 1 && isdigit((unsigned char)text[len - 2]) && strchr("kmbt", text[len - 1]))
        text[len - 1] = (char)toupper((unsigned char)text[len - 1]);
    value = strtod(text, &end);
    if (n_parameters > 0 && end == text + len - 1 && strchr("KMBT", text[len - 1])) {
        double size = value * pow(1000, (double)(strchr("KMBT", text[len - 1]) - "KMBT" + 1));

        if (fabs(size - (double)n_parameters) > floor(7 * (double)n_parameters / 8)) {
            p->kinds |= FINETUNE;
            text[len - 1] = (char)tolower((unsigned char)text[len - 1]);
        }
    }
    if (p->kinds == 0)
        p->kinds = SIZE;
}

static void read_part(part *p, bool is_first, uint64_t n_parameters)
{
    if (is_version(p->text)) {
        p->kinds = VERSION;
    } else if (is_type(p->text)) {
        p->kinds = TYPE;
        for (char *c = p->text; *c; c++)
            *c = (char)toupper((unsigned char)*c);
    } else if (!is_first && is_size(p->text)) {
        read_size(p, n_parameters);
    } else if (!is_first && is_finetune(p->text)) {
        p->kinds = FINETUNE;
    }
}

/* ---------------------------------------------------------------- the parts together */

static bool has_digit(const char *text)
{
    return text[strcspn(text, "0123456789")] != '\0';
}

/* Words for a size say nothing where a number stands beside them. */
static void drop_size_words(parts *p)
{
    bool has_number = false;

    for (uint32_t i = 0; i < p->n; i++)
        has_number = has_number || (p->at[i].kinds & SIZE && has_digit(p->at[i].text));
    for (uint32_t i = 0; i < p->n && has_number; i++)
        if (p->at[i].kinds & SIZE && !has_digit(p->at[i].text))
            p->at[i].kinds &= ~(unsigned)SIZE;
}

/* The first words are the base name, with a version among them; a version at its end is a version. */
static void find_basename(parts *p)
{
    bool at_start = true;

    for (uint32_t i = 0; i < p->n; i++) {
        part *each = &p->at[i];
        bool is_word = each->kinds == 0 && !isdigit((unsigned char)each->text[0]) &&
                       (isalpha((unsigned char)each->text[0]) || (unsigned char)each->text[0] >= 0x80);

        if (at_start && (is_word || each->kinds & VERSION)) {
            each->kinds |= BASENAME;
            continue;
        }
        at_start = false;
        if (each->kinds == 0)
            each->kinds = FINETUNE;
    }
    for (uint32_t i = p->n; i-- > 0;) {
        if (!(p->at[i].kinds & BASENAME) || p->at[i].kinds == BASENAME)
            break;
        p->at[i].kinds &= ~(unsigned)BASENAME;
    }
}

/* The parts of a kind with hyphens between them. */
static void join(const parts *p, unsigned kind, unsigned but_not, bool once, char out[HR_MODEL_ID_MAX])
{
    size_t used = 0;

    out[0] = '\0';
    for (uint32_t i = 0; i < p->n; i++) {
        bool is_new = true;

        for (uint32_t j = 0; j < i && once; j++)
            is_new = is_new && !(p->at[j].kinds & kind && strcmp(p->at[j].text, p->at[i].text) == 0);
        if (p->at[i].kinds & kind && !(p->at[i].kinds & but_not) && is_new && used < HR_MODEL_ID_MAX)
            used += (size_t)snprintf(out + used, HR_MODEL_ID_MAX - used, "%s%s", used ? "-" : "", p->at[i].text);
    }
}

static void split(const char *name, parts *p)
{
    while (*name && p->n < PARTS_MAX) {
        size_t len = strcspn(name, "-");

        if (len > 0)
            (void)snprintf(p->at[p->n++].text, HR_MODEL_ID_MAX, "%.*s", (int)len, name);
        name += len + (name[len] == '-');
    }
}

headrace_status hr_model_id_parse(const char *text, uint64_t n_parameters, hr_model_id *out, headrace_error *err)
{
    const char *slash = strchr(text, '/'), *name = slash ? slash + 1 : text;
    parts *p;

    *out = (hr_model_id){0};
    (void)snprintf(out->name, sizeof out->name, "%s", name);
    if (strlen(text) >= HR_MODEL_ID_MAX || strchr(text, ' ')) {
        if (strchr(text, ' '))
            (void)snprintf(out->name, sizeof out->name, "%s", text);
        return HEADRACE_OK;
    }
    if (slash && text[0] != '.')
        (void)snprintf(out->organization, sizeof out->organization, "%.*s", (int)(slash - text), text);
    p = calloc(1, sizeof *p);
    if (!p)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a model's name");
    split(name, p);
    for (uint32_t i = 0; i < p->n; i++)
        read_part(&p->at[i], i == 0, n_parameters);
    drop_size_words(p);
    find_basename(p);
    join(p, BASENAME, 0, false, out->basename);
    join(p, SIZE, 0, true, out->size_label);
    join(p, FINETUNE, 0, false, out->finetune);
    join(p, VERSION, BASENAME, false, out->version);
    if (!out->size_label[0] && !out->finetune[0] && !out->version[0])
        out->basename[0] = '\0'; /* one word could be anything */
    free(p);
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- texts */

/* All letters small, and at least one of them; a version ("v2.1", "1.2b") is left alone. */
static bool wants_capital(const char *word, size_t len)
{
    size_t at = word[0] == 'v' ? 1 : 0;
    bool has_letter = false;

    if (isdigit((unsigned char)word[0]))
        return false;
    if (at && len > 1) {
        while (at < len && (isdigit((unsigned char)word[at]) || (word[at] == '.' && at > 1)))
            at++;
        if (at == len)
            return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (isupper((unsigned char)word[i]))
            return false;
        has_letter = has_letter || islower((unsigned char)word[i]);
    }
    return has_letter;
}

void hr_model_id_title(const char *text, char out[HR_MODEL_ID_MAX])
{
    size_t used = 0;

    while (*text) {
        size_t len;
        bool begins = true, capital;

        text += strspn(text, "- \t\r\n");
        len = strcspn(text, "- \t\r\n");
        capital = len > 0 && wants_capital(text, len);
        if (len > 0 && used > 0 && used + 1 < HR_MODEL_ID_MAX)
            out[used++] = ' ';
        for (size_t i = 0; i < len && used + 1 < HR_MODEL_ID_MAX; i++) {
            bool is_letter = isalpha((unsigned char)text[i]) || (unsigned char)text[i] >= 0x80;

            out[used++] = capital && begins ? (char)toupper((unsigned char)text[i]) : text[i];
            begins = !is_letter;
        }
        text += len;
    }
    out[used] = '\0';
}

void hr_model_size_text(uint64_t n_parameters, char out[32])
{
    static const double units[] = {1e3, 1e6, 1e9, 1e12};
    int unit = 0, n_digits;
    double value;
    char whole[32];

    while (unit < 3 && (double)n_parameters > units[unit + 1])
        unit++;
    value = (double)n_parameters / units[unit];
    n_digits = snprintf(whole, sizeof whole, "%.0f", value);
    if (whole[0] == '0')
        n_digits = 0;
    (void)snprintf(out, 32, "%.*f%c", n_digits < 2 ? 2 - n_digits : 0, value, "KMBT"[unit]);
}

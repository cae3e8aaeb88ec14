/* See options.h. */
#include "cli/options.h"

#include "base/file.h"
#include "base/status.h"
#include "cli/option_table.h"

#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_BASE = 0x1000, KEY_NO_BASE = 0x2000, LIST_MAX = 64, ARGUMENTS_MAX = 8, CONFIG_BYTES_MAX = 1 << 20 };

typedef enum source {
    SOURCE_NONE,
    SOURCE_DEFAULT,
    SOURCE_CONFIG,
    SOURCE_ENVIRONMENT,
    SOURCE_FLAG = HR_RANK_FLAG
} source;
static const char *const source_names[] = {"unset", "default", "config file", "environment", "flag"};

typedef struct value {
    char *items[LIST_MAX]; /* owned; scalars use the first */
    uint32_t n;
    source from;
} value;

struct hr_options {
    unsigned command;
    const char *name;
    value *values; /* one a row of the table */
    const char *arguments[ARGUMENTS_MAX];
    uint32_t n_arguments, min_arguments, max_arguments;
};

static void usage_error(const hr_options *options, const char *format, ...)
    __attribute__((format(printf, 2, 3), noreturn));

static void usage_error(const hr_options *options, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    (void)fputs("headrace: ", stderr);
    (void)vfprintf(stderr, format, args);
    (void)fprintf(stderr, "\nTry `headrace %s --help`.\n", options->name);
    va_end(args);
    exit(HR_EXIT_USAGE);
}

static char *copy_text(const char *text, size_t len)
{
    char *copy = strndup(text, len);

    HR_ASSERT(copy);
    return copy;
}

/* ---------------------------------------------------------------- setting values */

static void clear_value(value *v)
{
    for (uint32_t i = 0; i < v->n; i++)
        free(v->items[i]);
    v->n = 0;
}

static bool parse_bool(const char *text, bool *out)
{
    static const char *const yes[] = {"yes", "true", "1", "on"}, *const no[] = {"no", "false", "0", "off"};

    for (uint32_t i = 0; i < 4; i++) {
        if (strcasecmp(text, yes[i]) == 0 || strcasecmp(text, no[i]) == 0) {
            *out = strcasecmp(text, yes[i]) == 0;
            return true;
        }
    }
    return false;
}

static bool parse_uint(const char *text, uint64_t *out)
{
    char *end;

    if (!isdigit((unsigned char)text[0]))
        return false;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return errno == 0 && *end == '\0';
}

static bool parse_size(const char *text, uint64_t *out)
{
    static const struct {
        const char *suffix;
        uint64_t factor;
    } units[] = {{"", 1},          {"k", 1000},      {"m", 1000000},  {"g", 1000000000}, {"ki", 1 << 10},
                 {"mi", 1 << 20},  {"gi", 1 << 30},  {"kb", 1000},    {"mb", 1000000},   {"gb", 1000000000},
                 {"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30}};
    char *end;
    double number;

    if (!isdigit((unsigned char)text[0]))
        return false;
    number = strtod(text, &end);
    while (*end == ' ')
        end++;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcasecmp(end, units[i].suffix) == 0) {
            number *= (double)units[i].factor;
            if (!(number < 0x1p63))
                return false;
            *out = (uint64_t)number;
            return true;
        }
    }
    return false;
}

static bool parse_real(const char *text, double *out)
{
    char *end;

    errno = 0;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*out);
}

/* Whether text is a value of the option's kind; *wanted says what would be. */
static bool is_valid(const hr_option_def *def, const char *text, const char **wanted)
{
    uint64_t u;
    double r;
    bool b;

    switch (def->kind) {
    case HR_OPTION_UINT:
        *wanted = "a whole number, 0 to 4294967295";
        return parse_uint(text, &u) && u <= UINT32_MAX;
    case HR_OPTION_UINT64:
        *wanted = "a whole number, 0 to 18446744073709551615";
        return parse_uint(text, &u);
    case HR_OPTION_SIZE:
        *wanted = "a size such as 512mi, 4g or 4gi";
        return parse_size(text, &u);
    case HR_OPTION_REAL:
        *wanted = "a number";
        return parse_real(text, &r);
    case HR_OPTION_BOOL:
        *wanted = "yes or no";
        return parse_bool(text, &b);
    case HR_OPTION_TEXT:
        *wanted = def->value;
        if (!strchr(def->value, '|') || strstr(def->value, "FILE"))
            return true;
        for (const char *at = def->value; *at; at += strcspn(at, "|"), at += *at == '|') {
            size_t len = strcspn(at, "|");

            if (strlen(text) == len && strncmp(at, text, len) == 0)
                return true;
            if (len > 2 && at[len - 1] == 'N' && at[len - 2] == ':' && strncmp(at, text, len - 1) == 0 &&
                parse_uint(text + len - 1, &u))
                return true; /* NAME:N takes a number behind the colon */
        }
        return false;
    case HR_OPTION_LIST:
        break;
    }
    return true;
}

static void set_value(hr_options *options, uint32_t row, const char *text, source from)
{
    const hr_option_def *def = &hr_option_table[row];
    value *v = &options->values[row];
    const char *wanted;

    if (v->from > from)
        return;
    if (!is_valid(def, text, &wanted))
        usage_error(options, "--%s (%s): \"%s\" is not right here; it takes %s", def->name, source_names[from], text,
                    wanted);
    if (v->from < from || def->kind != HR_OPTION_LIST)
        clear_value(v);
    v->from = from;
    /* Keys and stop texts may hold commas: only the names that never do are split. */
    bool is_whole = strcmp(def->name, "stop") == 0 || strcmp(def->name, "api-key") == 0;
    const char *separators = def->kind == HR_OPTION_LIST && !is_whole ? "," : "";
    for (const char *at = text;;) {
        size_t len = *separators ? strcspn(at, separators) : strlen(at);

        if (v->n == LIST_MAX)
            usage_error(options, "--%s is given more than %d times", def->name, LIST_MAX);
        v->items[v->n++] = copy_text(at, len);
        if (at[len] == '\0')
            break;
        at += len + 1;
    }
}

static uint32_t find_row(const hr_options *options, const char *name, size_t len)
{
    for (uint32_t i = 0; i < hr_option_count; i++) {
        const hr_option_def *def = &hr_option_table[i];

        if ((def->commands & options->command) == 0)
            continue;
        if ((strlen(def->name) == len && strncmp(def->name, name, len) == 0) ||
            (def->alias && strlen(def->alias) == len && strncmp(def->alias, name, len) == 0))
            return i;
    }
    return UINT32_MAX;
}

/* ---------------------------------------------------------------- the four sources */

static void read_defaults(hr_options *options)
{
    for (uint32_t i = 0; i < hr_option_count; i++) {
        if (hr_option_table[i].initial && (hr_option_table[i].commands & options->command))
            set_value(options, i, hr_option_table[i].initial, SOURCE_DEFAULT);
    }
}

static void read_environment(hr_options *options)
{
    for (uint32_t i = 0; i < hr_option_count; i++) {
        char name[64] = "HEADRACE_";
        size_t n = strlen(name);
        const char *text;

        if ((hr_option_table[i].commands & options->command) == 0)
            continue;
        for (const char *at = hr_option_table[i].name; *at && n + 1 < sizeof name; at++)
            name[n++] = *at == '-' ? '_' : (char)toupper((unsigned char)*at);
        name[n] = '\0';
        text = getenv(name);
        if (text && *text)
            set_value(options, i, text, SOURCE_ENVIRONMENT);
    }
}

/* "value  # why": what --print-config writes can be read back. A # inside a word belongs to the word. */
static void cut_comment(char *text)
{
    for (char *at = text; (at = strchr(at, '#')); at++) {
        if (at == text || isspace((unsigned char)at[-1])) {
            *at = '\0';
            return;
        }
    }
}

static void read_config_line(hr_options *options, const char *path, unsigned number, char *line)
{
    char *name = line + strspn(line, " \t"), *equals, *text, *end;
    uint32_t row;

    if (*name == '\0' || *name == '#')
        return;
    equals = strchr(name, '=');
    if (!equals)
        usage_error(options, "%s, line %u: expected `name = value`", path, number);
    for (end = equals; end > name && isspace((unsigned char)end[-1]);)
        end--;
    row = find_row(options, name, (size_t)(end - name));
    text = equals + 1 + strspn(equals + 1, " \t");
    if (*text != '"')
        cut_comment(text);
    end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1]))
        *--end = '\0';
    if (end - text >= 2 && text[0] == '"' && end[-1] == '"') {
        end[-1] = '\0';
        text++;
    }
    if (row == UINT32_MAX)
        usage_error(options, "%s, line %u: `headrace %s` has no option \"%.*s\"", path, number, options->name,
                    (int)strcspn(name, " \t="), name);
    if (*text == '\0') /* unset, as --print-config writes it */
        return;
    set_value(options, row, text, SOURCE_CONFIG);
}

static void read_config(hr_options *options)
{
    const char *path = hr_option_text(options, "config");
    headrace_error err = {0};
    char *text, *next;
    size_t len;
    unsigned number = 0;

    if (!path)
        return;
    if (hr_file_read(path, CONFIG_BYTES_MAX, &text, &len, &err) != HEADRACE_OK)
        usage_error(options, "--config: %s", err.message);
    for (char *line = text; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        read_config_line(options, path, ++number, line);
    }
    free(text);
}

static error_t on_argument(int key, char *text, struct argp_state *state)
{
    hr_options *options = state->input;

    if (key == ARGP_KEY_ARG) {
        if (options->n_arguments == options->max_arguments)
            usage_error(options, "unexpected argument \"%s\"", text);
        options->arguments[options->n_arguments++] = text;
        return 0;
    }
    for (uint32_t i = 0; i < hr_option_count; i++) {
        const hr_option_def *def = &hr_option_table[i];

        if ((def->commands & options->command) == 0)
            continue;
        if (key == KEY_NO_BASE + (int)i && def->kind == HR_OPTION_BOOL) {
            set_value(options, i, "no", SOURCE_FLAG);
            return 0;
        }
        if (key == KEY_BASE + (int)i || (def->key && key == def->key)) {
            set_value(options, i, def->kind == HR_OPTION_BOOL ? (text ? text : "yes") : text, SOURCE_FLAG);
            return 0;
        }
    }
    return ARGP_ERR_UNKNOWN;
}

/* The help line of an option with its default, where that says more than the line does. */
static char *make_help(const hr_option_def *def)
{
    bool is_told = !def->initial || strcmp(def->initial, "no") == 0 ||
                   (strcmp(def->initial, "0") == 0 && strstr(def->help, "0: "));
    char *text;

    if (is_told)
        return copy_text(def->help, strlen(def->help));
    HR_ASSERT(asprintf(&text, "%s (%s)", def->help, def->initial) >= 0);
    return text;
}

/* The group that the row begins, counted from 1, or 0. */
static int group_begun_by(const hr_option_def *def)
{
    for (uint32_t i = 0; i < hr_option_group_count; i++) {
        if (strcmp(def->name, hr_option_groups[i].first) == 0)
            return (int)i + 1;
    }
    return 0;
}

/* argp's table for one command; help_texts keeps the composed lines alive. Both belong to the caller. */
static struct argp_option *make_argp_table(unsigned command, char ***help_texts)
{
    struct argp_option *table = calloc(3 * (size_t)hr_option_count + hr_option_group_count + 1, sizeof *table);
    char **texts = calloc(2 * (size_t)hr_option_count + 1, sizeof *texts);
    size_t n = 0, n_texts = 0;
    int group = 0, titled = 0;

    HR_ASSERT(table && texts);
    for (uint32_t i = 0; i < hr_option_count; i++) {
        const hr_option_def *def = &hr_option_table[i];
        int begun = group_begun_by(def);
        bool is_bool = def->kind == HR_OPTION_BOOL;

        group = begun ? begun : group;
        if ((def->commands & command) == 0)
            continue;
        if (titled != group)
            table[n++] = (struct argp_option){.doc = hr_option_groups[group - 1].title, .group = group};
        titled = group;
        texts[n_texts] = make_help(def);
        table[n++] = (struct argp_option){.name = def->name,
                                          .key = def->key ? def->key : KEY_BASE + (int)i,
                                          .arg = is_bool ? NULL : def->value,
                                          .doc = texts[n_texts++],
                                          .group = group};
        if (def->alias)
            table[n++] = (struct argp_option){.name = def->alias, .flags = OPTION_ALIAS, .group = group};
        if (is_bool) {
            HR_ASSERT(asprintf(&texts[n_texts], "no-%s", def->name) >= 0);
            table[n++] = (struct argp_option){
                .name = texts[n_texts++], .key = KEY_NO_BASE + (int)i, .flags = OPTION_HIDDEN, .group = group};
        }
    }
    *help_texts = texts;
    return table;
}

/* -hf, -md, -np, -tp: two letters behind one dash, as users of llama.cpp and vLLM type them, which argp would read as
 * clusters. */
static void widen_short_names(int argc, char **argv)
{
    static char hf[] = "--hf", parallel[] = "--parallel", tensor[] = "--tensor-parallel-size";
    static char draft[] = "--model-draft";

    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "-hf") == 0)
            argv[i] = hf;
        else if (strcmp(argv[i], "-md") == 0)
            argv[i] = draft;
        else if (strcmp(argv[i], "-np") == 0)
            argv[i] = parallel;
        else if (strcmp(argv[i], "-tp") == 0)
            argv[i] = tensor;
    }
}

static const char help_footer[] =
    "\vAn option without a value has a --no-NAME. Sizes take k, m, g (1000) and ki, mi, gi (1024). Every option can be "
    "set by the environment as well (--max-model-len: HEADRACE_MAX_MODEL_LEN) and in the --config file; a flag wins "
    "over the environment, the environment over the file.";

hr_options *hr_options_parse(int argc, char **argv, unsigned command, const char *arguments, const char *description,
                             uint32_t min_arguments, uint32_t max_arguments)
{
    hr_options *options = calloc(1, sizeof *options);
    char **help_texts, *program;
    struct argp_option *table = make_argp_table(command, &help_texts);
    struct argp argp = {.options = table, .parser = on_argument, .args_doc = arguments};
    char *doc;

    HR_ASSERT(options && max_arguments <= ARGUMENTS_MAX);
    HR_ASSERT(asprintf(&doc, "%s%s", description, help_footer) >= 0);
    argp.doc = doc;
    options->command = command;
    options->name = argv[0];
    options->min_arguments = min_arguments;
    options->max_arguments = max_arguments;
    options->values = calloc(hr_option_count, sizeof *options->values);
    HR_ASSERT(options->values && asprintf(&program, "headrace %s", argv[0]) >= 0);

    argp_err_exit_status = HR_EXIT_USAGE;
    (void)setenv("ARGP_HELP_FMT", "rmargin=100,opt-doc-col=34", 0); /* the user's own layout wins */
    argp_program_version = NULL;
    read_defaults(options);
    read_environment(options);
    widen_short_names(argc, argv);
    argv[0] = program;
    if (argp_parse(&argp, argc, argv, 0, NULL, options) != 0)
        usage_error(options, "could not read the arguments");
    read_config(options);
    if (options->n_arguments < min_arguments)
        usage_error(options, "missing argument: %s", arguments);
    for (char **text = help_texts; *text; text++)
        free(*text);
    free(help_texts);
    free(table);
    free(program);
    free(doc);
    return options;
}

void hr_options_destroy(hr_options *options)
{
    if (!options)
        return;
    for (uint32_t i = 0; i < hr_option_count; i++)
        clear_value(&options->values[i]);
    free(options->values);
    free(options);
}

/* ---------------------------------------------------------------- reading values */

const char *hr_options_argument(const hr_options *options, uint32_t i)
{
    return i < options->n_arguments ? options->arguments[i] : NULL;
}

bool hr_options_is_full(const hr_options *options)
{
    return options->n_arguments == options->max_arguments;
}

static const value *find_value(const hr_options *options, const char *name)
{
    uint32_t row = find_row(options, name, strlen(name));

    HR_ASSERT(row != UINT32_MAX);
    return &options->values[row];
}

const char *hr_option_text(const hr_options *options, const char *name)
{
    const value *v = find_value(options, name);

    return v->n > 0 ? v->items[0] : NULL;
}

bool hr_option_given(const hr_options *options, const char *name)
{
    return find_value(options, name)->from > SOURCE_DEFAULT;
}

int hr_option_rank(const hr_options *options, const char *name)
{
    return (int)find_value(options, name)->from;
}

uint64_t hr_option_uint(const hr_options *options, const char *name)
{
    const char *text = hr_option_text(options, name);
    uint64_t number = 0;

    HR_ASSERT(!text || parse_uint(text, &number));
    return number;
}

uint32_t hr_option_u32(const hr_options *options, const char *name)
{
    uint64_t number = hr_option_uint(options, name);

    HR_ASSERT(number <= UINT32_MAX); /* checked with the kind when it was set */
    return (uint32_t)number;
}

uint64_t hr_option_size(const hr_options *options, const char *name)
{
    const char *text = hr_option_text(options, name);
    uint64_t number = 0;

    HR_ASSERT(!text || parse_size(text, &number));
    return number;
}

double hr_option_real(const hr_options *options, const char *name)
{
    const char *text = hr_option_text(options, name);
    double number = 0;

    HR_ASSERT(!text || parse_real(text, &number));
    return number;
}

bool hr_option_bool(const hr_options *options, const char *name)
{
    const char *text = hr_option_text(options, name);
    bool yes = false;

    HR_ASSERT(!text || parse_bool(text, &yes));
    return yes;
}

const char *const *hr_option_list(const hr_options *options, const char *name, uint32_t *n)
{
    const value *v = find_value(options, name);

    *n = v->n;
    return (const char *const *)v->items;
}

void hr_options_print(const hr_options *options)
{
    for (uint32_t i = 0; i < hr_option_count; i++) {
        const hr_option_def *def = &hr_option_table[i];
        const value *v = &options->values[i];

        if ((def->commands & options->command) == 0)
            continue;
        (void)printf("%-26s = ", def->name);
        for (uint32_t k = 0; k < v->n; k++)
            (void)printf("%s%s", k > 0 ? "," : "", strcmp(def->name, "api-key") == 0 ? "(hidden)" : v->items[k]);
        (void)printf("%*s# %s\n", v->n > 0 ? 2 : 0, "", source_names[v->from]);
    }
}

/* One table of options for every command, read from four places.
 *
 * Order: flag, then environment (HEADRACE_UPPER_NAME), then --config FILE, then default. The flags themselves are
 * parsed by glibc's argp, whose tables are generated from ours, so that help, environment names, the configuration file
 * and --print-config cannot drift apart. Values are kept as text with their source and converted where they are used; a
 * bad value ends the program with exit code 2 and a message that names the option, the value and what would be right.
 */
#ifndef HR_CLI_OPTIONS_H
#define HR_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Exit codes of the program. */
enum {
    HR_EXIT_OK = 0,
    HR_EXIT_FAILURE = 1,
    HR_EXIT_USAGE = 2,
    HR_EXIT_MODEL = 3,  /* model file refused */
    HR_EXIT_MEMORY = 4, /* no memory for the model */
    HR_EXIT_PORT = 5,   /* port in use */
    HR_EXIT_DEVICE = 70 /* device fault; a supervisor should restart */
};

/* Which commands know an option. */
enum {
    HR_FOR_SERVE = 1 << 0,
    HR_FOR_RUN = 1 << 1,
    HR_FOR_INFO = 1 << 2,
    HR_FOR_TOKENIZE = 1 << 3,
    HR_FOR_BENCH = 1 << 4,
    HR_FOR_LOGITS = 1 << 5,
    HR_FOR_SCORE = 1 << 6,
    HR_FOR_COMPARE = 1 << 7,
    HR_FOR_DOCTOR = 1 << 8,
    HR_FOR_VERSION = 1 << 9,
    HR_FOR_IMATRIX = 1 << 11,
    HR_FOR_CONVERT = 1 << 10,
};

typedef enum hr_option_kind {
    HR_OPTION_TEXT,
    HR_OPTION_LIST, /* text that may be given several times, or comma-separated */
    HR_OPTION_UINT, /* 32 bits */
    HR_OPTION_UINT64,
    HR_OPTION_SIZE, /* bytes; k m g (1000) and ki mi gi (1024) */
    HR_OPTION_REAL,
    HR_OPTION_BOOL, /* --name and --no-name */
} hr_option_kind;

typedef struct hr_options hr_options;

/* Parses the arguments of one command (argv[0] is its name). description: the one-line purpose; arguments: the
 * positional ones as shown in help, e.g. "MODEL [PROMPT]". Ends the program itself for --help and for usage errors
 * (exit code 2). */
hr_options *hr_options_parse(int argc, char **argv, unsigned command, const char *arguments, const char *description,
                             uint32_t min_arguments, uint32_t max_arguments);
void hr_options_destroy(hr_options *options);

/* Positional arguments. NULL past the end. */
const char *hr_options_argument(const hr_options *options, uint32_t i);
/* Whether every positional argument that the command can take is given. */
bool hr_options_is_full(const hr_options *options);

/* Values by long name; asking for an option that the table does not have is our own mistake (assertion). Text is NULL
 * when neither given nor defaulted. */
const char *hr_option_text(const hr_options *options, const char *name);
bool hr_option_given(const hr_options *options, const char *name); /* not from the default */
/* How strong the value's source is, for options that exclude each other: 0 unset, then default, configuration file,
 * environment, flag. */
enum { HR_RANK_FLAG = 4 };
int hr_option_rank(const hr_options *options, const char *name);
uint64_t hr_option_uint(const hr_options *options, const char *name);
uint32_t hr_option_u32(const hr_options *options, const char *name);
uint64_t hr_option_size(const hr_options *options, const char *name);
double hr_option_real(const hr_options *options, const char *name);
bool hr_option_bool(const hr_options *options, const char *name);
/* A list's entries; *n how many. Borrowed. */
const char *const *hr_option_list(const hr_options *options, const char *name, uint32_t *n);

/* Writes every option of the command, its value and its source to stdout. */
void hr_options_print(const hr_options *options);

#endif

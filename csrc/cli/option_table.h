/* The rows of the option table: name, alias, kind, value name, default, commands, help. See options.h. */
#ifndef HR_CLI_OPTION_TABLE_H
#define HR_CLI_OPTION_TABLE_H

#include "cli/options.h"

typedef struct hr_option_def {
    const char *name;
    const char *alias; /* second long name, or NULL */
    char key;          /* one-letter flag, or 0 */
    hr_option_kind kind;
    const char *value;   /* what help shows for the value; NULL for booleans */
    const char *initial; /* default as text, or NULL */
    unsigned commands;
    const char *help;
} hr_option_def;

/* Help is parted by title; a group begins with the row of that name. */
typedef struct hr_option_group {
    const char *first, *title;
} hr_option_group;

extern const hr_option_group hr_option_groups[];
extern const uint32_t hr_option_group_count;
extern const hr_option_def hr_option_table[];
extern const uint32_t hr_option_count;

#endif

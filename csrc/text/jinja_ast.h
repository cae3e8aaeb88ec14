/* A parsed template: tokens, nodes, and what the template was seen to mention.
 *
 * The grammar is Jinja's (jinja.palletsprojects.com, version 3.1), restricted to what chat templates use; what is left
 * out is refused while parsing, so that a template either runs as it would elsewhere or is not loaded at all.
 * Everything lies in one arena and never changes after parsing.
 */
#ifndef HR_TEXT_JINJA_AST_H
#define HR_TEXT_JINJA_AST_H

#include "base/arena.h"
#include "base/status.h"

enum {
    HR_JINJA_MAX_TEXT = 1 << 20, /* bytes of template text */
    HR_JINJA_MAX_NESTING = 100,  /* of statements and of parentheses, each */
    HR_JINJA_MAX_ARGUMENTS = 64, /* of one call */
};

/* ---------------------------------------------------------------- tokens */

typedef enum hr_jinja_token_kind {
    HR_JINJA_TOKEN_DATA, /* text to be written as it is */
    HR_JINJA_TOKEN_BLOCK_BEGIN,
    HR_JINJA_TOKEN_BLOCK_END,
    HR_JINJA_TOKEN_PRINT_BEGIN,
    HR_JINJA_TOKEN_PRINT_END,
    HR_JINJA_TOKEN_NAME,
    HR_JINJA_TOKEN_STRING, /* text holds the unescaped string */
    HR_JINJA_TOKEN_INTEGER,
    HR_JINJA_TOKEN_FLOAT,
    HR_JINJA_TOKEN_OPERATOR,
    HR_JINJA_TOKEN_EOF,
} hr_jinja_token_kind;

typedef struct hr_jinja_token {
    hr_jinja_token_kind kind;
    uint32_t line;
    const char *text; /* terminated; in the arena */
    size_t len;
    int64_t integer;
    double real;
} hr_jinja_token;

/* Cuts template text into tokens as Jinja does with trim_blocks and lstrip_blocks; the last one is EOF. */
headrace_status hr_jinja_lex(const char *name, const char *text, size_t len, hr_arena *arena, hr_jinja_token **tokens,
                             headrace_error *err);

/* ---------------------------------------------------------------- nodes */

typedef enum hr_jinja_node_kind {
    /* expressions */
    HR_JINJA_STRING,  /* text, len */
    HR_JINJA_INTEGER, /* integer */
    HR_JINJA_FLOAT,   /* real */
    HR_JINJA_BOOLEAN, /* flag */
    HR_JINJA_NONE,
    HR_JINJA_NAME,         /* text */
    HR_JINJA_LIST,         /* list */
    HR_JINJA_TUPLE,        /* list */
    HR_JINJA_DICT,         /* list of PAIR */
    HR_JINJA_PAIR,         /* a: key, b: value */
    HR_JINJA_ATTRIBUTE,    /* a.text */
    HR_JINJA_ITEM,         /* a[b] */
    HR_JINJA_SLICE,        /* a[b:c:d], each of b, c, d may be NULL */
    HR_JINJA_FILTER,       /* a|filter(list); a is NULL for the innermost one of a filter block */
    HR_JINJA_TEST,         /* a is test(list) */
    HR_JINJA_CALL,         /* a(list) */
    HR_JINJA_KEYWORD,      /* text=a, an argument */
    HR_JINJA_UNARY,        /* op: '-' or '+' */
    HR_JINJA_BINARY,       /* a op b; op: + - * / % ~, 'D' for //, 'P' for ** */
    HR_JINJA_COMPARE,      /* a, list of COMPARE_PART */
    HR_JINJA_COMPARE_PART, /* op a; op: '=' '!' '<' '>' 'l' (<=) 'g' (>=) 'i' (in) 'n' (not in) */
    HR_JINJA_AND,
    HR_JINJA_OR,
    HR_JINJA_NOT,
    HR_JINJA_CONDITION,        /* b if a else c; c may be NULL */
    HR_JINJA_NAMESPACE_TARGET, /* text.target_text, only as a target of set */
    /* statements */
    HR_JINJA_DATA,         /* text, len */
    HR_JINJA_PRINT,        /* a */
    HR_JINJA_IF,           /* a: condition (NULL: else), list: body, c: the elif or else that follows */
    HR_JINJA_FOR,          /* a: target, b: iterable, c: filter or NULL, list: body, other: the else body */
    HR_JINJA_SET,          /* a: target, b: value */
    HR_JINJA_SET_BLOCK,    /* a: target, b: filters or NULL, list: body */
    HR_JINJA_MACRO,        /* text, other: list of KEYWORD (a: default or NULL), list: body */
    HR_JINJA_WITH,         /* other: list of SET, list: body */
    HR_JINJA_GENERATION,   /* list: body; marks what the assistant wrote, for training */
    HR_JINJA_FILTER_BLOCK, /* b: filters, list: body */
    HR_JINJA_BREAK,
    HR_JINJA_CONTINUE,
} hr_jinja_node_kind;

typedef struct hr_jinja_filter hr_jinja_filter;
typedef struct hr_jinja_test hr_jinja_test;

typedef struct hr_jinja_node hr_jinja_node;
struct hr_jinja_node {
    hr_jinja_node_kind kind;
    uint32_t line;
    char op;
    bool flag; /* BOOLEAN: the value; TEST: negated; IF: unused */
    size_t n;  /* of list */
    hr_jinja_node *a, *b, *c, *d;
    hr_jinja_node *list, *other, *next; /* next: sibling in a list */
    const char *text, *target_text;     /* terminated */
    size_t len;
    int64_t integer;
    double real;
    const hr_jinja_filter *filter;
    const hr_jinja_test *test;
};

/* Names that a template was seen to use, as attribute, item, variable or string: the only thing that behaviour is keyed
 * to. */
typedef struct hr_jinja_mentions {
    bool tool_calls, thinking, reasoning_content, continue_final_message;
} hr_jinja_mentions;

/* Parses a template into a list of statements. E_TEMPLATE names template, line and construct. */
headrace_status hr_jinja_parse(const char *name, const char *text, size_t len, hr_arena *arena,
                               hr_jinja_node **statements, hr_jinja_mentions *mentions, headrace_error *err);

/* ---------------------------------------------------------------- the two halves of the parser */

typedef struct hr_jinja_parser {
    const char *name;
    const hr_jinja_token *at;
    hr_arena *arena;
    headrace_error *err;
    hr_jinja_mentions mentions;
    uint32_t expression_depth, statement_depth, loop_depth, macro_depth;
    bool failed;
} hr_jinja_parser;

/* All return NULL (or false) after the parser has failed; the message is in err. */
hr_jinja_node *hr_jinja_node_new(hr_jinja_parser *p, hr_jinja_node_kind kind);
void *hr_jinja_parse_fail(hr_jinja_parser *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool hr_jinja_is_operator(const hr_jinja_parser *p, const char *op);
bool hr_jinja_is_name(const hr_jinja_parser *p, const char *name);
bool hr_jinja_skip_operator(hr_jinja_parser *p, const char *op);
bool hr_jinja_skip_name(hr_jinja_parser *p, const char *name);
bool hr_jinja_expect_operator(hr_jinja_parser *p, const char *op);
/* What the current token is, for messages. */
const char *hr_jinja_describe(const hr_jinja_parser *p);
/* One expression; with_condition false leaves an `if` to the statement. */
hr_jinja_node *hr_jinja_parse_expression(hr_jinja_parser *p, bool with_condition);
/* One expression, or several separated by commas (a tuple). */
hr_jinja_node *hr_jinja_parse_tuple(hr_jinja_parser *p, bool with_condition, bool is_parenthesised);
/* `|f|g(x)` behind a value; node may be NULL (filter blocks). with_first_name: the first filter comes without `|`. */
hr_jinja_node *hr_jinja_parse_filters(hr_jinja_parser *p, hr_jinja_node *node, bool with_first_name);

#endif

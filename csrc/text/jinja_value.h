/* Values of a running template, and the run itself.
 *
 * Values are Python's as far as templates can tell. A string remembers for each byte whether it came from the template
 * or from the data (messages, tools): only template text may become special tokens. Everything a run makes lies in its
 * arena, under a limit, and is freed at once. Functions return false after the run has failed; the message is in
 * run->err.
 */
#ifndef HR_TEXT_JINJA_VALUE_H
#define HR_TEXT_JINJA_VALUE_H

#include "base/arena.h"
#include "base/status.h"
#include "text/jinja_ast.h"

enum {
    HR_JINJA_MAX_STEPS = 10 * 1000 * 1000, /* nodes evaluated, and 64 bytes of text handled count as one */
    HR_JINJA_MAX_DEPTH = 600,              /* evaluations inside each other */
    HR_JINJA_MAX_OUTPUT = 32 << 20,        /* bytes of one string, the rendering included */
    HR_JINJA_MAX_MEMORY = 256 << 20,       /* bytes of one run's arena */
    HR_JINJA_MAX_ELEMENTS = 1 << 20,       /* of one list */
    HR_JINJA_MAX_RANGE = 100000,           /* numbers of one range(), as in Jinja's sandbox */
    HR_JINJA_MAX_DATA_NESTING = 200,       /* of the context's JSON */
};

/* Memory that a string can grow into: appending to the string that ends where `used` ends copies only what is added. */
typedef struct hr_jinja_store {
    char *at;
    unsigned char *from; /* per byte: 1 for data, 0 for template */
    size_t used, capacity;
} hr_jinja_store;

typedef struct hr_jinja_string {
    const char *at;            /* not terminated */
    const unsigned char *from; /* NULL: every byte is what is_data says */
    size_t len;
    hr_jinja_store *store; /* NULL: not growable */
    bool is_data;
} hr_jinja_string;

typedef enum hr_jinja_value_kind {
    HR_JINJA_VALUE_ABSENT = 0, /* a parameter that was not given; never seen by templates */
    HR_JINJA_VALUE_UNDEFINED,
    HR_JINJA_VALUE_NONE,
    HR_JINJA_VALUE_BOOL,
    HR_JINJA_VALUE_INT,
    HR_JINJA_VALUE_FLOAT,
    HR_JINJA_VALUE_STRING,
    HR_JINJA_VALUE_SEQUENCE,
    HR_JINJA_VALUE_DICT,
    HR_JINJA_VALUE_NAMESPACE,
    HR_JINJA_VALUE_MACRO,
    HR_JINJA_VALUE_FUNCTION,
    HR_JINJA_VALUE_METHOD,
    HR_JINJA_VALUE_LOOP,
} hr_jinja_value_kind;

typedef struct hr_jinja_value hr_jinja_value;
typedef struct hr_jinja_sequence hr_jinja_sequence;
typedef struct hr_jinja_dict hr_jinja_dict;
typedef struct hr_jinja_macro hr_jinja_macro;
typedef struct hr_jinja_method hr_jinja_method;
typedef struct hr_jinja_loop hr_jinja_loop;
typedef struct hr_jinja_scope hr_jinja_scope;
typedef enum hr_jinja_function {
    HR_JINJA_FUNCTION_RANGE,
    HR_JINJA_FUNCTION_NAMESPACE,
    HR_JINJA_FUNCTION_DICT,
    HR_JINJA_FUNCTION_RAISE_EXCEPTION,
    HR_JINJA_FUNCTION_STRFTIME_NOW,
} hr_jinja_function;

struct hr_jinja_value {
    hr_jinja_value_kind kind;
    union {
        bool boolean;
        int64_t integer;
        double real;
        const char *name; /* UNDEFINED: what was looked for, terminated */
        hr_jinja_string string;
        hr_jinja_sequence *sequence;
        hr_jinja_dict *dict; /* DICT and NAMESPACE */
        hr_jinja_macro *macro;
        hr_jinja_function function;
        hr_jinja_method *method;
        hr_jinja_loop *loop;
    } as;
};

typedef enum hr_jinja_flavour {
    HR_JINJA_FLAVOUR_LIST,
    HR_JINJA_FLAVOUR_TUPLE,
    HR_JINJA_FLAVOUR_RANGE,
    HR_JINJA_FLAVOUR_KEYS, /* dict views: no index, but a length */
    HR_JINJA_FLAVOUR_VALUES,
    HR_JINJA_FLAVOUR_ITEMS,
    HR_JINJA_FLAVOUR_GENERATOR, /* what map() gives: no index, no length, can be walked once */
} hr_jinja_flavour;

struct hr_jinja_sequence {
    hr_jinja_flavour flavour;
    size_t n;
    hr_jinja_value *at; /* [n] */
};

struct hr_jinja_dict { /* in the order of insertion */
    size_t n, capacity;
    hr_jinja_value *keys, *values; /* [n] */
};

struct hr_jinja_macro {
    const hr_jinja_node *node;
    hr_jinja_scope *scope; /* where it was defined */
};

struct hr_jinja_method {
    hr_jinja_value subject;
    const char *name;
};

struct hr_jinja_loop {
    hr_jinja_value *items; /* [n] */
    size_t n, index;
};

typedef struct hr_jinja_variable hr_jinja_variable;
struct hr_jinja_variable {
    hr_jinja_variable *next;
    const char *name;
    hr_jinja_value value;
};
struct hr_jinja_scope {
    hr_jinja_scope *parent;
    hr_jinja_variable *variables;
};

typedef struct hr_jinja_run {
    const char *name; /* of the template */
    hr_arena *arena;
    headrace_error *err; /* not NULL */
    headrace_status status;
    uint64_t steps;
    uint32_t depth, line;
    int64_t date_us;
    hr_jinja_store *out; /* where printed text goes */
    void *unprintable;   /* pcre2_code, made on first use */
    void *locale;        /* locale_t for case mapping, made on first use */
} hr_jinja_run;

/* ---------------------------------------------------------------- the run */

/* Records "chat template NAME, line N: ..." and returns false. */
bool hr_jinja_fail(hr_jinja_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool hr_jinja_step(hr_jinja_run *run, size_t n);                /* counts n steps */
bool hr_jinja_enter(hr_jinja_run *run);                         /* one level deeper; pair with run->depth-- */
void *hr_jinja_alloc(hr_jinja_run *run, size_t n, size_t size); /* zeroed; NULL after failing the run */

/* ---------------------------------------------------------------- strings */

hr_jinja_value hr_jinja_text(const char *at, size_t len, bool is_data);          /* borrowed */
bool hr_jinja_literal(hr_jinja_run *run, const char *text, hr_jinja_value *out); /* terminated template text */
/* A store to write into; then hr_jinja_store_value makes it a string. */
hr_jinja_store *hr_jinja_store_new(hr_jinja_run *run);
bool hr_jinja_store_add(hr_jinja_run *run, hr_jinja_store *store, const hr_jinja_string *string);
bool hr_jinja_store_add_text(hr_jinja_run *run, hr_jinja_store *store, const char *at, size_t len, bool is_data);
hr_jinja_value hr_jinja_store_value(hr_jinja_store *store);
bool hr_jinja_concat(hr_jinja_run *run, const hr_jinja_string *left, const hr_jinja_string *right, hr_jinja_value *out);
/* Bytes [from, to) of a string. */
hr_jinja_string hr_jinja_substring(const hr_jinja_string *string, size_t from, size_t to);
hr_jinja_value hr_jinja_string_value(hr_jinja_string string);
size_t hr_jinja_count_characters(const hr_jinja_string *string);
/* Byte offset of the character `index` (or the length). */
size_t hr_jinja_character_offset(const hr_jinja_string *string, size_t index);
/* A terminated copy in the arena; false for a string with a NUL in it. */
bool hr_jinja_c_text(hr_jinja_run *run, const hr_jinja_string *string, const char **out);

/* ---------------------------------------------------------------- values */

hr_jinja_value hr_jinja_undefined(const char *name);
hr_jinja_value hr_jinja_bool(bool value);
hr_jinja_value hr_jinja_int(int64_t value);
hr_jinja_value hr_jinja_real(double value);
bool hr_jinja_sequence_new(hr_jinja_run *run, hr_jinja_flavour flavour, size_t n, hr_jinja_value *out);
bool hr_jinja_dict_new(hr_jinja_run *run, hr_jinja_value_kind kind, size_t capacity, hr_jinja_value *out);
bool hr_jinja_dict_set(hr_jinja_run *run, hr_jinja_dict *dict, const hr_jinja_value *key, const hr_jinja_value *value);
/* NULL when the key is not there. Keys that cannot be hashed are never there. */
hr_jinja_value *hr_jinja_dict_get(hr_jinja_run *run, const hr_jinja_dict *dict, const hr_jinja_value *key);
hr_jinja_value *hr_jinja_dict_find(const hr_jinja_dict *dict, const char *key, size_t len);
bool hr_jinja_is_hashable(const hr_jinja_value *value);
const char *hr_jinja_type_name(const hr_jinja_value *value); /* Python's: "str", "dict" */
bool hr_jinja_is_true(const hr_jinja_value *value);
bool hr_jinja_equal(hr_jinja_run *run, const hr_jinja_value *a, const hr_jinja_value *b, bool *equal);
/* Order of two values that have one; fails the run (TypeError) otherwise. *order: -1, 0, 1, or 2 for NaN. */
bool hr_jinja_compare(hr_jinja_run *run, const hr_jinja_value *a, const hr_jinja_value *b, int *order);
bool hr_jinja_contains(hr_jinja_run *run, const hr_jinja_value *container, const hr_jinja_value *value, bool *found);
/* What a for loop walks: elements, keys, characters; nothing for undefined. Fails for the rest. Uses up a generator. */
bool hr_jinja_iterate(hr_jinja_run *run, const hr_jinja_value *value, hr_jinja_value **items, size_t *n);
bool hr_jinja_is_iterable(const hr_jinja_value *value);
/* len(); false without failing the run when the value has none. */
bool hr_jinja_length(const hr_jinja_value *value, size_t *n);

/* ---------------------------------------------------------------- values to text (jinja_text.c) */

bool hr_jinja_str(hr_jinja_run *run, const hr_jinja_value *value, hr_jinja_value *out); /* str(): a string value */
bool hr_jinja_print(hr_jinja_run *run, const hr_jinja_value *value, hr_jinja_store *out);
/* json.dumps with key order kept and non-ASCII unescaped. indent < 0: one line. */
bool hr_jinja_to_json(hr_jinja_run *run, const hr_jinja_value *value, int indent, bool ascii,
                      const char *item_separator, const char *key_separator, hr_jinja_value *out);

/* ---------------------------------------------------------------- calls */

typedef struct hr_jinja_arguments {
    size_t n_positional, n_keywords;
    hr_jinja_value *positional;     /* [n_positional] */
    const char **keywords;          /* [n_keywords] */
    hr_jinja_value *keyword_values; /* [n_keywords] */
} hr_jinja_arguments;

/* Puts arguments into parameters by position and name; missing ones are ABSENT (fails if among the first n_required).
 */
bool hr_jinja_bind(hr_jinja_run *run, const char *what, const hr_jinja_arguments *arguments, const char *const *names,
                   size_t n_names, size_t n_required, hr_jinja_value *values);
bool hr_jinja_call_method(hr_jinja_run *run, const hr_jinja_value *subject, const char *name,
                          const hr_jinja_arguments *arguments, hr_jinja_value *out);
bool hr_jinja_call_function(hr_jinja_run *run, hr_jinja_function function, const hr_jinja_arguments *arguments,
                            hr_jinja_value *out);
bool hr_jinja_apply_filter(hr_jinja_run *run, const hr_jinja_filter *filter, const hr_jinja_value *subject,
                           const hr_jinja_arguments *arguments, hr_jinja_value *out);
bool hr_jinja_apply_test(hr_jinja_run *run, const hr_jinja_test *test, const hr_jinja_value *subject,
                         const hr_jinja_arguments *arguments, bool *out);
/* subject.name and subject[index], undefined when there is none; fails for what is undefined itself. */
bool hr_jinja_attribute(hr_jinja_run *run, const hr_jinja_value *subject, const char *name, hr_jinja_value *out);
bool hr_jinja_item(hr_jinja_run *run, const hr_jinja_value *subject, const hr_jinja_value *index, hr_jinja_value *out);
bool hr_jinja_slice(hr_jinja_run *run, const hr_jinja_value *subject, const hr_jinja_value parts[3],
                    hr_jinja_value *out);

/* String operations that both filters and methods use (jinja_strings.c). */
bool hr_jinja_strip(hr_jinja_run *run, const hr_jinja_string *string, const hr_jinja_value *characters, int sides,
                    hr_jinja_value *out); /* sides: 1 left, 2 right, 3 both; characters ABSENT or None: white space */
bool hr_jinja_replace(hr_jinja_run *run, const hr_jinja_string *string, const hr_jinja_string *old,
                      const hr_jinja_string *new_text, int64_t limit, hr_jinja_value *out);
bool hr_jinja_split(hr_jinja_run *run, const hr_jinja_string *string, const hr_jinja_value *separator, int64_t limit,
                    bool from_right, hr_jinja_value *out);
bool hr_jinja_join(hr_jinja_run *run, const hr_jinja_string *separator, const hr_jinja_value *items, size_t n,
                   bool only_strings, hr_jinja_value *out);
enum { HR_JINJA_UPPER, HR_JINJA_LOWER, HR_JINJA_CAPITALIZE, HR_JINJA_TITLE };
bool hr_jinja_change_case(hr_jinja_run *run, const hr_jinja_string *string, int how, hr_jinja_value *out);

/* Operators (jinja_operators.c): op as in hr_jinja_node. */
bool hr_jinja_binary(hr_jinja_run *run, char op, const hr_jinja_value *a, const hr_jinja_value *b, hr_jinja_value *out);
bool hr_jinja_negate(hr_jinja_run *run, char op, const hr_jinja_value *a, hr_jinja_value *out);

/* Runs a parsed template in the scope of its context. */
bool hr_jinja_execute(hr_jinja_run *run, hr_jinja_scope *context, const hr_jinja_node *statements);
bool hr_jinja_set_variable(hr_jinja_run *run, hr_jinja_scope *scope, const char *name, const hr_jinja_value *value);

#endif

/* Strings with provenance, sequences, dicts, equality and order. See jinja_value.h. */
#include "text/jinja_value.h"
#include "base/utf8.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

/* ---------------------------------------------------------------- the run */

bool hr_jinja_fail(hr_jinja_run *run, const char *format, ...)
{
    char message[800];
    va_list args;

    if (run->status != HEADRACE_OK)
        return false;
    va_start(args, format);
    (void)vsnprintf(message, sizeof message, format, args);
    va_end(args);
    run->status =
        hr_fail(run->err, HEADRACE_E_TEMPLATE, "chat template %s, line %u: %s", run->name, run->line, message);
    return false;
}

bool hr_jinja_step(hr_jinja_run *run, size_t n)
{
    run->steps += n;
    if (run->steps <= HR_JINJA_MAX_STEPS)
        return true;
    return hr_jinja_fail(run,
                         "more than %d steps; the template does not come to an end or the conversation is too long",
                         HR_JINJA_MAX_STEPS);
}

bool hr_jinja_enter(hr_jinja_run *run)
{
    if (!hr_jinja_step(run, 1))
        return false;
    if (++run->depth <= HR_JINJA_MAX_DEPTH)
        return true;
    run->depth--;
    return hr_jinja_fail(run, "nested more than %d levels deep", HR_JINJA_MAX_DEPTH);
}

void *hr_jinja_alloc(hr_jinja_run *run, size_t n, size_t size)
{
    size_t n_bytes;
    void *at = NULL;

    if (!__builtin_mul_overflow(n, size, &n_bytes) && n_bytes <= HR_JINJA_MAX_MEMORY &&
        run->arena->total <= HR_JINJA_MAX_MEMORY - n_bytes)
        at = hr_arena_alloc(run->arena, n_bytes);
    else
        (void)hr_jinja_fail(run, "more than %d MiB of memory", HR_JINJA_MAX_MEMORY >> 20);
    if (!at && run->status == HEADRACE_OK)
        run->status = hr_fail(run->err, HEADRACE_E_MEMORY, "no memory to render chat template %s", run->name);
    return at;
}

/* ---------------------------------------------------------------- strings */

hr_jinja_value hr_jinja_string_value(hr_jinja_string string)
{
    hr_jinja_value value = {.kind = HR_JINJA_VALUE_STRING};

    value.as.string = string;
    return value;
}

hr_jinja_value hr_jinja_text(const char *at, size_t len, bool is_data)
{
    return hr_jinja_string_value((hr_jinja_string){.at = at, .len = len, .is_data = is_data});
}

bool hr_jinja_literal(hr_jinja_run *run, const char *text, hr_jinja_value *out)
{
    size_t len = strlen(text);
    char *copy = hr_jinja_alloc(run, len + 1, 1);

    if (!copy)
        return false;
    memcpy(copy, text, len);
    *out = hr_jinja_text(copy, len, false);
    return true;
}

hr_jinja_store *hr_jinja_store_new(hr_jinja_run *run)
{
    return hr_jinja_alloc(run, 1, sizeof(hr_jinja_store));
}

static bool store_reserve(hr_jinja_run *run, hr_jinja_store *store, size_t extra)
{
    size_t capacity = store->capacity ? store->capacity : 64;
    char *at;

    if (extra > HR_JINJA_MAX_OUTPUT || store->used > HR_JINJA_MAX_OUTPUT - extra)
        return hr_jinja_fail(run, "a text of more than %d MiB", HR_JINJA_MAX_OUTPUT >> 20);
    if (!hr_jinja_step(run, extra / 64))
        return false;
    if (store->used + extra <= store->capacity)
        return true;
    while (capacity < store->used + extra)
        capacity *= 2;
    at = hr_jinja_alloc(run, capacity, 2); /* text, then provenance */
    if (!at)
        return false;
    if (store->used > 0) {
        memcpy(at, store->at, store->used);
        memcpy(at + capacity, store->from, store->used);
    }
    store->at = at;
    store->from = (unsigned char *)at + capacity;
    store->capacity = capacity;
    return true;
}

bool hr_jinja_store_add(hr_jinja_run *run, hr_jinja_store *store, const hr_jinja_string *string)
{
    if (string->len == 0)
        return true;
    if (!store_reserve(run, store, string->len))
        return false;
    memcpy(store->at + store->used, string->at, string->len);
    if (string->from)
        memcpy(store->from + store->used, string->from, string->len);
    else
        memset(store->from + store->used, string->is_data, string->len);
    store->used += string->len;
    return true;
}

bool hr_jinja_store_add_text(hr_jinja_run *run, hr_jinja_store *store, const char *at, size_t len, bool is_data)
{
    hr_jinja_string string = {.at = at, .len = len, .is_data = is_data};

    return hr_jinja_store_add(run, store, &string);
}

hr_jinja_value hr_jinja_store_value(hr_jinja_store *store)
{
    return hr_jinja_string_value(
        (hr_jinja_string){.at = store->at ? store->at : "", .from = store->from, .len = store->used, .store = store});
}

/* Templates build long texts by `ns.text = ns.text + more`: the left side's store is appended to where nobody else has.
 */
bool hr_jinja_concat(hr_jinja_run *run, const hr_jinja_string *left, const hr_jinja_string *right, hr_jinja_value *out)
{
    hr_jinja_store *store = left->store;

    if (left->len == 0 || right->len == 0) {
        *out = hr_jinja_string_value(left->len == 0 ? *right : *left);
        return true;
    }
    if (!store || left->at != store->at || left->len != store->used) {
        store = hr_jinja_store_new(run);
        if (!store || !hr_jinja_store_add(run, store, left))
            return false;
    }
    if (!hr_jinja_store_add(run, store, right))
        return false;
    *out = hr_jinja_store_value(store);
    return true;
}

hr_jinja_string hr_jinja_substring(const hr_jinja_string *string, size_t from, size_t to)
{
    hr_jinja_string part = {.at = string->at + from, .len = to - from, .is_data = string->is_data};

    if (string->from)
        part.from = string->from + from;
    return part;
}

size_t hr_jinja_count_characters(const hr_jinja_string *string)
{
    size_t n = 0;

    for (size_t i = 0; i < string->len; i++)
        n += ((unsigned char)string->at[i] & 0xC0) != 0x80;
    return n;
}

size_t hr_jinja_character_offset(const hr_jinja_string *string, size_t index)
{
    size_t at = 0;

    while (at < string->len && index > 0) {
        at++;
        while (at < string->len && ((unsigned char)string->at[at] & 0xC0) == 0x80)
            at++;
        index--;
    }
    return at;
}

bool hr_jinja_c_text(hr_jinja_run *run, const hr_jinja_string *string, const char **out)
{
    char *copy;

    if (string->len > 0 && memchr(string->at, '\0', string->len))
        return hr_jinja_fail(run, "ValueError: embedded null character");
    copy = hr_jinja_alloc(run, string->len + 1, 1);
    if (!copy)
        return false;
    if (string->len > 0)
        memcpy(copy, string->at, string->len);
    *out = copy;
    return true;
}

/* ---------------------------------------------------------------- making values */

hr_jinja_value hr_jinja_undefined(const char *name)
{
    hr_jinja_value value = {.kind = HR_JINJA_VALUE_UNDEFINED};

    value.as.name = name;
    return value;
}

hr_jinja_value hr_jinja_bool(bool value)
{
    hr_jinja_value out = {.kind = HR_JINJA_VALUE_BOOL};

    out.as.boolean = value;
    return out;
}

hr_jinja_value hr_jinja_int(int64_t value)
{
    hr_jinja_value out = {.kind = HR_JINJA_VALUE_INT};

    out.as.integer = value;
    return out;
}

hr_jinja_value hr_jinja_real(double value)
{
    hr_jinja_value out = {.kind = HR_JINJA_VALUE_FLOAT};

    out.as.real = value;
    return out;
}

bool hr_jinja_sequence_new(hr_jinja_run *run, hr_jinja_flavour flavour, size_t n, hr_jinja_value *out)
{
    hr_jinja_sequence *sequence;

    if (n > HR_JINJA_MAX_ELEMENTS)
        return hr_jinja_fail(run, "a list of more than %d elements", HR_JINJA_MAX_ELEMENTS);
    if (!hr_jinja_step(run, n / 8))
        return false;
    sequence = hr_jinja_alloc(run, 1, sizeof *sequence);
    if (!sequence)
        return false;
    sequence->flavour = flavour;
    sequence->n = n;
    sequence->at = n > 0 ? hr_jinja_alloc(run, n, sizeof *sequence->at) : NULL;
    if (n > 0 && !sequence->at)
        return false;
    *out = (hr_jinja_value){.kind = HR_JINJA_VALUE_SEQUENCE};
    out->as.sequence = sequence;
    return true;
}

bool hr_jinja_dict_new(hr_jinja_run *run, hr_jinja_value_kind kind, size_t capacity, hr_jinja_value *out)
{
    hr_jinja_dict *dict = hr_jinja_alloc(run, 1, sizeof *dict);

    if (!dict)
        return false;
    dict->capacity = capacity < 4 ? 4 : capacity;
    dict->keys = hr_jinja_alloc(run, dict->capacity, sizeof *dict->keys);
    dict->values = dict->keys ? hr_jinja_alloc(run, dict->capacity, sizeof *dict->values) : NULL;
    if (!dict->values)
        return false;
    *out = (hr_jinja_value){.kind = kind};
    out->as.dict = dict;
    return true;
}

static bool dict_grow(hr_jinja_run *run, hr_jinja_dict *dict)
{
    size_t capacity = dict->capacity * 2;
    hr_jinja_value *keys = hr_jinja_alloc(run, capacity, sizeof *keys);
    hr_jinja_value *values = keys ? hr_jinja_alloc(run, capacity, sizeof *values) : NULL;

    if (!values)
        return false;
    memcpy(keys, dict->keys, dict->n * sizeof *keys);
    memcpy(values, dict->values, dict->n * sizeof *values);
    dict->keys = keys;
    dict->values = values;
    dict->capacity = capacity;
    return true;
}

bool hr_jinja_is_hashable(const hr_jinja_value *value)
{
    if (value->kind == HR_JINJA_VALUE_SEQUENCE) {
        if (value->as.sequence->flavour == HR_JINJA_FLAVOUR_LIST)
            return false;
        for (size_t i = 0; value->as.sequence->flavour == HR_JINJA_FLAVOUR_TUPLE && i < value->as.sequence->n; i++) {
            if (value->as.sequence->at[i].kind == HR_JINJA_VALUE_SEQUENCE ||
                value->as.sequence->at[i].kind == HR_JINJA_VALUE_DICT)
                return false; /* nested tuples as keys are not needed */
        }
        return true;
    }
    return value->kind != HR_JINJA_VALUE_DICT;
}

hr_jinja_value *hr_jinja_dict_find(const hr_jinja_dict *dict, const char *key, size_t len)
{
    for (size_t i = 0; i < dict->n; i++) {
        const hr_jinja_value *at = &dict->keys[i];

        if (at->kind == HR_JINJA_VALUE_STRING && at->as.string.len == len &&
            (len == 0 || memcmp(at->as.string.at, key, len) == 0))
            return &dict->values[i];
    }
    return NULL;
}

hr_jinja_value *hr_jinja_dict_get(hr_jinja_run *run, const hr_jinja_dict *dict, const hr_jinja_value *key)
{
    if (!hr_jinja_step(run, dict->n / 16))
        return NULL;
    if (key->kind == HR_JINJA_VALUE_STRING)
        return hr_jinja_dict_find(dict, key->as.string.at, key->as.string.len);
    for (size_t i = 0; i < dict->n; i++) {
        bool equal;

        if (dict->keys[i].kind != HR_JINJA_VALUE_STRING && hr_jinja_equal(run, &dict->keys[i], key, &equal) && equal)
            return &dict->values[i];
    }
    return NULL;
}

bool hr_jinja_dict_set(hr_jinja_run *run, hr_jinja_dict *dict, const hr_jinja_value *key, const hr_jinja_value *value)
{
    hr_jinja_value *known;

    if (!hr_jinja_is_hashable(key))
        return hr_jinja_fail(run, "TypeError: unhashable type: '%s'", hr_jinja_type_name(key));
    known = hr_jinja_dict_get(run, dict, key);
    if (run->status != HEADRACE_OK)
        return false;
    if (known) {
        *known = *value;
        return true;
    }
    if (dict->n == HR_JINJA_MAX_ELEMENTS)
        return hr_jinja_fail(run, "a dict of more than %d entries", HR_JINJA_MAX_ELEMENTS);
    if (dict->n == dict->capacity && !dict_grow(run, dict))
        return false;
    dict->keys[dict->n] = *key;
    dict->values[dict->n++] = *value;
    return true;
}

/* ---------------------------------------------------------------- looking at values */

const char *hr_jinja_type_name(const hr_jinja_value *value)
{
    static const char *const flavours[] = {"list",        "tuple",      "range",    "dict_keys",
                                           "dict_values", "dict_items", "generator"};

    switch (value->kind) {
    case HR_JINJA_VALUE_NONE:
        return "NoneType";
    case HR_JINJA_VALUE_BOOL:
        return "bool";
    case HR_JINJA_VALUE_INT:
        return "int";
    case HR_JINJA_VALUE_FLOAT:
        return "float";
    case HR_JINJA_VALUE_STRING:
        return "str";
    case HR_JINJA_VALUE_SEQUENCE:
        return flavours[value->as.sequence->flavour];
    case HR_JINJA_VALUE_DICT:
        return "dict";
    case HR_JINJA_VALUE_NAMESPACE:
        return "Namespace";
    case HR_JINJA_VALUE_MACRO:
        return "Macro";
    case HR_JINJA_VALUE_FUNCTION:
        return "function";
    case HR_JINJA_VALUE_METHOD:
        return "builtin_function_or_method";
    case HR_JINJA_VALUE_LOOP:
        return "LoopContext";
    default:
        return "Undefined";
    }
}

bool hr_jinja_length(const hr_jinja_value *value, size_t *n)
{
    switch (value->kind) {
    case HR_JINJA_VALUE_UNDEFINED:
        *n = 0;
        return true;
    case HR_JINJA_VALUE_STRING:
        *n = hr_jinja_count_characters(&value->as.string);
        return true;
    case HR_JINJA_VALUE_SEQUENCE:
        *n = value->as.sequence->n;
        return value->as.sequence->flavour != HR_JINJA_FLAVOUR_GENERATOR;
    case HR_JINJA_VALUE_DICT:
        *n = value->as.dict->n;
        return true;
    case HR_JINJA_VALUE_LOOP:
        *n = value->as.loop->n;
        return true;
    default:
        return false;
    }
}

bool hr_jinja_is_true(const hr_jinja_value *value)
{
    size_t n;

    switch (value->kind) {
    case HR_JINJA_VALUE_ABSENT:
    case HR_JINJA_VALUE_UNDEFINED:
    case HR_JINJA_VALUE_NONE:
        return false;
    case HR_JINJA_VALUE_BOOL:
        return value->as.boolean;
    case HR_JINJA_VALUE_INT:
        return value->as.integer != 0;
    case HR_JINJA_VALUE_FLOAT:
        return value->as.real != 0.0;
    case HR_JINJA_VALUE_STRING:
        return value->as.string.len > 0;
    default:
        return !hr_jinja_length(value, &n) || n > 0;
    }
}

static bool is_number(const hr_jinja_value *value)
{
    return value->kind == HR_JINJA_VALUE_BOOL || value->kind == HR_JINJA_VALUE_INT ||
           value->kind == HR_JINJA_VALUE_FLOAT;
}

/* -1, 0, 1, or 2 when one is NaN. Integers beyond 2^53 are compared with floats exactly. */
static int compare_numbers(const hr_jinja_value *a, const hr_jinja_value *b)
{
    int64_t i = a->kind == HR_JINJA_VALUE_BOOL ? a->as.boolean : a->as.integer;
    int64_t j = b->kind == HR_JINJA_VALUE_BOOL ? b->as.boolean : b->as.integer;

    if (a->kind == HR_JINJA_VALUE_FLOAT && b->kind == HR_JINJA_VALUE_FLOAT) {
        double x = a->as.real, y = b->as.real;

        return isnan(x) || isnan(y) ? 2 : (x > y) - (x < y);
    }
    if (a->kind == HR_JINJA_VALUE_FLOAT) {
        int order = compare_numbers(b, a);

        return order == 2 ? 2 : -order;
    }
    if (b->kind == HR_JINJA_VALUE_FLOAT) {
        double y = b->as.real, whole;

        if (isnan(y))
            return 2;
        if (y >= 0x1p63)
            return -1;
        if (y < -0x1p63)
            return 1;
        whole = floor(y);
        j = (int64_t)whole;
        return i != j ? (i > j) - (i < j) : y > whole ? -1 : 0;
    }
    return (i > j) - (i < j);
}

static int compare_strings(const hr_jinja_string *a, const hr_jinja_string *b)
{
    size_t n = a->len < b->len ? a->len : b->len;
    int order = n > 0 ? memcmp(a->at, b->at, n) : 0;

    return order != 0 ? (order > 0) - (order < 0) : (a->len > b->len) - (a->len < b->len);
}

/* Sequences that compare element by element: two lists, two tuples or two ranges. */
static bool are_alike(const hr_jinja_value *a, const hr_jinja_value *b)
{
    return a->kind == HR_JINJA_VALUE_SEQUENCE && b->kind == HR_JINJA_VALUE_SEQUENCE &&
           a->as.sequence->flavour == b->as.sequence->flavour && a->as.sequence->flavour <= HR_JINJA_FLAVOUR_RANGE;
}

static bool equal_dicts(hr_jinja_run *run, const hr_jinja_dict *a, const hr_jinja_dict *b, bool *equal)
{
    *equal = a->n == b->n;
    for (size_t i = 0; *equal && i < a->n; i++) {
        const hr_jinja_value *other = hr_jinja_dict_get(run, b, &a->keys[i]);

        *equal = other != NULL;
        if (other && !hr_jinja_equal(run, &a->values[i], other, equal))
            return false;
    }
    return run->status == HEADRACE_OK;
}

bool hr_jinja_equal(hr_jinja_run *run, const hr_jinja_value *a, const hr_jinja_value *b, bool *equal)
{
    bool ok = true;

    *equal = false;
    if (is_number(a) && is_number(b)) {
        *equal = compare_numbers(a, b) == 0;
        return true;
    }
    if (a->kind != b->kind)
        return true;
    if (!hr_jinja_enter(run))
        return false;
    switch (a->kind) {
    case HR_JINJA_VALUE_UNDEFINED:
    case HR_JINJA_VALUE_NONE:
        *equal = true;
        break;
    case HR_JINJA_VALUE_STRING:
        ok = hr_jinja_step(run, a->as.string.len / 64);
        *equal = compare_strings(&a->as.string, &b->as.string) == 0;
        break;
    case HR_JINJA_VALUE_SEQUENCE:
        *equal = a->as.sequence == b->as.sequence || (are_alike(a, b) && a->as.sequence->n == b->as.sequence->n);
        for (size_t i = 0; ok && *equal && a->as.sequence != b->as.sequence && i < a->as.sequence->n; i++)
            ok = hr_jinja_equal(run, &a->as.sequence->at[i], &b->as.sequence->at[i], equal);
        break;
    case HR_JINJA_VALUE_DICT:
        ok = equal_dicts(run, a->as.dict, b->as.dict, equal);
        break;
    case HR_JINJA_VALUE_FUNCTION:
        *equal = a->as.function == b->as.function;
        break;
    default: /* identity */
        *equal = a->as.dict == b->as.dict;
        break;
    }
    run->depth--;
    return ok;
}

bool hr_jinja_compare(hr_jinja_run *run, const hr_jinja_value *a, const hr_jinja_value *b, int *order)
{
    bool ok = true, equal = true;

    *order = 0;
    if (is_number(a) && is_number(b)) {
        *order = compare_numbers(a, b);
        return true;
    }
    if (a->kind == HR_JINJA_VALUE_STRING && b->kind == HR_JINJA_VALUE_STRING) {
        *order = compare_strings(&a->as.string, &b->as.string);
        return true;
    }
    if (are_alike(a, b) && a->as.sequence->flavour != HR_JINJA_FLAVOUR_RANGE) {
        const hr_jinja_sequence *s = a->as.sequence, *t = b->as.sequence;

        if (!hr_jinja_enter(run))
            return false;
        for (size_t i = 0; ok && equal && i < s->n && i < t->n; i++) {
            ok = hr_jinja_equal(run, &s->at[i], &t->at[i], &equal);
            if (ok && !equal)
                ok = hr_jinja_compare(run, &s->at[i], &t->at[i], order);
        }
        run->depth--;
        if (ok && equal)
            *order = (s->n > t->n) - (s->n < t->n);
        return ok;
    }
    if (a->kind == HR_JINJA_VALUE_UNDEFINED || b->kind == HR_JINJA_VALUE_UNDEFINED)
        return hr_jinja_fail(run, "'%s' is undefined", a->kind == HR_JINJA_VALUE_UNDEFINED ? a->as.name : b->as.name);
    return hr_jinja_fail(run, "TypeError: '%s' and '%s' have no order", hr_jinja_type_name(a), hr_jinja_type_name(b));
}

bool hr_jinja_contains(hr_jinja_run *run, const hr_jinja_value *container, const hr_jinja_value *value, bool *found)
{
    hr_jinja_value *items;
    size_t n;

    *found = false;
    if (container->kind == HR_JINJA_VALUE_STRING) {
        const hr_jinja_string *text = &container->as.string, *part = &value->as.string;

        if (value->kind != HR_JINJA_VALUE_STRING)
            return hr_jinja_fail(run, "TypeError: 'in <string>' requires string as left operand, not %s",
                                 hr_jinja_type_name(value));
        *found = part->len == 0 || (text->len > 0 && memmem(text->at, text->len, part->at, part->len) != NULL);
        return hr_jinja_step(run, text->len / 64);
    }
    if (container->kind == HR_JINJA_VALUE_DICT) {
        if (!hr_jinja_is_hashable(value))
            return hr_jinja_fail(run, "TypeError: unhashable type: '%s'", hr_jinja_type_name(value));
        *found = hr_jinja_dict_get(run, container->as.dict, value) != NULL;
        return run->status == HEADRACE_OK;
    }
    if (!hr_jinja_is_iterable(container))
        return hr_jinja_fail(run, "TypeError: argument of type '%s' is not iterable", hr_jinja_type_name(container));
    if (!hr_jinja_iterate(run, container, &items, &n))
        return false;
    for (size_t i = 0; !*found && i < n; i++) {
        if (!hr_jinja_equal(run, &items[i], value, found))
            return false;
    }
    return true;
}

bool hr_jinja_is_iterable(const hr_jinja_value *value)
{
    return value->kind == HR_JINJA_VALUE_UNDEFINED || value->kind == HR_JINJA_VALUE_STRING ||
           value->kind == HR_JINJA_VALUE_SEQUENCE || value->kind == HR_JINJA_VALUE_DICT;
}

static bool iterate_characters(hr_jinja_run *run, const hr_jinja_string *string, hr_jinja_value **items, size_t *n)
{
    hr_jinja_value list;
    size_t at = 0;

    if (!hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_LIST, hr_jinja_count_characters(string), &list))
        return false;
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): the analyzer lets hr_jinja_fail return true */
    for (size_t i = 0; i < list.as.sequence->n; i++) {
        bool is_valid;
        size_t step = hr_utf8_step(string->at + at, string->len - at, &is_valid);

        list.as.sequence->at[i] = hr_jinja_string_value(hr_jinja_substring(string, at, at + step));
        at += step;
    }
    *items = list.as.sequence->at;
    *n = list.as.sequence->n;
    return true;
}

bool hr_jinja_iterate(hr_jinja_run *run, const hr_jinja_value *value, hr_jinja_value **items, size_t *n)
{
    *items = NULL;
    *n = 0;
    switch (value->kind) {
    case HR_JINJA_VALUE_UNDEFINED:
        return true;
    case HR_JINJA_VALUE_STRING:
        return iterate_characters(run, &value->as.string, items, n);
    case HR_JINJA_VALUE_SEQUENCE:
        *items = value->as.sequence->at;
        *n = value->as.sequence->n;
        if (value->as.sequence->flavour == HR_JINJA_FLAVOUR_GENERATOR)
            value->as.sequence->n = 0;
        return true;
    case HR_JINJA_VALUE_DICT:
        *items = value->as.dict->keys;
        *n = value->as.dict->n;
        return true;
    default:
        return hr_jinja_fail(run, "TypeError: '%s' object is not iterable", hr_jinja_type_name(value));
    }
}

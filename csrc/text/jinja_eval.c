/* Runs the tree. Scopes are Jinja's: a loop's body, a macro and a block have their own, an if has not; what a loop's
 * body sets is gone in the next iteration, and only a namespace carries values out.
 */
#include "text/jinja_value.h"

#include <string.h>

typedef enum flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE, FLOW_FAILED } flow;

static bool evaluate(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node, hr_jinja_value *out);
static flow execute(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *list);

/* ---------------------------------------------------------------- variables */

static hr_jinja_scope *scope_new(hr_jinja_run *run, hr_jinja_scope *parent)
{
    hr_jinja_scope *scope = hr_jinja_alloc(run, 1, sizeof *scope);

    if (scope)
        scope->parent = parent;
    return scope;
}

bool hr_jinja_set_variable(hr_jinja_run *run, hr_jinja_scope *scope, const char *name, const hr_jinja_value *value)
{
    hr_jinja_variable *variable = scope->variables;

    while (variable && strcmp(variable->name, name) != 0)
        variable = variable->next;
    if (!variable) {
        variable = hr_jinja_alloc(run, 1, sizeof *variable);
        if (!variable)
            return false;
        variable->name = name;
        variable->next = scope->variables;
        scope->variables = variable;
    }
    variable->value = *value;
    return true;
}

static bool find_variable(hr_jinja_run *run, const hr_jinja_scope *scope, const char *name, hr_jinja_value *out)
{
    static const char *const functions[] = {"range", "namespace", "dict", "raise_exception", "strftime_now"};
    size_t n_seen = 0;

    for (; scope; scope = scope->parent) {
        for (const hr_jinja_variable *variable = scope->variables; variable; variable = variable->next, n_seen++) {
            if (strcmp(variable->name, name) == 0) {
                *out = variable->value;
                return hr_jinja_step(run, n_seen / 16);
            }
        }
    }
    *out = hr_jinja_undefined(name);
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        if (strcmp(functions[i], name) == 0) {
            *out = (hr_jinja_value){.kind = HR_JINJA_VALUE_FUNCTION};
            out->as.function = (hr_jinja_function)i;
        }
    }
    return hr_jinja_step(run, n_seen / 16);
}

static bool unpack(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *target, const hr_jinja_value *value);

static bool assign(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *target, const hr_jinja_value *value)
{
    hr_jinja_value space, key;

    if (target->kind == HR_JINJA_TUPLE)
        return unpack(run, scope, target, value);
    if (target->kind == HR_JINJA_NAME)
        return hr_jinja_set_variable(run, scope, target->text, value);
    if (!find_variable(run, scope, target->text, &space))
        return false;
    if (space.kind != HR_JINJA_VALUE_NAMESPACE)
        return hr_jinja_fail(run, "'%s' is not a namespace; its attributes cannot be set", target->text);
    key = hr_jinja_text(target->target_text, strlen(target->target_text), false);
    return hr_jinja_dict_set(run, space.as.dict, &key, value);
}

static bool unpack(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *target, const hr_jinja_value *value)
{
    hr_jinja_value *items;
    size_t n, i = 0;
    bool ok = true;

    if (!hr_jinja_iterate(run, value, &items, &n))
        return false;
    if (n != target->n)
        return hr_jinja_fail(run, "ValueError: %zu values to unpack into %zu names", n, target->n);
    if (!hr_jinja_enter(run))
        return false;
    for (const hr_jinja_node *part = target->list; ok && part; part = part->next)
        ok = assign(run, scope, part, &items[i++]);
    run->depth--;
    return ok;
}

/* ---------------------------------------------------------------- calls */

static bool evaluate_arguments(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *call,
                               hr_jinja_arguments *arguments)
{
    hr_jinja_value *values;
    size_t i = 0;

    *arguments = (hr_jinja_arguments){0};
    if (call->n == 0)
        return true;
    values = hr_jinja_alloc(run, call->n, sizeof *values);
    if (!values)
        return false;
    arguments->positional = values;
    for (const hr_jinja_node *node = call->list; node; node = node->next, i++) {
        bool is_keyword = node->kind == HR_JINJA_KEYWORD;

        if (is_keyword && !arguments->keywords) {
            arguments->keywords = hr_jinja_alloc(run, call->n - i, sizeof *arguments->keywords);
            arguments->keyword_values = &values[i];
            if (!arguments->keywords)
                return false;
        }
        if (!evaluate(run, scope, is_keyword ? node->a : node, &values[i]))
            return false;
        if (is_keyword)
            arguments->keywords[arguments->n_keywords++] = node->text;
        else
            arguments->n_positional++;
    }
    return true;
}

/* Runs statements with their output going into a string. */
static bool capture(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *list, hr_jinja_value *out)
{
    hr_jinja_store *outer = run->out;
    flow result;

    run->out = hr_jinja_store_new(run);
    if (!run->out) {
        run->out = outer;
        return false;
    }
    result = execute(run, scope, list);
    *out = hr_jinja_store_value(run->out);
    run->out = outer;
    return result != FLOW_FAILED;
}

static bool call_macro(hr_jinja_run *run, const hr_jinja_macro *macro, const hr_jinja_arguments *arguments,
                       hr_jinja_value *out)
{
    const hr_jinja_node *node = macro->node;
    const char *names[HR_JINJA_MAX_ARGUMENTS];
    hr_jinja_scope *scope = scope_new(run, macro->scope);
    hr_jinja_value *values = hr_jinja_alloc(run, node->n + 1, sizeof *values);
    size_t n = 0, i = 0;

    if (!scope || !values)
        return false;
    for (const hr_jinja_node *parameter = node->other; parameter; parameter = parameter->next)
        names[n++] = parameter->text;
    if (!hr_jinja_bind(run, node->text, arguments, names, n, 0, values))
        return false;
    for (const hr_jinja_node *parameter = node->other; parameter; parameter = parameter->next, i++) {
        if (values[i].kind == HR_JINJA_VALUE_ABSENT) {
            values[i] = hr_jinja_undefined(parameter->text);
            if (parameter->a && !evaluate(run, scope, parameter->a, &values[i]))
                return false;
        }
        if (!hr_jinja_set_variable(run, scope, parameter->text, &values[i]))
            return false;
    }
    return capture(run, scope, node->list, out);
}

static bool evaluate_call(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node, hr_jinja_value *out)
{
    hr_jinja_value callee;
    hr_jinja_arguments arguments;

    if (!evaluate(run, scope, node->a, &callee) || !evaluate_arguments(run, scope, node, &arguments))
        return false;
    run->line = node->line;
    switch (callee.kind) {
    case HR_JINJA_VALUE_MACRO:
        return call_macro(run, callee.as.macro, &arguments, out);
    case HR_JINJA_VALUE_FUNCTION:
        return hr_jinja_call_function(run, callee.as.function, &arguments, out);
    case HR_JINJA_VALUE_METHOD:
        return hr_jinja_call_method(run, &callee.as.method->subject, callee.as.method->name, &arguments, out);
    case HR_JINJA_VALUE_UNDEFINED:
        return hr_jinja_fail(run, "'%s' is undefined or not supported (call)", callee.as.name);
    default:
        return hr_jinja_fail(run, "TypeError: '%s' object is not callable", hr_jinja_type_name(&callee));
    }
}

/* subject: what a filter block captured, for the innermost filter; else NULL. */
static bool evaluate_filter(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node,
                            const hr_jinja_value *captured, hr_jinja_value *out)
{
    hr_jinja_value subject;
    hr_jinja_arguments arguments;
    bool ok;

    if (!hr_jinja_enter(run))
        return false;
    if (!node->a) {
        HR_ASSERT(captured);
        subject = *captured;
        ok = true;
    } else if (node->a->kind == HR_JINJA_FILTER) {
        ok = evaluate_filter(run, scope, node->a, captured, &subject);
    } else {
        ok = evaluate(run, scope, node->a, &subject);
    }
    ok = ok && evaluate_arguments(run, scope, node, &arguments);
    run->line = node->line;
    ok = ok && hr_jinja_apply_filter(run, node->filter, &subject, &arguments, out);
    run->depth--;
    return ok;
}

static bool evaluate_test(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node, hr_jinja_value *out)
{
    hr_jinja_value subject;
    hr_jinja_arguments arguments;
    bool holds;

    if (!evaluate(run, scope, node->a, &subject) || !evaluate_arguments(run, scope, node, &arguments) ||
        !hr_jinja_apply_test(run, node->test, &subject, &arguments, &holds))
        return false;
    *out = hr_jinja_bool(holds != node->flag);
    return true;
}

/* ---------------------------------------------------------------- expressions */

static bool evaluate_list(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node, hr_jinja_value *out)
{
    size_t i = 0;

    if (!hr_jinja_sequence_new(run, node->kind == HR_JINJA_LIST ? HR_JINJA_FLAVOUR_LIST : HR_JINJA_FLAVOUR_TUPLE,
                               node->n, out))
        return false;
    for (const hr_jinja_node *element = node->list; element; element = element->next) {
        if (!evaluate(run, scope, element, &out->as.sequence->at[i++]))
            return false;
    }
    return true;
}

static bool evaluate_dict(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node, hr_jinja_value *out)
{
    if (!hr_jinja_dict_new(run, HR_JINJA_VALUE_DICT, node->n, out))
        return false;
    for (const hr_jinja_node *pair = node->list; pair; pair = pair->next) {
        hr_jinja_value key, value;

        if (!evaluate(run, scope, pair->a, &key) || !evaluate(run, scope, pair->b, &value) ||
            !hr_jinja_dict_set(run, out->as.dict, &key, &value))
            return false;
    }
    return true;
}

static bool compare_once(hr_jinja_run *run, char op, const hr_jinja_value *a, const hr_jinja_value *b, bool *holds)
{
    int order;

    switch (op) {
    case '=':
        return hr_jinja_equal(run, a, b, holds);
    case '!':
        if (!hr_jinja_equal(run, a, b, holds))
            return false;
        *holds = !*holds;
        return true;
    case 'i':
        return hr_jinja_contains(run, b, a, holds);
    case 'n':
        if (!hr_jinja_contains(run, b, a, holds))
            return false;
        *holds = !*holds;
        return true;
    default:
        if (!hr_jinja_compare(run, a, b, &order))
            return false;
        *holds = order != 2 && (op == '<' ? order < 0 : op == '>' ? order > 0 : op == 'l' ? order <= 0 : order >= 0);
        return true;
    }
}

static bool evaluate_comparison(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node,
                                hr_jinja_value *out)
{
    hr_jinja_value left, right;
    bool holds = true;

    if (!evaluate(run, scope, node->a, &left))
        return false;
    for (const hr_jinja_node *part = node->list; holds && part; part = part->next) {
        if (!evaluate(run, scope, part->a, &right) || !compare_once(run, part->op, &left, &right, &holds))
            return false;
        left = right;
    }
    *out = hr_jinja_bool(holds);
    return true;
}

static bool evaluate_access(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node, hr_jinja_value *out)
{
    hr_jinja_value subject, parts[3] = {{0}};

    if (!evaluate(run, scope, node->a, &subject))
        return false;
    if (node->kind == HR_JINJA_ATTRIBUTE) {
        run->line = node->line;
        return hr_jinja_attribute(run, &subject, node->text, out);
    }
    if ((node->b && !evaluate(run, scope, node->b, &parts[0])) ||
        (node->c && !evaluate(run, scope, node->c, &parts[1])) ||
        (node->d && !evaluate(run, scope, node->d, &parts[2])))
        return false;
    run->line = node->line;
    return node->kind == HR_JINJA_ITEM ? hr_jinja_item(run, &subject, &parts[0], out)
                                       : hr_jinja_slice(run, &subject, parts, out);
}

/* and, or, not, if-else: what is not needed is not evaluated. */
static bool evaluate_logic(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node, hr_jinja_value *out)
{
    if (!evaluate(run, scope, node->a, out))
        return false;
    switch (node->kind) {
    case HR_JINJA_NOT:
        *out = hr_jinja_bool(!hr_jinja_is_true(out));
        return true;
    case HR_JINJA_AND:
        return !hr_jinja_is_true(out) || evaluate(run, scope, node->b, out);
    case HR_JINJA_OR:
        return hr_jinja_is_true(out) || evaluate(run, scope, node->b, out);
    default:
        if (hr_jinja_is_true(out))
            return evaluate(run, scope, node->b, out);
        if (node->c)
            return evaluate(run, scope, node->c, out);
        *out = hr_jinja_undefined("the missing else of an inline if");
        return true;
    }
}

static bool evaluate_arithmetic(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node,
                                hr_jinja_value *out)
{
    hr_jinja_value left, right;

    if (!evaluate(run, scope, node->a, &left))
        return false;
    if (node->kind == HR_JINJA_UNARY) {
        run->line = node->line;
        return hr_jinja_negate(run, node->op, &left, out);
    }
    if (!evaluate(run, scope, node->b, &right))
        return false;
    run->line = node->line;
    return hr_jinja_binary(run, node->op, &left, &right, out);
}

static bool evaluate_kind(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node, hr_jinja_value *out)
{
    switch (node->kind) {
    case HR_JINJA_STRING:
        *out = hr_jinja_text(node->text, node->len, false);
        return true;
    case HR_JINJA_INTEGER:
        *out = hr_jinja_int(node->integer);
        return true;
    case HR_JINJA_FLOAT:
        *out = hr_jinja_real(node->real);
        return true;
    case HR_JINJA_BOOLEAN:
        *out = hr_jinja_bool(node->flag);
        return true;
    case HR_JINJA_NONE:
        *out = (hr_jinja_value){.kind = HR_JINJA_VALUE_NONE};
        return true;
    case HR_JINJA_NAME:
        return find_variable(run, scope, node->text, out);
    case HR_JINJA_LIST:
    case HR_JINJA_TUPLE:
        return evaluate_list(run, scope, node, out);
    case HR_JINJA_DICT:
        return evaluate_dict(run, scope, node, out);
    case HR_JINJA_ATTRIBUTE:
    case HR_JINJA_ITEM:
    case HR_JINJA_SLICE:
        return evaluate_access(run, scope, node, out);
    case HR_JINJA_FILTER:
        return evaluate_filter(run, scope, node, NULL, out);
    case HR_JINJA_TEST:
        return evaluate_test(run, scope, node, out);
    case HR_JINJA_CALL:
        return evaluate_call(run, scope, node, out);
    case HR_JINJA_UNARY:
    case HR_JINJA_BINARY:
        return evaluate_arithmetic(run, scope, node, out);
    case HR_JINJA_COMPARE:
        return evaluate_comparison(run, scope, node, out);
    case HR_JINJA_AND:
    case HR_JINJA_OR:
    case HR_JINJA_NOT:
    case HR_JINJA_CONDITION:
        return evaluate_logic(run, scope, node, out);
    default:
        return hr_jinja_fail(run, "a statement where a value belongs");
    }
}

static bool evaluate(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node, hr_jinja_value *out)
{
    bool ok;

    if (!hr_jinja_enter(run))
        return false;
    run->line = node->line;
    ok = evaluate_kind(run, scope, node, out);
    run->depth--;
    return ok;
}

/* ---------------------------------------------------------------- statements */

/* The elements that pass the loop's filter, which sees the loop's variables. */
static bool filter_items(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node, hr_jinja_value **items,
                         size_t *n)
{
    hr_jinja_value kept;
    size_t n_kept = 0;

    if (!node->c)
        return true;
    if (!hr_jinja_sequence_new(run, HR_JINJA_FLAVOUR_LIST, *n, &kept))
        return false;
    for (size_t i = 0; i < *n; i++) {
        hr_jinja_scope *inner = scope_new(run, scope);
        hr_jinja_value holds;

        if (!inner || !assign(run, inner, node->a, &(*items)[i]) || !evaluate(run, inner, node->c, &holds))
            return false;
        if (hr_jinja_is_true(&holds))
            kept.as.sequence->at[n_kept++] = (*items)[i];
    }
    *items = kept.as.sequence->at;
    *n = n_kept;
    return true;
}

static flow execute_for(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node)
{
    hr_jinja_value iterable, self = {.kind = HR_JINJA_VALUE_LOOP};
    hr_jinja_loop *loop = hr_jinja_alloc(run, 1, sizeof *loop);
    hr_jinja_scope *inner;

    if (!loop || !evaluate(run, scope, node->b, &iterable) ||
        !hr_jinja_iterate(run, &iterable, &loop->items, &loop->n) ||
        !filter_items(run, scope, node, &loop->items, &loop->n))
        return FLOW_FAILED;
    self.as.loop = loop;
    for (loop->index = 0; loop->index < loop->n; loop->index++) {
        flow result;

        inner = scope_new(run, scope);
        if (!inner || !hr_jinja_set_variable(run, inner, "loop", &self) ||
            !assign(run, inner, node->a, &loop->items[loop->index]))
            return FLOW_FAILED;
        result = execute(run, inner, node->list);
        if (result == FLOW_FAILED)
            return result;
        if (result == FLOW_BREAK)
            break;
    }
    if (loop->n > 0 || !node->other)
        return FLOW_NEXT;
    inner = scope_new(run, scope);
    return inner ? execute(run, inner, node->other) : FLOW_FAILED;
}

static flow execute_if(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node)
{
    for (; node; node = node->c) {
        hr_jinja_value condition;

        if (!node->a)
            return execute(run, scope, node->list);
        if (!evaluate(run, scope, node->a, &condition))
            return FLOW_FAILED;
        if (hr_jinja_is_true(&condition))
            return execute(run, scope, node->list);
    }
    return FLOW_NEXT;
}

/* set and filter blocks: the body's text, through filters if there are any. */
static bool captured_value(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node, hr_jinja_value *out)
{
    hr_jinja_scope *inner = scope_new(run, scope);
    hr_jinja_value text;

    if (!inner || !capture(run, inner, node->list, &text))
        return false;
    *out = text;
    return !node->b || evaluate_filter(run, scope, node->b, &text, out);
}

static flow execute_with(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node)
{
    hr_jinja_scope *inner = scope_new(run, scope);

    if (!inner)
        return FLOW_FAILED;
    for (const hr_jinja_node *set = node->other; set; set = set->next) {
        hr_jinja_value value;

        if (!evaluate(run, scope, set->b, &value) || !assign(run, inner, set->a, &value))
            return FLOW_FAILED;
    }
    return execute(run, inner, node->list);
}

static bool define_macro(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node)
{
    hr_jinja_value value = {.kind = HR_JINJA_VALUE_MACRO};
    hr_jinja_macro *macro = hr_jinja_alloc(run, 1, sizeof *macro);

    if (!macro)
        return false;
    macro->node = node;
    macro->scope = scope;
    value.as.macro = macro;
    return hr_jinja_set_variable(run, scope, node->text, &value);
}

static flow execute_one(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *node)
{
    hr_jinja_value value;
    hr_jinja_scope *inner;
    bool ok;

    switch (node->kind) {
    case HR_JINJA_DATA:
        ok = hr_jinja_store_add_text(run, run->out, node->text, node->len, false);
        break;
    case HR_JINJA_PRINT:
        ok = evaluate(run, scope, node->a, &value) && hr_jinja_print(run, &value, run->out);
        break;
    case HR_JINJA_IF:
        return execute_if(run, scope, node);
    case HR_JINJA_FOR:
        return execute_for(run, scope, node);
    case HR_JINJA_SET:
        ok = evaluate(run, scope, node->b, &value) && assign(run, scope, node->a, &value);
        break;
    case HR_JINJA_SET_BLOCK:
        ok = captured_value(run, scope, node, &value) && assign(run, scope, node->a, &value);
        break;
    case HR_JINJA_FILTER_BLOCK:
        ok = captured_value(run, scope, node, &value) && hr_jinja_print(run, &value, run->out);
        break;
    case HR_JINJA_MACRO:
        ok = define_macro(run, scope, node);
        break;
    case HR_JINJA_WITH:
        return execute_with(run, scope, node);
    case HR_JINJA_GENERATION:
        inner = scope_new(run, scope);
        return inner ? execute(run, inner, node->list) : FLOW_FAILED;
    case HR_JINJA_BREAK:
        return FLOW_BREAK;
    case HR_JINJA_CONTINUE:
        return FLOW_CONTINUE;
    default:
        ok = hr_jinja_fail(run, "a value where a statement belongs");
        break;
    }
    return ok ? FLOW_NEXT : FLOW_FAILED;
}

static flow execute(hr_jinja_run *run, hr_jinja_scope *scope, const hr_jinja_node *list)
{
    flow result = FLOW_NEXT;

    if (!hr_jinja_enter(run))
        return FLOW_FAILED;
    for (const hr_jinja_node *node = list; node && result == FLOW_NEXT; node = node->next) {
        run->line = node->line;
        result = hr_jinja_step(run, 1) ? execute_one(run, scope, node) : FLOW_FAILED;
    }
    run->depth--;
    return result;
}

bool hr_jinja_execute(hr_jinja_run *run, hr_jinja_scope *context, const hr_jinja_node *statements)
{
    return execute(run, context, statements) != FLOW_FAILED;
}

/* Expressions: precedence climbs from `if else` down to a single value, one function a level, in Jinja's order. */
#include "text/jinja_ast.h"
#include "text/jinja_library.h"

#include <string.h>

static hr_jinja_node *parse_unary(hr_jinja_parser *p, bool with_filter);
static hr_jinja_node *parse_postfix(hr_jinja_parser *p, hr_jinja_node *node);

static hr_jinja_node *binary(hr_jinja_parser *p, hr_jinja_node_kind kind, char op, hr_jinja_node *left,
                             hr_jinja_node *right)
{
    hr_jinja_node *node = left && right ? hr_jinja_node_new(p, kind) : NULL;

    if (!node)
        return NULL;
    node->op = op;
    node->a = left;
    node->b = right;
    return node;
}

/* Templates are known by what they read: attributes, items, strings and variables of these names. */
static void note_mention(hr_jinja_parser *p, const char *text)
{
    if (strcmp(text, "tool_calls") == 0)
        p->mentions.tool_calls = true;
    else if (strcmp(text, "thinking") == 0)
        p->mentions.thinking = true;
    else if (strcmp(text, "reasoning_content") == 0)
        p->mentions.reasoning_content = true;
    else if (strcmp(text, "continue_final_message") == 0)
        p->mentions.continue_final_message = true;
}

static hr_jinja_node *text_node(hr_jinja_parser *p, hr_jinja_node_kind kind)
{
    hr_jinja_node *node = hr_jinja_node_new(p, kind);

    if (!node)
        return NULL;
    node->text = p->at->text;
    node->len = p->at->len;
    note_mention(p, node->text);
    p->at++;
    return node;
}

/* ---------------------------------------------------------------- single values */

static hr_jinja_node *parse_name(hr_jinja_parser *p)
{
    static const char *const foreign[] = {"caller", "varargs", "kwargs", "joiner", "cycler", "lipsum", "self", "super"};
    hr_jinja_node *node;

    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        if (hr_jinja_is_name(p, foreign[i]))
            return hr_jinja_parse_fail(p, "'%s' is not supported", foreign[i]);
    }
    if (hr_jinja_is_name(p, "true") || hr_jinja_is_name(p, "True") || hr_jinja_is_name(p, "false") ||
        hr_jinja_is_name(p, "False")) {
        node = hr_jinja_node_new(p, HR_JINJA_BOOLEAN);
        if (node)
            node->flag = (p->at->text[0] | 0x20) == 't';
        p->at++;
        return node;
    }
    if (hr_jinja_is_name(p, "none") || hr_jinja_is_name(p, "None")) {
        p->at++;
        return hr_jinja_node_new(p, HR_JINJA_NONE);
    }
    return text_node(p, HR_JINJA_NAME);
}

/* Adjacent strings are one. */
static hr_jinja_node *parse_string(hr_jinja_parser *p)
{
    hr_jinja_node *node = text_node(p, HR_JINJA_STRING);

    while (node && p->at->kind == HR_JINJA_TOKEN_STRING) {
        char *joined = hr_arena_alloc(p->arena, node->len + p->at->len + 1);

        if (!joined)
            return hr_jinja_parse_fail(p, "no memory");
        memcpy(joined, node->text, node->len);
        memcpy(joined + node->len, p->at->text, p->at->len);
        node->text = joined;
        node->len += p->at->len;
        p->at++;
    }
    return node;
}

/* Elements up to the closing bracket; a comma may end them. */
static bool parse_elements(hr_jinja_parser *p, hr_jinja_node *node, const char *close)
{
    hr_jinja_node **tail = &node->list;

    while (!hr_jinja_is_operator(p, close)) {
        hr_jinja_node *element;

        if (node->n > 0 && !hr_jinja_expect_operator(p, ","))
            return false;
        if (hr_jinja_is_operator(p, close))
            break;
        element = hr_jinja_parse_expression(p, true);
        if (element && node->kind == HR_JINJA_DICT) {
            if (!hr_jinja_expect_operator(p, ":"))
                return false;
            element = binary(p, HR_JINJA_PAIR, ':', element, hr_jinja_parse_expression(p, true));
        }
        if (!element)
            return false;
        *tail = element;
        tail = &element->next;
        node->n++;
    }
    p->at++;
    return true;
}

static hr_jinja_node *parse_bracketed(hr_jinja_parser *p, hr_jinja_node_kind kind, const char *close)
{
    hr_jinja_node *node = hr_jinja_node_new(p, kind);

    p->at++;
    return node && parse_elements(p, node, close) ? node : NULL;
}

static hr_jinja_node *parse_primary(hr_jinja_parser *p)
{
    hr_jinja_node *node;

    switch (p->at->kind) {
    case HR_JINJA_TOKEN_NAME:
        return parse_name(p);
    case HR_JINJA_TOKEN_STRING:
        return parse_string(p);
    case HR_JINJA_TOKEN_INTEGER:
    case HR_JINJA_TOKEN_FLOAT:
        node = hr_jinja_node_new(p, p->at->kind == HR_JINJA_TOKEN_INTEGER ? HR_JINJA_INTEGER : HR_JINJA_FLOAT);
        if (node) {
            node->integer = p->at->integer;
            node->real = p->at->real;
        }
        p->at++;
        return node;
    default:
        break;
    }
    if (hr_jinja_skip_operator(p, "(")) {
        node = hr_jinja_parse_tuple(p, true, true);
        return node && hr_jinja_expect_operator(p, ")") ? node : NULL;
    }
    if (hr_jinja_is_operator(p, "["))
        return parse_bracketed(p, HR_JINJA_LIST, "]");
    if (hr_jinja_is_operator(p, "{"))
        return parse_bracketed(p, HR_JINJA_DICT, "}");
    return hr_jinja_parse_fail(p, "expected an expression, found %s", hr_jinja_describe(p));
}

/* ---------------------------------------------------------------- what may follow a value */

static bool parse_arguments(hr_jinja_parser *p, hr_jinja_node *call)
{
    hr_jinja_node **tail = &call->list;
    bool saw_keyword = false;

    p->at++;
    while (!hr_jinja_is_operator(p, ")")) {
        hr_jinja_node *argument;

        if (call->n > 0 && !hr_jinja_expect_operator(p, ","))
            return false;
        if (hr_jinja_is_operator(p, ")"))
            break;
        if (call->n == HR_JINJA_MAX_ARGUMENTS)
            return hr_jinja_parse_fail(p, "a call has more than %d arguments", HR_JINJA_MAX_ARGUMENTS);
        if (hr_jinja_is_operator(p, "*") || hr_jinja_is_operator(p, "**"))
            return hr_jinja_parse_fail(p, "%s in front of an argument is not supported", p->at->text);
        if (p->at->kind == HR_JINJA_TOKEN_NAME && p->at[1].kind == HR_JINJA_TOKEN_OPERATOR &&
            strcmp(p->at[1].text, "=") == 0) {
            argument = text_node(p, HR_JINJA_KEYWORD);
            p->at++;
            saw_keyword = true;
            if (argument)
                argument->a = hr_jinja_parse_expression(p, true);
            if (!argument || !argument->a)
                return false;
        } else {
            if (saw_keyword)
                return hr_jinja_parse_fail(p, "a positional argument follows a keyword argument");
            argument = hr_jinja_parse_expression(p, true);
        }
        if (!argument)
            return false;
        *tail = argument;
        tail = &argument->next;
        call->n++;
    }
    p->at++;
    return true;
}

static hr_jinja_node *parse_call(hr_jinja_parser *p, hr_jinja_node *callee)
{
    hr_jinja_node *call = hr_jinja_node_new(p, HR_JINJA_CALL);

    if (!call)
        return NULL;
    call->a = callee;
    return parse_arguments(p, call) ? call : NULL;
}

static bool ends_slice_part(const hr_jinja_parser *p)
{
    return hr_jinja_is_operator(p, ":") || hr_jinja_is_operator(p, "]");
}

/* `[b]`, `[b:c]` or `[b:c:d]`, with each part of a slice left out or not. */
static hr_jinja_node *parse_subscript(hr_jinja_parser *p, hr_jinja_node *subject)
{
    hr_jinja_node *node = hr_jinja_node_new(p, HR_JINJA_ITEM);

    p->at++;
    if (!node)
        return NULL;
    node->a = subject;
    if (hr_jinja_is_operator(p, "]"))
        return hr_jinja_parse_fail(p, "[] has no index");
    if (!ends_slice_part(p) && !(node->b = hr_jinja_parse_expression(p, true)))
        return NULL;
    if (hr_jinja_skip_operator(p, ":")) {
        node->kind = HR_JINJA_SLICE;
        if (!ends_slice_part(p) && !(node->c = hr_jinja_parse_expression(p, true)))
            return NULL;
        if (hr_jinja_skip_operator(p, ":") && !ends_slice_part(p) && !(node->d = hr_jinja_parse_expression(p, true)))
            return NULL;
    }
    if (hr_jinja_is_operator(p, ","))
        return hr_jinja_parse_fail(p, "a tuple as an index is not supported");
    return hr_jinja_expect_operator(p, "]") ? node : NULL;
}

static hr_jinja_node *parse_attribute(hr_jinja_parser *p, hr_jinja_node *subject)
{
    hr_jinja_node *node;

    p->at++;
    if (p->at->kind == HR_JINJA_TOKEN_INTEGER) { /* x.0 is x[0] */
        node = binary(p, HR_JINJA_ITEM, '[', subject, parse_primary(p));
        return node;
    }
    if (p->at->kind != HR_JINJA_TOKEN_NAME)
        return hr_jinja_parse_fail(p, "expected a name behind '.', found %s", hr_jinja_describe(p));
    node = text_node(p, HR_JINJA_ATTRIBUTE);
    if (node)
        node->a = subject;
    return node;
}

static hr_jinja_node *parse_postfix(hr_jinja_parser *p, hr_jinja_node *node)
{
    while (node) {
        if (hr_jinja_is_operator(p, "."))
            node = parse_attribute(p, node);
        else if (hr_jinja_is_operator(p, "["))
            node = parse_subscript(p, node);
        else if (hr_jinja_is_operator(p, "("))
            node = parse_call(p, node);
        else
            break;
    }
    return node;
}

hr_jinja_node *hr_jinja_parse_filters(hr_jinja_parser *p, hr_jinja_node *node, bool with_first_name)
{
    while (with_first_name || hr_jinja_is_operator(p, "|")) {
        hr_jinja_node *filter = hr_jinja_node_new(p, HR_JINJA_FILTER);

        if (!with_first_name)
            p->at++;
        with_first_name = false;
        if (!filter)
            return NULL;
        if (p->at->kind != HR_JINJA_TOKEN_NAME)
            return hr_jinja_parse_fail(p, "expected the name of a filter, found %s", hr_jinja_describe(p));
        filter->text = p->at->text;
        filter->filter = hr_jinja_find_filter(p->at->text);
        if (!filter->filter)
            return hr_jinja_parse_fail(p, "the filter '%s' is not supported", p->at->text);
        p->at++;
        filter->a = node;
        if (hr_jinja_is_operator(p, "(") && !parse_arguments(p, filter))
            return NULL;
        node = filter;
    }
    return node;
}

/* Whether a test's argument follows without parentheses (`x is divisibleby 3`). */
static bool has_bare_argument(const hr_jinja_parser *p)
{
    switch (p->at->kind) {
    case HR_JINJA_TOKEN_NAME:
        return !hr_jinja_is_name(p, "else") && !hr_jinja_is_name(p, "or") && !hr_jinja_is_name(p, "and");
    case HR_JINJA_TOKEN_STRING:
    case HR_JINJA_TOKEN_INTEGER:
    case HR_JINJA_TOKEN_FLOAT:
        return true;
    default:
        return hr_jinja_is_operator(p, "[") || hr_jinja_is_operator(p, "{");
    }
}

static hr_jinja_node *parse_test(hr_jinja_parser *p, hr_jinja_node *subject)
{
    hr_jinja_node *node = hr_jinja_node_new(p, HR_JINJA_TEST);

    p->at++;
    if (!node)
        return NULL;
    node->a = subject;
    node->flag = hr_jinja_skip_name(p, "not");
    if (p->at->kind != HR_JINJA_TOKEN_NAME)
        return hr_jinja_parse_fail(p, "expected the name of a test behind 'is', found %s", hr_jinja_describe(p));
    node->text = p->at->text;
    node->test = hr_jinja_find_test(p->at->text);
    if (!node->test)
        return hr_jinja_parse_fail(p, "the test '%s' is not supported", p->at->text);
    p->at++;
    if (hr_jinja_is_operator(p, "("))
        return parse_arguments(p, node) ? node : NULL;
    if (has_bare_argument(p)) {
        if (hr_jinja_is_name(p, "is"))
            return hr_jinja_parse_fail(p, "two tests in a row need parentheses");
        node->list = parse_postfix(p, parse_primary(p));
        node->n = 1;
        if (!node->list)
            return NULL;
    }
    return node;
}

static hr_jinja_node *parse_filters_and_tests(hr_jinja_parser *p, hr_jinja_node *node)
{
    while (node) {
        if (hr_jinja_is_operator(p, "|"))
            node = hr_jinja_parse_filters(p, node, false);
        else if (hr_jinja_is_name(p, "is"))
            node = parse_test(p, node);
        else if (hr_jinja_is_operator(p, "("))
            node = parse_call(p, node);
        else
            break;
    }
    return node;
}

/* ---------------------------------------------------------------- operators, tightest first */

static hr_jinja_node *parse_unary(hr_jinja_parser *p, bool with_filter)
{
    hr_jinja_node *node;

    if (hr_jinja_is_operator(p, "-") || hr_jinja_is_operator(p, "+")) {
        if (++p->expression_depth > HR_JINJA_MAX_NESTING)
            return hr_jinja_parse_fail(p, "an expression is nested more than %d levels deep", HR_JINJA_MAX_NESTING);
        node = hr_jinja_node_new(p, HR_JINJA_UNARY);
        if (!node)
            return NULL;
        node->op = p->at->text[0];
        p->at++;
        node->a = parse_unary(p, false);
        p->expression_depth--;
        node = node->a ? node : NULL;
    } else {
        node = parse_primary(p);
    }
    node = node ? parse_postfix(p, node) : NULL;
    return with_filter ? parse_filters_and_tests(p, node) : node;
}

static hr_jinja_node *parse_power(hr_jinja_parser *p)
{
    hr_jinja_node *left = parse_unary(p, true);

    while (left && hr_jinja_skip_operator(p, "**"))
        left = binary(p, HR_JINJA_BINARY, 'P', left, parse_unary(p, true));
    return left;
}

static hr_jinja_node *parse_product(hr_jinja_parser *p)
{
    hr_jinja_node *left = parse_power(p);

    while (left && (hr_jinja_is_operator(p, "*") || hr_jinja_is_operator(p, "/") || hr_jinja_is_operator(p, "//") ||
                    hr_jinja_is_operator(p, "%"))) {
        char op = p->at->len == 2 ? 'D' : p->at->text[0];

        p->at++;
        left = binary(p, HR_JINJA_BINARY, op, left, parse_power(p));
    }
    return left;
}

static hr_jinja_node *parse_concatenation(hr_jinja_parser *p)
{
    hr_jinja_node *left = parse_product(p);

    while (left && hr_jinja_skip_operator(p, "~"))
        left = binary(p, HR_JINJA_BINARY, '~', left, parse_product(p));
    return left;
}

static hr_jinja_node *parse_sum(hr_jinja_parser *p)
{
    hr_jinja_node *left = parse_concatenation(p);

    while (left && (hr_jinja_is_operator(p, "+") || hr_jinja_is_operator(p, "-"))) {
        char op = p->at->text[0];

        p->at++;
        left = binary(p, HR_JINJA_BINARY, op, left, parse_concatenation(p));
    }
    return left;
}

/* The comparison at the current token, or 0; it is passed. */
static char take_comparison(hr_jinja_parser *p)
{
    static const struct {
        const char *text;
        char op;
    } operators[] = {{"==", '='}, {"!=", '!'}, {"<", '<'}, {">", '>'}, {"<=", 'l'}, {">=", 'g'}};

    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        if (hr_jinja_skip_operator(p, operators[i].text))
            return operators[i].op;
    }
    if (hr_jinja_skip_name(p, "in"))
        return 'i';
    if (hr_jinja_is_name(p, "not") && p->at[1].kind == HR_JINJA_TOKEN_NAME && strcmp(p->at[1].text, "in") == 0) {
        p->at += 2;
        return 'n';
    }
    return '\0';
}

static hr_jinja_node *parse_comparison(hr_jinja_parser *p)
{
    hr_jinja_node *left = parse_sum(p), *node;
    hr_jinja_node **tail;
    char op = left ? take_comparison(p) : '\0';

    if (!op)
        return left;
    node = hr_jinja_node_new(p, HR_JINJA_COMPARE);
    if (!node)
        return NULL;
    node->a = left;
    for (tail = &node->list; op; op = take_comparison(p)) {
        hr_jinja_node *part = hr_jinja_node_new(p, HR_JINJA_COMPARE_PART);

        if (!part || !(part->a = parse_sum(p)))
            return NULL;
        part->op = op;
        *tail = part;
        tail = &part->next;
    }
    return node;
}

static hr_jinja_node *parse_not(hr_jinja_parser *p)
{
    bool negates = false, any = false;
    hr_jinja_node *inner, *node;

    for (; hr_jinja_skip_name(p, "not"); any = true)
        negates = !negates;
    inner = parse_comparison(p);
    for (int i = negates ? 1 : 2; inner && any && i > 0; i--) { /* two of them still make a boolean */
        node = hr_jinja_node_new(p, HR_JINJA_NOT);
        if (!node)
            return NULL;
        node->a = inner;
        inner = node;
    }
    return inner;
}

static hr_jinja_node *parse_and(hr_jinja_parser *p)
{
    hr_jinja_node *left = parse_not(p);

    while (left && hr_jinja_skip_name(p, "and"))
        left = binary(p, HR_JINJA_AND, '&', left, parse_not(p));
    return left;
}

static hr_jinja_node *parse_or(hr_jinja_parser *p)
{
    hr_jinja_node *left = parse_and(p);

    while (left && hr_jinja_skip_name(p, "or"))
        left = binary(p, HR_JINJA_OR, '|', left, parse_and(p));
    return left;
}

hr_jinja_node *hr_jinja_parse_expression(hr_jinja_parser *p, bool with_condition)
{
    hr_jinja_node *node;

    if (++p->expression_depth > HR_JINJA_MAX_NESTING)
        return hr_jinja_parse_fail(p, "an expression is nested more than %d levels deep", HR_JINJA_MAX_NESTING);
    node = parse_or(p);
    while (node && with_condition && hr_jinja_skip_name(p, "if")) {
        hr_jinja_node *condition = hr_jinja_node_new(p, HR_JINJA_CONDITION);

        if (!condition)
            return NULL;
        condition->b = node;
        condition->a = parse_or(p);
        if (!condition->a)
            return NULL;
        if (hr_jinja_skip_name(p, "else") && !(condition->c = hr_jinja_parse_expression(p, true)))
            return NULL;
        node = condition;
    }
    p->expression_depth--;
    return node;
}

static bool ends_tuple(const hr_jinja_parser *p)
{
    return p->at->kind == HR_JINJA_TOKEN_PRINT_END || p->at->kind == HR_JINJA_TOKEN_BLOCK_END ||
           hr_jinja_is_operator(p, ")");
}

hr_jinja_node *hr_jinja_parse_tuple(hr_jinja_parser *p, bool with_condition, bool is_parenthesised)
{
    hr_jinja_node *first = NULL, *tuple;
    hr_jinja_node **tail = &first;
    size_t n = 0;
    bool has_comma = false;

    for (;; p->at++) {
        if (n > 0 || is_parenthesised) {
            if (ends_tuple(p))
                break;
        }
        *tail = hr_jinja_parse_expression(p, with_condition);
        if (!*tail)
            return NULL;
        tail = &(*tail)->next;
        n++;
        if (!hr_jinja_is_operator(p, ","))
            break;
        has_comma = true;
    }
    if (!has_comma && n > 0)
        return first;
    tuple = hr_jinja_node_new(p, HR_JINJA_TUPLE);
    if (!tuple)
        return NULL;
    tuple->list = first;
    tuple->n = n;
    return tuple;
}

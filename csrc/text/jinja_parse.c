/* Statements, and the parser's small tools. What chat templates never use (include, extends, import, call, recursive
 * loops) is refused here by name.
 */
#include "text/jinja_ast.h"

#include <stdarg.h>
#include <string.h>

static hr_jinja_node *parse_body(hr_jinja_parser *p, const char *const *ends, bool *ok);
static hr_jinja_node *parse_target(hr_jinja_parser *p, bool with_namespace);

/* ---------------------------------------------------------------- tools */

hr_jinja_node *hr_jinja_node_new(hr_jinja_parser *p, hr_jinja_node_kind kind)
{
    hr_jinja_node *node = hr_arena_alloc(p->arena, sizeof *node);

    if (!node) {
        if (!p->failed)
            (void)hr_fail(p->err, HEADRACE_E_MEMORY, "no memory to parse chat template %s", p->name);
        p->failed = true;
        return NULL;
    }
    node->kind = kind;
    node->line = p->at->line;
    return node;
}

static void fail_at_token(hr_jinja_parser *p, const char *format, va_list args)
{
    char message[400];

    if (p->failed)
        return;
    p->failed = true;
    (void)vsnprintf(message, sizeof message, format, args);
    (void)hr_fail(p->err, HEADRACE_E_TEMPLATE, "chat template %s, line %u: %s", p->name, p->at->line, message);
}

void *hr_jinja_parse_fail(hr_jinja_parser *p, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fail_at_token(p, format, args);
    va_end(args);
    return NULL;
}

bool hr_jinja_is_operator(const hr_jinja_parser *p, const char *op)
{
    return p->at->kind == HR_JINJA_TOKEN_OPERATOR && strcmp(p->at->text, op) == 0;
}

bool hr_jinja_is_name(const hr_jinja_parser *p, const char *name)
{
    return p->at->kind == HR_JINJA_TOKEN_NAME && strcmp(p->at->text, name) == 0;
}

bool hr_jinja_skip_operator(hr_jinja_parser *p, const char *op)
{
    if (!hr_jinja_is_operator(p, op))
        return false;
    p->at++;
    return true;
}

bool hr_jinja_skip_name(hr_jinja_parser *p, const char *name)
{
    if (!hr_jinja_is_name(p, name))
        return false;
    p->at++;
    return true;
}

bool hr_jinja_expect_operator(hr_jinja_parser *p, const char *op)
{
    if (hr_jinja_skip_operator(p, op))
        return true;
    hr_jinja_parse_fail(p, "expected '%s', found %s", op, hr_jinja_describe(p));
    return false;
}

const char *hr_jinja_describe(const hr_jinja_parser *p)
{
    switch (p->at->kind) {
    case HR_JINJA_TOKEN_EOF:
        return "the end of the template";
    case HR_JINJA_TOKEN_BLOCK_END:
    case HR_JINJA_TOKEN_PRINT_END:
        return "the end of the tag";
    case HR_JINJA_TOKEN_STRING:
        return "a string";
    case HR_JINJA_TOKEN_DATA:
        return "text";
    default:
        return p->at->text;
    }
}

static bool expect_end_of_tag(hr_jinja_parser *p)
{
    if (p->at->kind == HR_JINJA_TOKEN_BLOCK_END) {
        p->at++;
        return true;
    }
    hr_jinja_parse_fail(p, "expected the end of the tag, found %s", hr_jinja_describe(p));
    return false;
}

/* The body up to one of the end tags; the tag's name is the current token afterwards. */
static bool parse_into(hr_jinja_parser *p, hr_jinja_node **list, const char *const *ends)
{
    bool ok = true;

    *list = parse_body(p, ends, &ok);
    return ok;
}

/* Body, end tag and the end of that. */
static bool parse_closed_body(hr_jinja_parser *p, hr_jinja_node **list, const char *end)
{
    const char *const ends[] = {end, NULL};

    if (!expect_end_of_tag(p) || !parse_into(p, list, ends))
        return false;
    p->at++;
    return expect_end_of_tag(p);
}

/* ---------------------------------------------------------------- statements */

static hr_jinja_node *parse_if(hr_jinja_parser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    hr_jinja_node *first = hr_jinja_node_new(p, HR_JINJA_IF), *branch = first;

    while (branch) {
        branch->a = hr_jinja_parse_tuple(p, false, false);
        if (!branch->a || !expect_end_of_tag(p) || !parse_into(p, &branch->list, ends))
            return NULL;
        if (!hr_jinja_skip_name(p, "elif"))
            break;
        branch->c = hr_jinja_node_new(p, HR_JINJA_IF);
        branch = branch->c;
    }
    if (branch && hr_jinja_skip_name(p, "else")) {
        branch->c = hr_jinja_node_new(p, HR_JINJA_IF);
        return branch->c && parse_closed_body(p, &branch->c->list, "endif") ? first : NULL;
    }
    p->at++;
    return branch && expect_end_of_tag(p) ? first : NULL;
}

static hr_jinja_node *parse_for(hr_jinja_parser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    hr_jinja_node *node = hr_jinja_node_new(p, HR_JINJA_FOR);

    if (!node || !(node->a = parse_target(p, false)))
        return NULL;
    if (!hr_jinja_skip_name(p, "in"))
        return hr_jinja_parse_fail(p, "expected 'in', found %s", hr_jinja_describe(p));
    if (!(node->b = hr_jinja_parse_tuple(p, false, false)))
        return NULL;
    if (hr_jinja_skip_name(p, "if") && !(node->c = hr_jinja_parse_expression(p, true)))
        return NULL;
    if (hr_jinja_is_name(p, "recursive"))
        return hr_jinja_parse_fail(p, "a recursive loop is not supported");
    p->loop_depth++;
    if (!expect_end_of_tag(p) || !parse_into(p, &node->list, ends))
        return NULL;
    p->loop_depth--;
    if (hr_jinja_skip_name(p, "else"))
        return parse_closed_body(p, &node->other, "endfor") ? node : NULL;
    p->at++;
    return expect_end_of_tag(p) ? node : NULL;
}

static hr_jinja_node *parse_simple_target(hr_jinja_parser *p, bool with_namespace)
{
    static const char *const reserved[] = {"true", "false", "none", "True", "False", "None"};
    hr_jinja_node *node;

    if (hr_jinja_skip_operator(p, "(")) {
        node = parse_target(p, false);
        return node && hr_jinja_expect_operator(p, ")") ? node : NULL;
    }
    if (p->at->kind != HR_JINJA_TOKEN_NAME)
        return hr_jinja_parse_fail(p, "expected a name to assign to, found %s", hr_jinja_describe(p));
    for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++) {
        if (hr_jinja_is_name(p, reserved[i]))
            return hr_jinja_parse_fail(p, "cannot assign to %s", reserved[i]);
    }
    node = hr_jinja_node_new(p, HR_JINJA_NAME);
    if (!node)
        return NULL;
    node->text = p->at->text;
    node->len = p->at->len;
    p->at++;
    if (with_namespace && hr_jinja_skip_operator(p, ".")) {
        if (p->at->kind != HR_JINJA_TOKEN_NAME)
            return hr_jinja_parse_fail(p, "expected a name behind '.', found %s", hr_jinja_describe(p));
        node->kind = HR_JINJA_NAMESPACE_TARGET;
        node->target_text = p->at->text;
        p->at++;
    }
    return node;
}

/* A name, ns.name, or several with commas between them. */
static hr_jinja_node *parse_target(hr_jinja_parser *p, bool with_namespace)
{
    hr_jinja_node *first, *tuple;
    hr_jinja_node **tail;

    if (++p->expression_depth > HR_JINJA_MAX_NESTING)
        return hr_jinja_parse_fail(p, "an expression is nested more than %d levels deep", HR_JINJA_MAX_NESTING);
    first = parse_simple_target(p, with_namespace);
    p->expression_depth--;
    if (!first || !hr_jinja_is_operator(p, ","))
        return first;
    tuple = hr_jinja_node_new(p, HR_JINJA_TUPLE);
    if (!tuple)
        return NULL;
    tuple->list = first;
    tuple->n = 1;
    for (tail = &first->next; hr_jinja_skip_operator(p, ",");) {
        if (p->at->kind != HR_JINJA_TOKEN_NAME && !hr_jinja_is_operator(p, "("))
            break;
        if (hr_jinja_is_name(p, "in"))
            break;
        p->expression_depth++;
        *tail = parse_simple_target(p, with_namespace);
        p->expression_depth--;
        if (!*tail)
            return NULL;
        tail = &(*tail)->next;
        tuple->n++;
    }
    return tuple;
}

static hr_jinja_node *parse_set(hr_jinja_parser *p)
{
    hr_jinja_node *node = hr_jinja_node_new(p, HR_JINJA_SET);

    if (!node || !(node->a = parse_target(p, true)))
        return NULL;
    if (hr_jinja_skip_operator(p, "=")) {
        node->b = hr_jinja_parse_tuple(p, true, false);
        return node->b && expect_end_of_tag(p) ? node : NULL;
    }
    node->kind = HR_JINJA_SET_BLOCK;
    if (hr_jinja_is_operator(p, "|") && !(node->b = hr_jinja_parse_filters(p, NULL, false)))
        return NULL;
    return parse_closed_body(p, &node->list, "endset") ? node : NULL;
}

static hr_jinja_node *parse_macro(hr_jinja_parser *p)
{
    hr_jinja_node *node = hr_jinja_node_new(p, HR_JINJA_MACRO);
    hr_jinja_node **tail = node ? &node->other : NULL;
    uint32_t loop_depth = p->loop_depth;

    if (!node)
        return NULL;
    if (p->at->kind != HR_JINJA_TOKEN_NAME)
        return hr_jinja_parse_fail(p, "expected the name of a macro, found %s", hr_jinja_describe(p));
    node->text = p->at->text;
    p->at++;
    if (!hr_jinja_expect_operator(p, "("))
        return NULL;
    while (!hr_jinja_is_operator(p, ")")) {
        hr_jinja_node *parameter, *target;

        if (node->n > 0 && !hr_jinja_expect_operator(p, ","))
            return NULL;
        if (hr_jinja_is_operator(p, ")"))
            break;
        if (node->n == HR_JINJA_MAX_ARGUMENTS)
            return hr_jinja_parse_fail(p, "a macro has more than %d parameters", HR_JINJA_MAX_ARGUMENTS);
        parameter = hr_jinja_node_new(p, HR_JINJA_KEYWORD);
        target = parameter ? parse_simple_target(p, false) : NULL;
        if (!target)
            return NULL;
        if (target->kind != HR_JINJA_NAME)
            return hr_jinja_parse_fail(p, "a macro's parameter must be a name");
        parameter->text = target->text;
        if (hr_jinja_skip_operator(p, "=")) {
            if (!(parameter->a = hr_jinja_parse_expression(p, true)))
                return NULL;
        } else if (node->flag) {
            return hr_jinja_parse_fail(p, "a parameter without default follows one with default");
        }
        node->flag = parameter->a != NULL;
        *tail = parameter;
        tail = &parameter->next;
        node->n++;
    }
    p->at++;
    p->loop_depth = 0;
    if (!parse_closed_body(p, &node->list, "endmacro"))
        return NULL;
    p->loop_depth = loop_depth;
    return node;
}

static hr_jinja_node *parse_with(hr_jinja_parser *p)
{
    hr_jinja_node *node = hr_jinja_node_new(p, HR_JINJA_WITH);
    hr_jinja_node **tail = node ? &node->other : NULL;

    while (node && p->at->kind != HR_JINJA_TOKEN_BLOCK_END) {
        hr_jinja_node *set;

        if (node->n > 0 && !hr_jinja_expect_operator(p, ","))
            return NULL;
        set = hr_jinja_node_new(p, HR_JINJA_SET);
        if (!set || !(set->a = parse_simple_target(p, false)) || !hr_jinja_expect_operator(p, "=") ||
            !(set->b = hr_jinja_parse_expression(p, true)))
            return NULL;
        *tail = set;
        tail = &set->next;
        node->n++;
    }
    return node && parse_closed_body(p, &node->list, "endwith") ? node : NULL;
}

static hr_jinja_node *parse_block_filter(hr_jinja_parser *p)
{
    hr_jinja_node *node = hr_jinja_node_new(p, HR_JINJA_FILTER_BLOCK);

    if (!node || !(node->b = hr_jinja_parse_filters(p, NULL, true)))
        return NULL;
    return parse_closed_body(p, &node->list, "endfilter") ? node : NULL;
}

static hr_jinja_node *parse_generation(hr_jinja_parser *p)
{
    hr_jinja_node *node = hr_jinja_node_new(p, HR_JINJA_GENERATION);
    uint32_t loop_depth = p->loop_depth;

    p->loop_depth = 0; /* it is a call in Jinja: a loop outside cannot be left from within */
    if (!node || !parse_closed_body(p, &node->list, "endgeneration"))
        return NULL;
    p->loop_depth = loop_depth;
    return node;
}

static hr_jinja_node *parse_jump(hr_jinja_parser *p, hr_jinja_node_kind kind)
{
    hr_jinja_node *node = hr_jinja_node_new(p, kind);

    if (p->loop_depth == 0)
        return hr_jinja_parse_fail(p, "break and continue belong inside a loop");
    return node && expect_end_of_tag(p) ? node : NULL;
}

static hr_jinja_node *parse_statement(hr_jinja_parser *p)
{
    if (p->at->kind != HR_JINJA_TOKEN_NAME)
        return hr_jinja_parse_fail(p, "expected the name of a statement, found %s", hr_jinja_describe(p));
    if (hr_jinja_skip_name(p, "if"))
        return parse_if(p);
    if (hr_jinja_skip_name(p, "for"))
        return parse_for(p);
    if (hr_jinja_skip_name(p, "set"))
        return parse_set(p);
    if (hr_jinja_skip_name(p, "macro"))
        return parse_macro(p);
    if (hr_jinja_skip_name(p, "with"))
        return parse_with(p);
    if (hr_jinja_skip_name(p, "filter"))
        return parse_block_filter(p);
    if (hr_jinja_skip_name(p, "generation"))
        return parse_generation(p);
    if (hr_jinja_skip_name(p, "break"))
        return parse_jump(p, HR_JINJA_BREAK);
    if (hr_jinja_skip_name(p, "continue"))
        return parse_jump(p, HR_JINJA_CONTINUE);
    if (strncmp(p->at->text, "end", 3) == 0 || hr_jinja_is_name(p, "else") || hr_jinja_is_name(p, "elif"))
        return hr_jinja_parse_fail(p, "'%s' has no beginning here", p->at->text);
    return hr_jinja_parse_fail(p, "{%% %s %%} is not supported", p->at->text);
}

/* One statement, print or run of text; at a block tag whose name ends the body, *at_end is set. */
static hr_jinja_node *parse_piece(hr_jinja_parser *p, const char *const *ends, bool *at_end)
{
    hr_jinja_node *node;

    if (p->at->kind == HR_JINJA_TOKEN_DATA) {
        node = hr_jinja_node_new(p, HR_JINJA_DATA);
        if (node) {
            node->text = p->at->text;
            node->len = p->at->len;
        }
        p->at++;
        return node;
    }
    if (p->at->kind == HR_JINJA_TOKEN_PRINT_BEGIN) {
        p->at++;
        node = hr_jinja_node_new(p, HR_JINJA_PRINT);
        if (!node || !(node->a = hr_jinja_parse_tuple(p, true, false)))
            return NULL;
        if (p->at->kind != HR_JINJA_TOKEN_PRINT_END)
            return hr_jinja_parse_fail(p, "expected the end of the tag, found %s", hr_jinja_describe(p));
        p->at++;
        return node;
    }
    p->at++; /* the block's begin */
    for (size_t i = 0; ends && ends[i]; i++) {
        if (hr_jinja_is_name(p, ends[i])) {
            *at_end = true;
            return NULL;
        }
    }
    return parse_statement(p);
}

static hr_jinja_node *parse_body(hr_jinja_parser *p, const char *const *ends, bool *ok)
{
    hr_jinja_node *first = NULL;
    hr_jinja_node **tail = &first;
    bool at_end = false;

    if (++p->statement_depth > HR_JINJA_MAX_NESTING) {
        hr_jinja_parse_fail(p, "statements are nested more than %d levels deep", HR_JINJA_MAX_NESTING);
        *ok = false;
        return NULL;
    }
    while (p->at->kind != HR_JINJA_TOKEN_EOF) {
        hr_jinja_node *node = parse_piece(p, ends, &at_end);

        if (at_end)
            break;
        if (!node) {
            *ok = false;
            return NULL;
        }
        *tail = node;
        tail = &node->next;
    }
    p->statement_depth--;
    if (ends && !at_end) {
        size_t last = 0;

        while (ends[last + 1])
            last++;
        hr_jinja_parse_fail(p, "the template ends where {%% %s %%} is missing", ends[last]);
        *ok = false;
    }
    return first;
}

headrace_status hr_jinja_parse(const char *name, const char *text, size_t len, hr_arena *arena,
                               hr_jinja_node **statements, hr_jinja_mentions *mentions, headrace_error *err)
{
    headrace_error local = {0};
    hr_jinja_parser p = {.name = name, .arena = arena, .err = err ? err : &local};
    hr_jinja_token *tokens;
    bool ok = true;

    HR_PASS(hr_jinja_lex(name, text, len, arena, &tokens, err));
    p.at = tokens;
    *statements = parse_body(&p, NULL, &ok);
    *mentions = p.mentions;
    return ok ? HEADRACE_OK : p.err->status;
}

/* See http_parser.h. The head is collected whole (it is small and bounded) and then taken apart; the body is read in
 * place. */
#include "server/http_parser.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define BODY_KEEP_BYTES 65536 /* a kept connection does not hold on to a large body's memory */
#define CHUNK_LINE_MAX 256

void hr_http_parser_init(hr_http_parser *parser, const hr_http_limits *limits)
{
    *parser = (hr_http_parser){.limits = *limits};
}

void hr_http_parser_deinit(hr_http_parser *parser)
{
    hr_buffer_deinit(&parser->head);
    hr_buffer_deinit(&parser->body);
    free(parser->fields);
    free(parser->path);
    *parser = (hr_http_parser){.limits = parser->limits};
}

void hr_http_parser_reset(hr_http_parser *parser)
{
    hr_http_parser kept = {.limits = parser->limits, .head = parser->head, .body = parser->body};

    free(parser->fields);
    free(parser->path);
    hr_buffer_clear(&kept.head);
    if (kept.body.capacity > BODY_KEEP_BYTES)
        hr_buffer_deinit(&kept.body);
    hr_buffer_clear(&kept.body);
    *parser = kept;
}

static void fail(hr_http_parser *parser, hr_api_code code, const char *message)
{
    parser->state = HR_HTTP_FAILED;
    parser->keep_alive = false;
    (void)hr_api_fail(&parser->error, code, NULL, "%s", message);
}

/* RFC 9110: what method and field names are made of. */
static bool is_token_char(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static bool decode_path(hr_http_parser *parser, const char *target, size_t len)
{
    size_t n = 0, i;

    parser->path = malloc(len + 1);
    if (!parser->path) {
        fail(parser, HR_API_ENGINE_ERROR, "The server has no memory for this request.");
        return false;
    }
    for (i = 0; i < len && target[i] != '?'; i++) {
        char c = target[i];

        if (c == '%') {
            int high = i + 2 < len ? hex_value(target[i + 1]) : -1, low = i + 2 < len ? hex_value(target[i + 2]) : -1;

            if (high < 0 || low < 0 || (high == 0 && low == 0)) {
                fail(parser, HR_API_BAD_HTTP, "The request target has a bad percent escape.");
                return false;
            }
            c = (char)(high << 4 | low);
            i += 2;
        }
        parser->path[n++] = c;
    }
    parser->path[n] = '\0';
    return true;
}

/* METHOD SP TARGET SP HTTP/1.x, without its CRLF. */
static bool parse_request_line(hr_http_parser *parser, const char *line, size_t len)
{
    const char *space = memchr(line, ' ', len), *target, *second;
    size_t method_len, target_len, i;

    if (!space || space == line || (method_len = (size_t)(space - line)) >= sizeof parser->method) {
        fail(parser, HR_API_BAD_HTTP, "The request line is not METHOD TARGET HTTP/1.1.");
        return false;
    }
    for (i = 0; i < method_len; i++) {
        if (!is_token_char((unsigned char)line[i])) {
            fail(parser, HR_API_BAD_HTTP, "The method is not a token.");
            return false;
        }
    }
    memcpy(parser->method, line, method_len);
    parser->method[method_len] = '\0';
    target = space + 1;
    second = memchr(target, ' ', len - method_len - 1);
    if (!second || line + len - second != 9 || memcmp(second + 1, "HTTP/1.", 7) != 0 ||
        (second[8] != '0' && second[8] != '1')) {
        fail(parser, HR_API_BAD_HTTP, "The request line does not end with HTTP/1.1 or HTTP/1.0.");
        return false;
    }
    parser->is_http10 = second[8] == '0';
    target_len = (size_t)(second - target);
    if (target_len > parser->limits.max_target_bytes) {
        fail(parser, HR_API_HEADERS_TOO_LARGE, "The request target is too long.");
        return false;
    }
    for (i = 0; i < target_len; i++) {
        if ((unsigned char)target[i] <= 0x20 || target[i] == 0x7F) {
            fail(parser, HR_API_BAD_HTTP, "The request target holds a control character.");
            return false;
        }
    }
    if (target_len == 0 || (target[0] != '/' && !(target_len == 1 && target[0] == '*'))) {
        fail(parser, HR_API_BAD_HTTP, "The request target must be a path that begins with /.");
        return false;
    }
    return decode_path(parser, target, target_len);
}

static bool add_field(hr_http_parser *parser, hr_http_field field)
{
    if (parser->n_fields >= parser->limits.max_header_fields) {
        fail(parser, HR_API_HEADERS_TOO_LARGE, "Too many header fields.");
        return false;
    }
    if (parser->n_fields == parser->fields_capacity) {
        uint32_t capacity = parser->fields_capacity ? parser->fields_capacity * 2 : 16;
        hr_http_field *fields = realloc(parser->fields, capacity * sizeof *fields);

        if (!fields) {
            fail(parser, HR_API_ENGINE_ERROR, "The server has no memory for this request.");
            return false;
        }
        parser->fields = fields;
        parser->fields_capacity = capacity;
    }
    parser->fields[parser->n_fields++] = field;
    return true;
}

static bool parse_field(hr_http_parser *parser, size_t start, size_t len)
{
    const char *line = parser->head.at + start, *colon = memchr(line, ':', len);
    size_t name_len, from, to, i;

    if (!colon || colon == line) {
        fail(parser, HR_API_BAD_HTTP, "A header line has no field name.");
        return false;
    }
    name_len = (size_t)(colon - line);
    for (i = 0; i < name_len; i++) { /* a blank here covers folded lines and blanks before the colon as well */
        if (!is_token_char((unsigned char)line[i])) {
            fail(parser, HR_API_BAD_HTTP, "A header field name is not a token.");
            return false;
        }
    }
    for (from = name_len + 1; from < len && (line[from] == ' ' || line[from] == '\t');)
        from++;
    for (to = len; to > from && (line[to - 1] == ' ' || line[to - 1] == '\t');)
        to--;
    for (i = from; i < to; i++) {
        unsigned char c = (unsigned char)line[i];

        if ((c < 0x20 && c != '\t') || c == 0x7F) {
            fail(parser, HR_API_BAD_HTTP, "A header field value holds a control character.");
            return false;
        }
    }
    return add_field(
        parser, (hr_http_field){(uint32_t)start, (uint32_t)name_len, (uint32_t)(start + from), (uint32_t)(to - from)});
}

static const char *find_field(const hr_http_parser *parser, const char *name, size_t *len, uint32_t *count)
{
    const char *value = NULL;
    size_t name_len = strlen(name);

    *count = 0;
    for (uint32_t i = 0; i < parser->n_fields; i++) {
        const hr_http_field *field = &parser->fields[i];

        if (field->name_len != name_len || strncasecmp(parser->head.at + field->name, name, name_len) != 0)
            continue;
        if (!value) {
            value = parser->head.at + field->value;
            *len = field->value_len;
        }
        ++*count;
    }
    return value;
}

const char *hr_http_parser_field(const hr_http_parser *parser, const char *name, size_t *len)
{
    uint32_t count;

    return find_field(parser, name, len, &count);
}

static bool is_text(const char *value, size_t len, const char *text)
{
    return len == strlen(text) && strncasecmp(value, text, len) == 0;
}

/* Whether a comma-separated list holds the word. */
static bool list_has(const char *value, size_t len, const char *word)
{
    size_t at = 0;

    while (at < len) {
        size_t end = at, stop;

        while (end < len && value[end] != ',')
            end++;
        stop = end;
        while (at < stop && (value[at] == ' ' || value[at] == '\t'))
            at++;
        while (stop > at && (value[stop - 1] == ' ' || value[stop - 1] == '\t'))
            stop--;
        if (is_text(value + at, stop - at, word))
            return true;
        at = end + 1;
    }
    return false;
}

static bool read_content_length(hr_http_parser *parser, const char *value, size_t len)
{
    uint64_t length = 0;

    if (len == 0 || len > 18) {
        fail(parser, len ? HR_API_BODY_TOO_LARGE : HR_API_BAD_HTTP, "Content-Length is not a sensible number.");
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (value[i] < '0' || value[i] > '9') {
            fail(parser, HR_API_BAD_HTTP, "Content-Length is not a number.");
            return false;
        }
        length = length * 10 + (uint64_t)(value[i] - '0');
    }
    parser->remaining = length;
    return true;
}

/* How long the body is: the place where request smuggling happens, so that everything ambiguous is refused. */
static bool frame_body(hr_http_parser *parser)
{
    size_t len = 0, transfer_len = 0;
    uint32_t n_lengths, n_transfers;
    const char *value = find_field(parser, "content-length", &len, &n_lengths);
    const char *transfer = find_field(parser, "transfer-encoding", &transfer_len, &n_transfers);

    if (n_lengths > 1 || n_transfers > 1 || (value && transfer)) {
        fail(parser, HR_API_BAD_HTTP, "The length of the body is stated more than once.");
        return false;
    }
    if (transfer) {
        if (parser->is_http10 || !is_text(transfer, transfer_len, "chunked")) {
            fail(parser, HR_API_BAD_HTTP, "The only supported Transfer-Encoding is chunked, in HTTP/1.1.");
            return false;
        }
        parser->is_chunked = true;
    }
    if (value && !read_content_length(parser, value, len))
        return false;
    if (parser->remaining > parser->limits.max_body_bytes) {
        fail(parser, HR_API_BODY_TOO_LARGE, "The body is larger than the server accepts.");
        return false;
    }
    return true;
}

static bool read_connection_fields(hr_http_parser *parser)
{
    size_t len = 0;
    uint32_t count;
    const char *value = find_field(parser, "host", &len, &count);

    if (count > 1 || (count == 0 && !parser->is_http10)) {
        fail(parser, HR_API_BAD_HTTP, "A request needs exactly one Host field.");
        return false;
    }
    value = find_field(parser, "connection", &len, &count);
    parser->keep_alive = parser->is_http10 ? value && list_has(value, len, "keep-alive") : true;
    if (value && list_has(value, len, "close"))
        parser->keep_alive = false;
    value = find_field(parser, "expect", &len, &count);
    if (value && !is_text(value, len, "100-continue")) {
        fail(parser, HR_API_BAD_HTTP, "The only supported expectation is 100-continue.");
        return false;
    }
    parser->expects_continue = value && !parser->is_http10;
    return true;
}

static void parse_head(hr_http_parser *parser)
{
    const char *head = parser->head.at;
    size_t at = 0, end = parser->head.len - 2; /* without the empty line */
    bool is_first = true;

    while (at < end) {
        const char *newline = memchr(head + at, '\n', end - at);
        size_t len = newline ? (size_t)(newline - head) - at - 1 : 0;

        if (!newline) /* cannot be: every line was seen to end */
            break;
        if (is_first ? !parse_request_line(parser, head + at, len) : !parse_field(parser, at, len))
            return;
        is_first = false;
        at += len + 2;
    }
    if (!read_connection_fields(parser) || !frame_body(parser))
        return;
    parser->state = parser->is_chunked || parser->remaining > 0 ? HR_HTTP_HEAD_DONE : HR_HTTP_COMPLETE;
}

static size_t feed_head(hr_http_parser *parser, const char *bytes, size_t len)
{
    size_t at = 0;

    while (at < len && parser->state == HR_HTTP_IN_HEAD) {
        const char *newline;
        size_t n;

        if (parser->head.len == 0 && (bytes[at] == '\r' || bytes[at] == '\n')) {
            at++; /* RFC 9112 2.2: empty lines before a request are let pass */
            continue;
        }
        parser->saw_bytes = true;
        newline = memchr(bytes + at, '\n', len - at);
        n = newline ? (size_t)(newline - bytes) - at + 1 : len - at;
        if (parser->head.len + n > parser->limits.max_header_bytes) {
            fail(parser, HR_API_HEADERS_TOO_LARGE, "The request head is larger than the server accepts.");
            return at;
        }
        hr_buffer_add(&parser->head, bytes + at, n);
        at += n;
        if (parser->head.failed) {
            fail(parser, HR_API_ENGINE_ERROR, "The server has no memory for this request.");
        } else if (newline && (parser->head.len < 2 || parser->head.at[parser->head.len - 2] != '\r')) {
            fail(parser, HR_API_BAD_HTTP, "Lines must end with CR LF.");
        } else if (newline && parser->head.len >= 4 &&
                   memcmp(parser->head.at + parser->head.len - 4, "\r\n\r\n", 4) == 0) {
            parse_head(parser);
        }
    }
    return at;
}

static size_t feed_data(hr_http_parser *parser, const char *bytes, size_t len, hr_http_state next)
{
    size_t n = len < parser->remaining ? len : (size_t)parser->remaining;

    hr_buffer_add(&parser->body, bytes, n);
    parser->remaining -= n;
    if (parser->body.failed)
        fail(parser, HR_API_ENGINE_ERROR, "The server has no memory for this request.");
    else if (parser->remaining == 0)
        parser->state = next;
    return n;
}

static void end_chunk_size(hr_http_parser *parser)
{
    parser->line_bytes = 0;
    parser->size_digits = 0;
    parser->trailer_line_empty = true;
    parser->trailer_cr = false;
    parser->state = parser->remaining ? HR_HTTP_IN_CHUNK : HR_HTTP_IN_TRAILER;
    if (parser->remaining > parser->limits.max_body_bytes - parser->body.len)
        fail(parser, HR_API_BODY_TOO_LARGE, "The body is larger than the server accepts.");
}

/* One byte of the framing between chunks. */
static void feed_framing(hr_http_parser *parser, char c)
{
    switch (parser->state) {
    case HR_HTTP_IN_CHUNK_SIZE:
        if (hex_value(c) >= 0 && parser->size_digits < 15) {
            parser->remaining = parser->remaining << 4 | (uint64_t)hex_value(c);
            parser->size_digits++;
        } else if (parser->size_digits && c == '\r') {
            parser->state = HR_HTTP_IN_CHUNK_SIZE_LF;
        } else if (parser->size_digits && c == ';') {
            parser->state = HR_HTTP_IN_CHUNK_EXTENSION;
        } else {
            fail(parser, HR_API_BAD_HTTP, "A chunk size is not a hexadecimal number.");
        }
        break;
    case HR_HTTP_IN_CHUNK_EXTENSION:
        if (c == '\r')
            parser->state = HR_HTTP_IN_CHUNK_SIZE_LF;
        else if (((unsigned char)c < 0x20 && c != '\t') || ++parser->line_bytes > CHUNK_LINE_MAX)
            fail(parser, HR_API_BAD_HTTP, "A chunk extension is malformed or too long.");
        break;
    case HR_HTTP_IN_CHUNK_SIZE_LF:
        if (c == '\n')
            end_chunk_size(parser);
        else
            fail(parser, HR_API_BAD_HTTP, "A chunk size line does not end with CR LF.");
        break;
    case HR_HTTP_IN_CHUNK_CR:
    case HR_HTTP_IN_CHUNK_LF:
        if (c != (parser->state == HR_HTTP_IN_CHUNK_CR ? '\r' : '\n'))
            fail(parser, HR_API_BAD_HTTP, "A chunk does not end with CR LF.");
        else
            parser->state = parser->state == HR_HTTP_IN_CHUNK_CR ? HR_HTTP_IN_CHUNK_LF : HR_HTTP_IN_CHUNK_SIZE;
        break;
    default: /* HR_HTTP_IN_TRAILER: nothing here is used, but it must end */
        if (++parser->line_bytes > parser->limits.max_header_bytes)
            fail(parser, HR_API_HEADERS_TOO_LARGE, "The trailer is larger than the server accepts.");
        else if ((c == '\n') != parser->trailer_cr)
            fail(parser, HR_API_BAD_HTTP, "Lines must end with CR LF.");
        else if (c == '\n' && parser->trailer_line_empty)
            parser->state = HR_HTTP_COMPLETE;
        else if (c != '\r')
            parser->trailer_line_empty = c == '\n';
        parser->trailer_cr = c == '\r';
    }
}

size_t hr_http_parser_feed(hr_http_parser *parser, const char *bytes, size_t len)
{
    size_t at = 0;

    if (parser->state == HR_HTTP_HEAD_DONE)
        parser->state = parser->is_chunked ? HR_HTTP_IN_CHUNK_SIZE : HR_HTTP_IN_BODY;
    while (at < len && parser->state != HR_HTTP_COMPLETE && parser->state != HR_HTTP_FAILED) {
        if (parser->state == HR_HTTP_IN_HEAD) {
            at += feed_head(parser, bytes + at, len - at);
            if (parser->state == HR_HTTP_HEAD_DONE)
                return at;
        } else if (parser->state == HR_HTTP_IN_BODY) {
            at += feed_data(parser, bytes + at, len - at, HR_HTTP_COMPLETE);
        } else if (parser->state == HR_HTTP_IN_CHUNK) {
            at += feed_data(parser, bytes + at, len - at, HR_HTTP_IN_CHUNK_CR);
        } else {
            feed_framing(parser, bytes[at++]);
        }
    }
    return at;
}

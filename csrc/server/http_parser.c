/* See http_parser.h. The head is collected whole (it is small and bounded) and given to the library in one call, so
 * that its callbacks see whole names and values; chunk and body data go to it as they come, chunk framing byte by byte.
 *
 * A proxy in front must not find other request borders than we do, so what the library (2.9.4, which Debian builds
 * without HTTP_PARSER_STRICT) lets pass and RFC 9112 does not, or lets a recipient refuse, is refused here:
 * - check_byte, on all bytes outside bodies: bare CR, bare LF, folded lines, control characters.
 * - check_framing: blanks behind a chunk size, and bytes from 0x80 in it, which the library reads as the digit 0.
 * - on_chunk_end: any two bytes in place of the CR LF behind chunk data.
 * - on_url: several blanks in the request line, no version (HTTP/0.9) or another than 1.0 and 1.1, any four letters for
 *   HTTP, tabs in the target, targets that are no path, CONNECT (which would end the request before its body).
 * - on_field: blanks in field names, so also before the colon.
 * - on_head: no Host or several; Transfer-Encoding twice, with other codings, or in HTTP/1.0.
 * - execute: nothing lenient, but a Content-Length beyond 64 bits is 413 like any other that is too large.
 */
#include "server/http_parser.h"

#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define BODY_KEEP_BYTES 65536 /* a kept connection does not hold on to a large body's memory */
#define CHUNK_LINE_MAX 256

/* The library's own limit is one number for the whole process; those of the parser here are checked before it. */
static void lift_library_limit(void)
{
    http_parser_set_max_header_size(UINT32_MAX);
}

void hr_http_parser_init(hr_http_parser *parser, const hr_http_limits *limits)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    (void)pthread_once(&once, lift_library_limit);
    *parser = (hr_http_parser){.limits = *limits, .method = ""};
    http_parser_init(&parser->library, HTTP_REQUEST);
    parser->library.data = parser;
}

void hr_http_parser_deinit(hr_http_parser *parser)
{
    hr_buffer_deinit(&parser->head);
    hr_buffer_deinit(&parser->body);
    free(parser->fields);
    free(parser->path);
    hr_http_parser_init(parser, &parser->limits);
}

void hr_http_parser_reset(hr_http_parser *parser)
{
    hr_buffer head = parser->head, body = parser->body;

    hr_buffer_clear(&head);
    if (body.capacity > BODY_KEEP_BYTES)
        hr_buffer_deinit(&body);
    hr_buffer_clear(&body);
    parser->head = parser->body = (hr_buffer){0};
    hr_http_parser_deinit(parser);
    parser->head = head;
    parser->body = body;
}

/* Returns what stops the library when a callback returns it. */
static int fail(hr_http_parser *parser, hr_api_code code, const char *message)
{
    parser->state = HR_HTTP_FAILED;
    parser->keep_alive = false;
    (void)hr_api_fail(&parser->error, code, NULL, "%s", message);
    return -1;
}

static int fail_memory(hr_http_parser *parser)
{
    return fail(parser, HR_API_ENGINE_ERROR, "The server has no memory for this request.");
}

/* What holds for every byte outside bodies. */
static int check_byte(hr_http_parser *parser, char c)
{
    char previous = parser->previous;

    parser->previous = c;
    if ((c == '\n') != (previous == '\r'))
        return fail(parser, HR_API_BAD_HTTP, "Lines must end with CR LF.");
    if (previous == '\n' && (c == ' ' || c == '\t'))
        return fail(parser, HR_API_BAD_HTTP, "A line begins with a blank; folded lines are not accepted.");
    if (((unsigned char)c < 0x20 && c != '\t' && c != '\r' && c != '\n') || c == 0x7F)
        return fail(parser, HR_API_BAD_HTTP, "A header or chunk line holds a control character.");
    return 0;
}

/* ---------------------------------------------------------------- head */

static int decode_path(hr_http_parser *parser, const char *target, size_t len)
{
    size_t n = 0, i;

    parser->path = malloc(len + 1);
    if (!parser->path)
        return fail_memory(parser);
    for (i = 0; i < len && target[i] != '?'; i++) {
        char c = target[i];

        if (c == '%') {
            char digits[3] = {target[i + 1], target[i + 2], '\0'}; /* a blank follows the target: no digit */

            c = isxdigit((unsigned char)digits[0]) && isxdigit((unsigned char)digits[1])
                    ? (char)strtoul(digits, NULL, 16)
                    : '\0';
            if (c == '\0')
                return fail(parser, HR_API_BAD_HTTP, "The request target has a bad percent escape.");
            i += 2;
        }
        parser->path[n++] = c;
    }
    parser->path[n] = '\0';
    return 0;
}

/* The target lies in the head, which is terminated: looking around it is safe. */
static int on_url(http_parser *library, const char *target, size_t len)
{
    hr_http_parser *parser = library->data;
    const char *version = target + len;

    parser->method = http_method_str((enum http_method)library->method);
    if (len > parser->limits.max_target_bytes)
        return fail(parser, HR_API_HEADERS_TOO_LARGE, "The request target is too long.");
    if (target[-2] == ' ' || strncmp(version, " HTTP/1.", 8) != 0 || (version[8] != '0' && version[8] != '1') ||
        version[9] != '\r')
        return fail(parser, HR_API_BAD_HTTP, "The request line is not METHOD TARGET HTTP/1.1 or HTTP/1.0.");
    parser->is_http10 = version[8] == '0';
    if (library->method == HTTP_CONNECT || (target[0] != '/' && !(len == 1 && target[0] == '*')) ||
        memchr(target, '\t', len))
        return fail(parser, HR_API_BAD_HTTP, "The request target must be a path that begins with /.");
    return decode_path(parser, target, len);
}

static int on_field(http_parser *library, const char *name, size_t len)
{
    hr_http_parser *parser = library->data;

    if (parser->state != HR_HTTP_IN_HEAD) /* trailers are read and dropped */
        return 0;
    if (memchr(name, ' ', len))
        return fail(parser, HR_API_BAD_HTTP, "A header field name holds a blank.");
    if (parser->n_fields >= parser->limits.max_header_fields)
        return fail(parser, HR_API_HEADERS_TOO_LARGE, "Too many header fields.");
    if (!parser->fields) {
        parser->fields = calloc(parser->limits.max_header_fields, sizeof *parser->fields);
        if (!parser->fields)
            return fail_memory(parser);
    }
    parser->fields[parser->n_fields++] = (hr_http_field){(uint32_t)(name - parser->head.at), (uint32_t)len, 0, 0};
    return 0;
}

/* Once a field: folded lines, of which there would be several values, were refused. */
static int on_value(http_parser *library, const char *value, size_t len)
{
    hr_http_parser *parser = library->data;

    if (parser->state != HR_HTTP_IN_HEAD)
        return 0;
    while (len > 0 && (value[len - 1] == ' ' || value[len - 1] == '\t'))
        len--;
    parser->fields[parser->n_fields - 1].value = (uint32_t)(value - parser->head.at);
    parser->fields[parser->n_fields - 1].value_len = (uint32_t)len;
    return 0;
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

static int on_head(http_parser *library)
{
    hr_http_parser *parser = library->data;
    bool has_body = library->content_length != UINT64_MAX; /* which stands for no Content-Length */
    const char *value;
    size_t len = 0;
    uint32_t count;

    (void)find_field(parser, "host", &len, &count);
    if (count > 1 || (count == 0 && !parser->is_http10))
        return fail(parser, HR_API_BAD_HTTP, "A request needs exactly one Host field.");
    value = find_field(parser, "transfer-encoding", &len, &count);
    if (value && (count > 1 || parser->is_http10 || !is_text(value, len, "chunked")))
        return fail(parser, HR_API_BAD_HTTP, "The only supported Transfer-Encoding is chunked, once, in HTTP/1.1.");
    value = find_field(parser, "expect", &len, &count);
    if (value && !is_text(value, len, "100-continue"))
        return fail(parser, HR_API_BAD_HTTP, "The only supported expectation is 100-continue.");
    parser->expects_continue = value && !parser->is_http10;
    if (has_body && library->content_length > parser->limits.max_body_bytes)
        return fail(parser, HR_API_BODY_TOO_LARGE, "The body is larger than the server accepts.");
    parser->remaining = has_body ? library->content_length : 0;
    parser->keep_alive = http_should_keep_alive(library) && !(library->flags & F_CONNECTION_CLOSE);
    return 0;
}

/* ---------------------------------------------------------------- body */

static int on_body(http_parser *library, const char *bytes, size_t len)
{
    hr_http_parser *parser = library->data;

    hr_buffer_add(&parser->body, bytes, len);
    parser->remaining -= len;
    parser->previous = 0;
    return parser->body.failed ? fail_memory(parser) : 0;
}

static int on_chunk_size(http_parser *library)
{
    hr_http_parser *parser = library->data;

    if (library->content_length > parser->limits.max_body_bytes - parser->body.len)
        return fail(parser, HR_API_BODY_TOO_LARGE, "The body is larger than the server accepts.");
    parser->remaining = library->content_length;
    parser->in_trailer = parser->remaining == 0;
    parser->in_extension = false;
    parser->line_bytes = 0;
    return 0;
}

static int on_chunk_end(http_parser *library)
{
    hr_http_parser *parser = library->data;

    parser->line_bytes = 0;
    return parser->previous == '\n' ? 0 : fail(parser, HR_API_BAD_HTTP, "A chunk does not end with CR LF.");
}

static int on_complete(http_parser *library)
{
    ((hr_http_parser *)library->data)->state = HR_HTTP_COMPLETE;
    return 0;
}

static int check_framing(hr_http_parser *parser, char c)
{
    uint32_t max = parser->in_trailer ? parser->limits.max_header_bytes : CHUNK_LINE_MAX;

    parser->in_extension |= c == ';';
    if (!parser->in_trailer && !parser->in_extension && c != '\r' && c != '\n' && !isxdigit((unsigned char)c))
        return fail(parser, HR_API_BAD_HTTP, "A chunk size is not a hexadecimal number.");
    if (++parser->line_bytes > max)
        return fail(parser, parser->in_trailer ? HR_API_HEADERS_TOO_LARGE : HR_API_BAD_HTTP,
                    "A chunk size line or the trailer is too long.");
    return check_byte(parser, c);
}

/* ---------------------------------------------------------------- feeding */

/* Gives bytes to the library; it uses all of them or something failed. */
static bool execute(hr_http_parser *parser, const char *bytes, size_t len)
{
    static const http_parser_settings settings = {
        .on_url = on_url,
        .on_header_field = on_field,
        .on_header_value = on_value,
        .on_headers_complete = on_head,
        .on_body = on_body,
        .on_message_complete = on_complete,
        .on_chunk_header = on_chunk_size,
        .on_chunk_complete = on_chunk_end,
    };
    const http_parser *library = &parser->library;
    char message[160];
    enum http_errno error;
    bool is_huge;

    (void)http_parser_execute(&parser->library, &settings, bytes, len);
    error = HTTP_PARSER_ERRNO(library);
    if (error == HPE_OK || parser->state == HR_HTTP_FAILED)
        return error == HPE_OK;
    /* The library has one error for a length that is no number and for one beyond 64 bits, where it stops. */
    is_huge = error == HPE_INVALID_CONTENT_LENGTH && parser->state == HR_HTTP_IN_HEAD &&
              (library->flags & F_CONTENTLENGTH) && library->content_length >= UINT64_MAX / 10;
    (void)snprintf(message, sizeof message, "The request is not well-formed HTTP: %s.", http_errno_description(error));
    return fail(parser, is_huge ? HR_API_BODY_TOO_LARGE : HR_API_BAD_HTTP, message) == 0;
}

static void feed_head(hr_http_parser *parser, char c)
{
    hr_buffer *head = &parser->head;

    if (head->len == 0 && (c == '\r' || c == '\n')) /* RFC 9112 2.2: empty lines before a request are let pass */
        return;
    parser->saw_bytes = true;
    if (head->len == parser->limits.max_header_bytes) {
        (void)fail(parser, HR_API_HEADERS_TOO_LARGE, "The request head is larger than the server accepts.");
        return;
    }
    hr_buffer_add_char(head, c);
    if (head->failed)
        (void)fail_memory(parser);
    else if (check_byte(parser, c) == 0 && c == '\n' && head->len >= 4 && head->at[head->len - 3] == '\n' &&
             execute(parser, head->at, head->len) && parser->state == HR_HTTP_IN_HEAD)
        parser->state = HR_HTTP_HEAD_DONE;
}

size_t hr_http_parser_feed(hr_http_parser *parser, const char *bytes, size_t len)
{
    size_t at = 0;

    if (parser->state == HR_HTTP_HEAD_DONE)
        parser->state = HR_HTTP_IN_BODY;
    while (at < len && parser->state == HR_HTTP_IN_HEAD)
        feed_head(parser, bytes[at++]);
    while (at < len && parser->state == HR_HTTP_IN_BODY) {
        bool is_data = parser->remaining > 0;
        size_t n = !is_data ? 1 : parser->remaining < len - at ? (size_t)parser->remaining : len - at;

        if ((!is_data && check_framing(parser, bytes[at]) != 0) || !execute(parser, bytes + at, n))
            break;
        at += n;
    }
    return at;
}

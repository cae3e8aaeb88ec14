/* HTTP/1.1 requests out of a byte stream (RFC 9112), with limits. No sockets, no clock: a machine that tests and
 * fuzzers drive.
 *
 * Parsing is http-parser's (Debian: libhttp-parser-dev). This room holds our limits, our error bodies, and what that
 * library is lenient about: http_parser.c says which and why. Its successor llhttp has no development package in
 * Debian 12; the interface is the same, so that a later Debian can switch.
 */
#ifndef HR_SERVER_HTTP_PARSER_H
#define HR_SERVER_HTTP_PARSER_H

#include "server/api_error.h"

#include <http_parser.h>

typedef struct hr_http_limits {
    uint64_t max_body_bytes;
    uint32_t max_header_bytes; /* request line and fields together; also for trailers */
    uint32_t max_header_fields;
    uint32_t max_target_bytes;
} hr_http_limits;

typedef enum hr_http_state {
    HR_HTTP_IN_HEAD = 0, /* also before the first byte */
    HR_HTTP_HEAD_DONE,   /* the head was read and a body follows: the caller may look, then feeds on */
    HR_HTTP_IN_BODY,     /* chunk framing and trailers included */
    HR_HTTP_COMPLETE,    /* a whole request */
    HR_HTTP_FAILED,      /* error says why; the connection cannot go on */
} hr_http_state;

/* A range of `head`. */
typedef struct hr_http_field {
    uint32_t name, name_len, value, value_len;
} hr_http_field;

/* Must not move between init and deinit. */
typedef struct hr_http_parser {
    hr_http_limits limits;
    hr_http_state state;
    http_parser library;
    hr_buffer head; /* raw head, CRLFs included */
    hr_buffer body; /* without chunk framing */
    hr_http_field *fields;
    uint32_t n_fields;
    const char *method; /* "" until it is known; static */
    char *path;         /* percent-decoded, without the query; malloc'ed, terminated; holds no NUL */
    bool is_http10, keep_alive, expects_continue;
    bool saw_bytes;                /* a request has begun */
    char previous;                 /* byte of the head or of chunk framing; 0 at the start and after chunk data */
    bool in_extension, in_trailer; /* of the chunk framing */
    uint32_t line_bytes;           /* of the current chunk size line, or of all trailers */
    uint64_t remaining;            /* of the body or chunk */
    hr_api_error error;
} hr_http_parser;

void hr_http_parser_init(hr_http_parser *parser, const hr_http_limits *limits);
void hr_http_parser_deinit(hr_http_parser *parser);
/* Ready for the next request; frees a large body. */
void hr_http_parser_reset(hr_http_parser *parser);

/* Reads until the request is complete, its head is (HR_HTTP_HEAD_DONE, once), it fails, or bytes run out. Returns how
 * many bytes were used; nothing behind the request is. */
size_t hr_http_parser_feed(hr_http_parser *parser, const char *bytes, size_t len);

/* The value of a field (name in lower case), not terminated; NULL if absent. When there are several the first one
 * counts; those where that matters were refused. */
const char *hr_http_parser_field(const hr_http_parser *parser, const char *name, size_t *len);

#endif

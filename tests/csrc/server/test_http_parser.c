/* Requests cut in every possible way are the same request; what is ambiguous or too large is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "server/http_parser.h"

#include <stdio.h>
#include <string.h>

static const hr_http_limits small = {
    .max_body_bytes = 64, .max_header_bytes = 256, .max_header_fields = 4, .max_target_bytes = 32};

static const char plain[] = "POST /a%20b?c=d HTTP/1.1\r\nHost: x\r\nX-One:  v w \r\nContent-Length: 5\r\n\r\nhello";
static const char chunked[] =
    "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
    "2;ext=\"1\"\r\nhe\r\n003\r\nllo\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: gzip\r\n\r\n";

#define CHUNKED_HEAD "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"

/* Feeds pieces of n bytes until the parser needs no more; returns the bytes used. */
static size_t feed(hr_http_parser *parser, const char *text, size_t len, size_t n)
{
    size_t at = 0;

    while (at < len && parser->state != HR_HTTP_COMPLETE && parser->state != HR_HTTP_FAILED)
        at += hr_http_parser_feed(parser, text + at, n < len - at ? n : len - at);
    return at;
}

static void any_cutting_gives_the_same_request(void **state)
{
    (void)state;
    for (size_t n = 1; n < sizeof plain; n++) {
        hr_http_parser parser;
        size_t len;
        const char *value;

        hr_http_parser_init(&parser, &small);
        assert_int_equal(feed(&parser, plain, sizeof plain - 1, n), sizeof plain - 1);
        assert_int_equal(parser.state, HR_HTTP_COMPLETE);
        assert_string_equal(parser.method, "POST");
        assert_string_equal(parser.path, "/a b");
        assert_memory_equal(parser.body.at, "hello", 5);
        value = hr_http_parser_field(&parser, "x-one", &len);
        assert_int_equal(len, 3);
        assert_memory_equal(value, "v w", 3);
        assert_null(hr_http_parser_field(&parser, "x-two", &len));
        assert_true(parser.keep_alive);
        hr_http_parser_deinit(&parser);
    }
}

static void chunks_are_joined(void **state)
{
    (void)state;
    for (size_t n = 1; n < sizeof chunked; n++) {
        hr_http_parser parser;

        hr_http_parser_init(&parser, &small);
        assert_int_equal(feed(&parser, chunked, sizeof chunked - 1, n), sizeof chunked - 1);
        assert_int_equal(parser.state, HR_HTTP_COMPLETE);
        assert_int_equal(parser.body.len, 5);
        assert_memory_equal(parser.body.at, "hello", 5);
        hr_http_parser_deinit(&parser);
    }
}

static void the_next_request_is_left_alone(void **state)
{
    char two[2 * sizeof plain];
    hr_http_parser parser;
    size_t used;

    (void)state;
    (void)snprintf(two, sizeof two, "%s%s", plain, plain);
    hr_http_parser_init(&parser, &small);
    used = feed(&parser, two, strlen(two), sizeof two);
    assert_int_equal(used, sizeof plain - 1);
    hr_http_parser_reset(&parser);
    assert_int_equal(parser.state, HR_HTTP_IN_HEAD);
    assert_int_equal(feed(&parser, two + used, strlen(two) - used, 7), sizeof plain - 1);
    assert_memory_equal(parser.body.at, "hello", 5);
    hr_http_parser_deinit(&parser);
}

static void what_is_ambiguous_is_refused(void **state)
{
    static const struct {
        const char *text;
        hr_api_code code;
    } cases[] = {
        {"GET / HTTP/1.1\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\n x\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 65\r\n\r\n", HR_API_BODY_TOO_LARGE},
        {"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n"
         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n1\r\n",
         HR_API_BODY_TOO_LARGE},
        {"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\na: 1\r\na: 1\r\na: 1\r\na: 1\r\na: 1\r\n\r\n", HR_API_HEADERS_TOO_LARGE},
        {"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\nHost: a\r\n\r\n", HR_API_HEADERS_TOO_LARGE},
        {"AVERYLONGMETHODNAME / HTTP/1.1\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {" / HTTP/1.1\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.2\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"GET /aHTTP/1.1\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HXXP/1.1\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/0.9\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"SOURCE / ICE/1.1\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"GET /\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"GET *a HTTP/1.1\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"CONNECT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", HR_API_BAD_HTTP},
        {"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost : a\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\na b: 1\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\na: 1\rb: 2\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\na:\r b\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\na:\r\n b\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\na: 1\r\n\tb\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\na: \x7f\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 2\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\n", HR_API_BODY_TOO_LARGE},
        {"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "Transfer-Encoding: chunked\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", HR_API_BAD_HTTP},
        {"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n1 \r\na\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n1 ;b\r\na\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n1\x80\r\na\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n0x1\r\na\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n1\rXa\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n1;a\n1\r\na\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n1;\x01\r\na\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n1\r\naXY0\r\n\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n1\r\na\rX0\r\n\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n1\r\naX\n0\r\n\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n1\r\naX\r0\r\n\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n1\r\n\r\n0\r\n\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\nfffffffffffffffff\r\n", HR_API_BAD_HTTP},
        {CHUNKED_HEAD "\r\n0\r\n\rX", HR_API_BAD_HTTP},
        {"GET /%4 HTTP/1.1\r\nHost: a\r\n\r\n", HR_API_BAD_HTTP},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_http_parser parser;

        hr_http_parser_init(&parser, &small);
        (void)feed(&parser, cases[i].text, strlen(cases[i].text), 3);
        if (parser.state != HR_HTTP_FAILED || parser.error.code != cases[i].code)
            fail_msg("case %zu: state %d, code %d", i, (int)parser.state, (int)parser.error.code);
        assert_false(parser.keep_alive);
        hr_http_parser_deinit(&parser);
    }
}

/* All pieces of the connection's wish: close wins, whatever stands beside it, in one field or several. */
static void the_connection_field_decides_about_the_next_request(void **state)
{
    static const struct {
        const char *text;
        bool keep_alive;
    } cases[] = {
        {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", true},
        {"GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, close , y\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nHost: a\r\nConnection: x\r\nConnection: close\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nHost: a\r\nConnection: closed\r\n\r\n", true},
        {"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", true},
        {"GET / HTTP/1.0\r\n\r\n", false},
        {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true},
        {"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_http_parser parser;

        hr_http_parser_init(&parser, &small);
        assert_int_equal(feed(&parser, cases[i].text, strlen(cases[i].text), 4), strlen(cases[i].text));
        assert_int_equal(parser.state, HR_HTTP_COMPLETE);
        if (parser.keep_alive != cases[i].keep_alive)
            fail_msg("case %zu: keep_alive is %d", i, parser.keep_alive);
        hr_http_parser_deinit(&parser);
    }
}

static void an_endless_head_is_cut_off(void **state)
{
    hr_http_parser parser;
    size_t used = 0;

    (void)state;
    hr_http_parser_init(&parser, &small);
    (void)hr_http_parser_feed(&parser, "GET / HTTP/1.1\r\n", 16);
    while (parser.state == HR_HTTP_IN_HEAD && used < 1000)
        used += hr_http_parser_feed(&parser, "a", 1);
    assert_int_equal(parser.state, HR_HTTP_FAILED);
    assert_int_equal(parser.error.code, HR_API_HEADERS_TOO_LARGE);
    assert_true(used <= small.max_header_bytes);
    hr_http_parser_deinit(&parser);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_cutting_gives_the_same_request),
        cmocka_unit_test(chunks_are_joined),
        cmocka_unit_test(the_next_request_is_left_alone),
        cmocka_unit_test(what_is_ambiguous_is_refused),
        cmocka_unit_test(an_endless_head_is_cut_off),
        cmocka_unit_test(the_connection_field_decides_about_the_next_request),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

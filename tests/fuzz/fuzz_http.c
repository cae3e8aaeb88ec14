/* Any bytes as an HTTP connection: the same requests come out whether the bytes come at once or cut in pieces, and
 * never more than the limits is held. */
#include "server/http_parser.h"

#include "base/status.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const hr_http_limits limits = {
    .max_body_bytes = 4096, .max_header_bytes = 1024, .max_header_fields = 8, .max_target_bytes = 128};

/* What a connection did, as text. */
static void run(const char *bytes, size_t len, size_t piece, hr_buffer *trace)
{
    hr_http_parser parser;
    size_t at = 0, end = 0;

    hr_http_parser_init(&parser, &limits);
    while (at < len && parser.state != HR_HTTP_FAILED) {
        if (at == end)
            end = piece < len - at ? at + piece : len;
        at += hr_http_parser_feed(&parser, bytes + at, end - at);
        HR_ASSERT(at <= end && parser.body.len <= limits.max_body_bytes && parser.head.len <= limits.max_header_bytes);
        if (parser.state == HR_HTTP_COMPLETE) {
            hr_buffer_printf(trace, "%s %s %u %d ", parser.method, parser.path, parser.n_fields, parser.keep_alive);
            hr_buffer_add(trace, parser.body.at ? parser.body.at : "", parser.body.len);
            hr_http_parser_reset(&parser);
        }
    }
    if (parser.state == HR_HTTP_FAILED)
        hr_buffer_printf(trace, "error %d", (int)parser.error.code);
    hr_http_parser_deinit(&parser);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    hr_buffer whole = {0}, cut = {0};

    if (size == 0)
        return 0;
    run((const char *)data + 1, size - 1, size, &whole);
    run((const char *)data + 1, size - 1, data[0] % 16u + 1, &cut);
    HR_ASSERT(whole.len == cut.len && (whole.len == 0 || memcmp(whole.at, cut.at, whole.len) == 0));
    hr_buffer_deinit(&whole);
    hr_buffer_deinit(&cut);
    return 0;
}

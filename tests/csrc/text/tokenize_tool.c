/* tokenize_tool PATH VOCAB_SIZE: the tokenizer behind a pipe, so that a test in another language can compare many texts
 * quickly.
 *
 * PATH is a tokenizer.json or a .gguf. Requests on stdin: u32 operation, u32 n, n bytes. Answers on stdout: u32 n, n
 * bytes. operation 0..3: encode the bytes with these HEADRACE_ENCODE_* flags; the answer is i32 ids operation 16, 17:
 * decode i32 ids (17: without special tokens); the answer is text, as a stream of single tokens gives it operation 32:
 * encode ranges: bytes are u32 n, n pairs of u32 (length, parse_special), text; the answer is i32 ids A failure ends
 * the program with a message and status 1.
 */
#include "text/detokenize.h"
#include "text/tokenizer.h"

#include <string.h>

enum { OP_DECODE = 16, OP_DECODE_PLAIN = 17, OP_RANGES = 32, RANGES_MAX = 64 };

static void stop(const headrace_error *err)
{
    (void)fprintf(stderr, "tokenize_tool: %s\n", err->message);
    exit(1);
}

static void answer(const void *bytes, size_t n_bytes)
{
    uint32_t n = (uint32_t)n_bytes;

    (void)fwrite(&n, sizeof n, 1, stdout);
    (void)fwrite(bytes, 1, n_bytes, stdout);
    (void)fflush(stdout);
}

static void decode(const hr_tokenizer *tokenizer, const char *payload, uint32_t n, bool keep_special)
{
    hr_detokenizer d;

    hr_detokenizer_init(&d, tokenizer, keep_special, false, NULL, 0);
    for (uint32_t i = 0; i + sizeof(int32_t) <= n; i += sizeof(int32_t)) {
        int32_t id;

        memcpy(&id, payload + i, sizeof id);
        (void)hr_detokenizer_add(&d, id, true);
    }
    hr_detokenizer_finish(&d);
    answer(d.shown.len ? d.shown.at : "", d.shown.len);
    hr_detokenizer_deinit(&d);
}

static headrace_status encode_ranges(const hr_tokenizer *tokenizer, const char *payload, uint32_t n, int32_t **ids,
                                     size_t *n_ids, headrace_error *err)
{
    hr_text_range ranges[RANGES_MAX];
    uint32_t n_ranges = 0;
    size_t total = 0, text_at;

    if (n >= sizeof n_ranges)
        memcpy(&n_ranges, payload, sizeof n_ranges);
    text_at = sizeof n_ranges + n_ranges * 2 * sizeof(uint32_t);
    if (n < sizeof n_ranges || n_ranges > RANGES_MAX || text_at > n)
        return hr_fail(err, HEADRACE_E_ARGUMENT, "bad ranges");
    for (uint32_t i = 0; i < n_ranges; i++) {
        uint32_t pair[2];

        memcpy(pair, payload + sizeof n_ranges + i * sizeof pair, sizeof pair);
        ranges[i] = (hr_text_range){.len = pair[0], .parse_special = pair[1] != 0};
        total += pair[0];
    }
    if (total != n - text_at)
        return hr_fail(err, HEADRACE_E_ARGUMENT, "ranges and text differ in length");
    return hr_tokenizer_encode_ranges(tokenizer, payload + text_at, ranges, n_ranges, ids, n_ids, err);
}

static void serve(const hr_tokenizer *tokenizer)
{
    headrace_error err = {0};
    uint32_t head[2];
    char *payload = NULL;

    while (fread(head, sizeof head, 1, stdin) == 1) {
        headrace_status status;
        int32_t *ids = NULL;
        size_t n_ids = 0;

        payload = realloc(payload, (size_t)head[1] + 1);
        if (!payload || fread(payload, 1, head[1], stdin) != head[1])
            break;
        if (head[0] == OP_DECODE || head[0] == OP_DECODE_PLAIN) {
            decode(tokenizer, payload, head[1], head[0] == OP_DECODE);
            continue;
        }
        status = head[0] == OP_RANGES ? encode_ranges(tokenizer, payload, head[1], &ids, &n_ids, &err)
                                      : hr_tokenizer_encode(tokenizer, payload, head[1], head[0], &ids, &n_ids, &err);
        if (status != HEADRACE_OK)
            stop(&err);
        answer(ids, n_ids * sizeof *ids);
        free(ids);
    }
    free(payload);
}

int main(int argc, char **argv)
{
    headrace_error err = {0};
    headrace_status status;
    hr_tokenizer *tokenizer = NULL;
    hr_gguf gguf = {0};
    uint32_t vocab_size;
    size_t len = argc == 3 ? strlen(argv[1]) : 0;

    if (argc != 3) {
        (void)fprintf(stderr, "usage: tokenize_tool PATH VOCAB_SIZE < requests\n");
        return 2;
    }
    vocab_size = (uint32_t)strtoul(argv[2], NULL, 10);
    if (len > 5 && strcmp(argv[1] + len - 5, ".gguf") == 0) {
        status = hr_gguf_open(argv[1], &gguf, &err);
        if (status == HEADRACE_OK)
            status = hr_tokenizer_open_gguf(&gguf, vocab_size, &tokenizer, &err);
        hr_gguf_close(&gguf); /* strings were copied */
    } else {
        status = hr_tokenizer_open_json(argv[1], vocab_size, &tokenizer, &err);
    }
    if (status != HEADRACE_OK)
        stop(&err);
    serve(tokenizer);
    hr_tokenizer_close(tokenizer);
    return 0;
}

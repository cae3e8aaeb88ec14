/* bench_tokenizer TOKENIZER_JSON TEXT_FILE...: encoding speed, one thread, median of several rounds, as JSON lines.
 *
 * Each file is encoded once to fill the piece cache and then timed: a server sees the same words again and again.
 */
#include "base/clock.h"
#include "base/file.h"
#include "text/tokenizer.h"

#include <string.h>

enum { N_ROUNDS = 9, TEXT_MAX = 256 * 1024 * 1024 };

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static headrace_status measure(const hr_tokenizer *tokenizer, const char *path, headrace_error *err)
{
    uint64_t times_us[N_ROUNDS];
    headrace_status status = HEADRACE_OK;
    size_t len, n_ids = 0;
    char *text;

    HR_PASS(hr_file_read(path, TEXT_MAX, &text, &len, err));
    for (int round = -1; round < N_ROUNDS && status == HEADRACE_OK; round++) {
        uint64_t begin = hr_now_us();
        int32_t *ids;

        status = hr_tokenizer_encode(tokenizer, text, len, 0, &ids, &n_ids, err);
        free(ids);
        if (round >= 0)
            times_us[round] = hr_now_us() - begin;
    }
    free(text);
    HR_PASS(status);
    qsort(times_us, N_ROUNDS, sizeof *times_us, compare);
    (void)printf("{\"text\": \"%s\", \"bytes\": %zu, \"ids\": %zu, \"median_us\": %llu, \"fastest_us\": %llu, "
                 "\"slowest_us\": %llu}\n",
                 path, len, n_ids, (unsigned long long)times_us[N_ROUNDS / 2], (unsigned long long)times_us[0],
                 (unsigned long long)times_us[N_ROUNDS - 1]);
    return HEADRACE_OK;
}

int main(int argc, char **argv)
{
    headrace_error err = {0};
    hr_tokenizer *tokenizer = NULL;
    headrace_status status;

    if (argc < 3) {
        (void)fprintf(stderr, "usage: bench_tokenizer TOKENIZER_JSON TEXT_FILE...\n");
        return 2;
    }
    status = hr_tokenizer_open_json(argv[1], UINT32_MAX, &tokenizer, &err);
    for (int i = 2; i < argc && status == HEADRACE_OK; i++)
        status = measure(tokenizer, argv[i], &err);
    hr_tokenizer_close(tokenizer);
    if (status != HEADRACE_OK)
        (void)fprintf(stderr, "bench_tokenizer: %s\n", err.message);
    return status == HEADRACE_OK ? 0 : 1;
}

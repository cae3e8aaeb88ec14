/* Merging against the definition: the plain loop that looks for the lowest rank again after every merge. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/rng.h"
#include "base/utf8.h"
#include "text/bpe.h"

#include <string.h>

enum { TOKEN_MAX = 24, N_MERGES_MAX = 60 };

static void spell(unsigned char byte, char out[5])
{
    static const int others[] = {33, 127, 173};
    uint32_t c = byte, n = 0;

    if (byte < others[0])
        n = byte;
    else if (byte >= 127 && byte <= 160)
        n = 33u + byte - 127u;
    else if (byte == others[2])
        n = 67;
    else
        n = UINT32_MAX;
    if (n != UINT32_MAX)
        c = 256 + n;
    out[hr_utf8_encode(c, out)] = '\0';
}

static void add_bytes(hr_vocabulary *v)
{
    for (int byte = 0; byte < 256; byte++) {
        char spelling[5];

        spell((unsigned char)byte, spelling);
        assert_int_equal(hr_vocabulary_add_token(v, byte, spelling, strlen(spelling), NULL), HEADRACE_OK);
    }
}

/* Random tokens over three letters and random merges that make them, in an order that need not be any training's. */
static void make_random(hr_vocabulary *v, uint64_t seed)
{
    char tokens[N_MERGES_MAX + 3][TOKEN_MAX + 1] = {"a", "b", "c"};
    uint32_t left[N_MERGES_MAX], right[N_MERGES_MAX], order[N_MERGES_MAX], n = 0;
    headrace_error err = {0};

    hr_vocabulary_init(v, 1000);
    add_bytes(v);
    for (uint64_t draw = 0; draw < 400 && n < N_MERGES_MAX; draw++) {
        uint32_t l = (uint32_t)(hr_rng_at(seed, 2 * draw) % (n + 3)),
                 r = (uint32_t)(hr_rng_at(seed, 2 * draw + 1) % (n + 3));
        char joined[2 * TOKEN_MAX + 1];
        bool is_new = true;

        (void)snprintf(joined, sizeof joined, "%s%s", tokens[l], tokens[r]);
        for (uint32_t i = 0; i < n + 3; i++)
            is_new = is_new && strcmp(joined, tokens[i]) != 0;
        if (!is_new || strlen(joined) > TOKEN_MAX)
            continue;
        memcpy(tokens[n + 3], joined, strlen(joined) + 1);
        assert_int_equal(hr_vocabulary_add_token(v, 256 + n, joined, strlen(joined), NULL), HEADRACE_OK);
        left[n] = l;
        right[n] = r;
        order[n] = n;
        n++;
    }
    assert_int_equal(hr_vocabulary_index(v, n, NULL), HEADRACE_OK);
    for (uint32_t i = 0; i < n; i++) { /* most in order, some far away from it */
        uint32_t other = (uint32_t)(hr_rng_at(seed, 10000 + i) % n), was = order[i];

        if (hr_rng_at(seed, 20000 + i) % 4 == 0) {
            order[i] = order[other];
            order[other] = was;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        const char *l = tokens[left[order[i]]], *r = tokens[right[order[i]]];

        if (hr_vocabulary_add_merge(v, l, strlen(l), r, strlen(r), &err) != HEADRACE_OK)
            fail_msg("%s", err.message);
    }
}

static size_t plain_loop(const hr_vocabulary *v, const char *text, size_t len, int32_t *ids)
{
    size_t n = len;

    for (size_t i = 0; i < len; i++)
        ids[i] = v->byte_ids[(unsigned char)text[i]];
    for (;;) {
        uint32_t best = HR_NO_RANK;
        size_t at = 0;

        for (size_t i = 0; i + 1 < n; i++) {
            uint32_t rank = hr_vocabulary_rank(v, ids[i], ids[i + 1]);

            if (rank < best) {
                best = rank;
                at = i;
            }
        }
        if (best == HR_NO_RANK)
            return n;
        ids[at] = v->merges[best].result;
        memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof *ids);
        n--;
    }
}

static void merging_equals_the_plain_loop_for_any_order_of_ranks(void **state)
{
    hr_bpe_scratch scratch = {0};
    hr_id_list out = {0};

    (void)state;
    for (uint64_t seed = 1; seed <= 150; seed++) {
        hr_vocabulary v;

        make_random(&v, seed);
        for (uint64_t k = 0; k < 40; k++) {
            char text[200];
            int32_t expected[200];
            size_t len = 1 + hr_rng_at(seed, 30000 + k) % 199, n;

            for (size_t i = 0; i < len; i++)
                text[i] = "abcabcabcd"[hr_rng_at(seed * 1000 + k, i) % (k % 3 == 0 ? 2 : 10)];
            n = plain_loop(&v, text, len, expected);
            out.n = 0;
            assert_int_equal(hr_bpe_encode(&v, &scratch, text, len, &out, NULL), HEADRACE_OK);
            assert_int_equal(out.n, n);
            assert_memory_equal(out.at, expected, n * sizeof *expected);
        }
        hr_vocabulary_deinit(&v);
    }
    hr_bpe_scratch_deinit(&scratch);
    free(out.at);
}

static void a_megabyte_without_a_blank_takes_a_few_steps_a_byte(void **state)
{
    enum { LEN = 1000000 };
    hr_bpe_scratch scratch = {0};
    hr_id_list out = {0};
    hr_vocabulary v;
    char *text = malloc(LEN);

    (void)state;
    assert_non_null(text);
    make_random(&v, 7);
    for (int kind = 0; kind < 3; kind++) {
        uint64_t before = scratch.n_steps;
        size_t total = 0;

        for (size_t i = 0; i < LEN; i++)
            text[i] = kind == 0 ? 'a' : kind == 1 ? "ab"[i % 2] : "abc"[hr_rng_at(3, i) % 3];
        out.n = 0;
        assert_int_equal(hr_bpe_encode(&v, &scratch, text, LEN, &out, NULL), HEADRACE_OK);
        assert_true(scratch.n_steps - before <= 3 * (uint64_t)LEN);
        for (size_t i = 0; i < out.n; i++)
            total += v.tokens[out.at[i]].len;
        assert_int_equal(total, LEN);
    }
    free(text);
    free(out.at);
    hr_bpe_scratch_deinit(&scratch);
    hr_vocabulary_deinit(&v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merging_equals_the_plain_loop_for_any_order_of_ranks),
        cmocka_unit_test(a_megabyte_without_a_blank_takes_a_few_steps_a_byte),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

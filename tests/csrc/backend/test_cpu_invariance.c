/* The promise of invariance.h on the CPU backend, and that threads change nothing. ctest runs this once for each table
 * of kernels, by HEADRACE_CPU; a machine that lacks one runs the next lower table again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/cpu/cpu_kernels.h"
#include "csrc/backend/invariance.h"

enum { N = INVARIANCE_TOKENS, MODELS = 6, K_MODEL = 6 };

static random_model_options shape(uint32_t i)
{
    random_model_options o = random_model_defaults();

    o.seed = 70 + i;
    o.vocab_size = 130; /* not a multiple of any tile */
    if (i == 1) {
        o.pattern = "ccaca";
        o.conv_length = 4;
        o.conv_bias = true;
        o.hidden_size = 144; /* two blocks of channels */
        o.ffn_dim = 208;
        o.n_heads = 6;
        o.head_dim = 24;
    } else if (i == 2) {
        o.n_experts = 16;
        o.n_experts_used = 4;
        o.expert_ffn_dim = 56;
        o.n_dense_layers = 1;
        o.use_expert_bias = true;
    } else if (i == 3) {
        o.pattern = "acc";
        o.dtype = HR_F32;
        o.conv_length = 2;
        o.is_untied = true;
    } else if (i == 4) { /* packed: an odd number of blocks a row, experts */
        o.dtype = HR_Q4_0;
        o.pattern = "cac";
        o.hidden_size = 96;
        o.head_dim = 24;
        o.n_experts = 8;
        o.n_experts_used = 2;
        o.expert_ffn_dim = 32;
        o.n_dense_layers = 1;
        o.ffn_dim = 160;
    } else if (i == 5) { /* packed and plain matrices read the same rows */
        o.dtype = HR_Q8_0;
        o.is_mixed = true;
        o.pattern = "cac";
        o.hidden_size = 64;
        o.ffn_dim = 96;
        o.n_experts = 5;
        o.n_experts_used = 2;
        o.expert_ffn_dim = 64;
        o.n_dense_layers = 2;
        o.is_untied = true;
    } else if (i == K_MODEL) { /* wide, so slow on the plain table: one check */
        o.dtype = HR_Q4_K;
        o.pattern = "ca";
        o.hidden_size = 256;
        o.head_dim = 64;
        o.ffn_dim = 256;
    }
    return o;
}

static void set_up(subject *s, uint32_t which, bool exact, uint32_t n_threads)
{
    random_model_options o = shape(which);

    invariance_set_up(s, &o, N, &(driver_options){.exact = exact, .n_threads = n_threads});
}

static void check_chunks(subject *s)
{
    static const uint32_t chunks[] = {1, 2, 3, 7, 16};

    invariance_check_chunks(s, chunks, sizeof chunks / sizeof *chunks);
}

static void check_hits(subject *s)
{
    uint32_t W = hr_arch_warmup_rows(&s->model->arch);
    const uint32_t hits[] = {1, 2, W - 1, W, W + 1, DRIVER_PAGE_TOKENS, 5 * DRIVER_PAGE_TOKENS, N - 1};
    static const uint32_t chunks[] = {1, 7, N};

    for (size_t i = 0; i < sizeof hits / sizeof *hits; i++) {
        for (size_t j = 0; j < sizeof chunks / sizeof *chunks; j++)
            invariance_check_hit(s, hits[i], chunks[j]);
    }
}

static void each_subject(void (*check)(subject *s))
{
    for (uint32_t which = 0; which < MODELS; which++) {
        subject s;

        set_up(&s, which, false, 3);
        check(&s);
        invariance_tear_down(&s);
    }
}

static void chunks_change_nothing(void **state)
{
    (void)state;
    each_subject(check_chunks);
}

static void nor_in_blocks_of_256(void **state)
{
    static const uint32_t chunks[] = {1, 16};
    subject s;

    (void)state;
    set_up(&s, K_MODEL, false, 3);
    invariance_check_chunks(&s, chunks, sizeof chunks / sizeof *chunks);
    invariance_tear_down(&s);
}

static void strangers_change_nothing(void **state)
{
    (void)state;
    each_subject(invariance_check_strangers);
}

static void a_prefix_hit_changes_nothing(void **state)
{
    (void)state;
    each_subject(check_hits);
}

/* The mutation that the test above must catch: one warm-up row too few. */
static void one_warmup_row_less_is_noticed(void **state)
{
    (void)state;
    for (uint32_t which = 0; which < MODELS; which++) {
        int32_t donor_ids[N];
        subject s;
        driver_sequence donor, sequence;
        uint32_t W;

        set_up(&s, which, false, 2);
        W = hr_arch_warmup_rows(&s.model->arch);
        driver_forget(&s.d);
        donor = invariance_make_donor(&s, W + 8, donor_ids);
        sequence = invariance_resume(&s, &donor, W + 8, W - 1, N);
        if (invariance_is_equal(&s, W + 8, sequence.slot))
            fail_msg("%s: %u of %u warm-up rows were enough", s.name, W - 1, W);
        invariance_tear_down(&s);
    }
}

static void threads_change_nothing(void **state)
{
    (void)state;
    for (uint32_t which = 0; which < MODELS; which++) {
        for (int exact = 0; exact < 2; exact++) {
            subject one, many;

            set_up(&one, which, exact, 1);
            set_up(&many, which, exact, 4);
            assert_memory_equal(one.solo, many.solo, (size_t)N * one.model->arch.vocab_size * sizeof *one.solo);
            assert_memory_equal(one.state, many.state, hr_arch_state_values(&one.model->arch) * sizeof *one.state);
            invariance_tear_down(&one);
            invariance_tear_down(&many);
        }
    }
}

/* Past a segment of attention's context, threads share one row: here the last rows one by one on four threads, beside
 * the whole sequence in large pieces on one. */
static void threads_change_nothing_in_a_long_context(void **state)
{
    enum { LONG = HR_ATTENTION_SEGMENT + 40, ALONE = 48, PIECE = 200 };
    random_model_options o = shape(0);
    hr_model *model = random_model_create(&o);
    size_t V = model->arch.vocab_size;
    float *logits[2] = {calloc(LONG * V, sizeof(float)), calloc(LONG * V, sizeof(float))};
    int32_t ids[LONG];

    (void)state;
    assert_true(logits[0] && logits[1]);
    driver_random_ids(model, 5, LONG, ids);
    for (uint32_t i = 0; i < 2; i++) {
        driver d;
        driver_sequence sequence;

        driver_open(&d, model, &(driver_options){.page_tokens = 16, .n_threads = i ? 4 : 1});
        sequence = driver_new_sequence(&d, ids, LONG);
        driver_run(&d, &sequence, 0, LONG - ALONE, PIECE, logits[i]);
        driver_run(&d, &sequence, LONG - ALONE, LONG, i ? 1 : ALONE, logits[i] + (LONG - ALONE) * V);
        driver_close(&d);
    }
    assert_memory_equal(logits[0], logits[1], LONG * V * sizeof(float));
    free(logits[0]);
    free(logits[1]);
    random_model_destroy(model);
}

static void a_fork_goes_on_as_its_parent(void **state)
{
    subject s;

    (void)state;
    set_up(&s, 1, false, 2);
    invariance_check_fork(&s);
    invariance_tear_down(&s);
}

static void wrong_guesses_leave_nothing_behind(void **state)
{
    subject s;

    (void)state;
    set_up(&s, 1, false, 2);
    invariance_check_guesses(&s);
    invariance_tear_down(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_change_nothing),
        cmocka_unit_test(nor_in_blocks_of_256),
        cmocka_unit_test(strangers_change_nothing),
        cmocka_unit_test(a_prefix_hit_changes_nothing),
        cmocka_unit_test(one_warmup_row_less_is_noticed),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(threads_change_nothing_in_a_long_context),
        cmocka_unit_test(a_fork_goes_on_as_its_parent),
        cmocka_unit_test(wrong_guesses_leave_nothing_behind),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

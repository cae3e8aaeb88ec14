/* The strong promise: a row's logits do not depend, bit for bit, on the chunk it came in, the rows beside it, the
 * number of threads, or whether its past was computed or found in pages (docs/design/prefix-cache.md). ctest runs this
 * once for each table of kernels, by HEADRACE_CPU; a machine that lacks one runs the next lower table again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "csrc/backend/driver.h"
#include "csrc/backend/random_model.h"

enum { N = 44, MODELS = 4, SEQUENCES = 5 };

typedef struct subject {
    hr_model *model;
    driver d;
    int32_t ids[SEQUENCES][N];
    float *solo;  /* [N, V]: sequence 0 alone in one piece */
    float *state; /* its state after the last token */
    float *got;   /* [N, V] */
    float *got_state;
    char name[96];
} subject;

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
    }
    return o;
}

static void set_up(subject *s, uint32_t which, bool exact, uint32_t n_threads)
{
    random_model_options o = shape(which);
    size_t n_logits = (size_t)N * o.vocab_size;
    driver_sequence whole;

    *s = (subject){.model = random_model_create(&o)};
    driver_open(&s->d, s->model, &(driver_options){.exact = exact, .n_threads = n_threads});
    (void)snprintf(s->name, sizeof s->name, "model %u, %s, %u threads", which,
                   hr_backend_cpu.compute_name(s->d.backend), n_threads);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        driver_random_ids(s->model, 200 + i, N, s->ids[i]);
    s->solo = calloc(n_logits, sizeof *s->solo);
    s->got = calloc(n_logits, sizeof *s->got);
    s->state = calloc(hr_arch_state_values(&s->model->arch), sizeof *s->state);
    s->got_state = calloc(hr_arch_state_values(&s->model->arch), sizeof *s->state);
    assert_true(s->solo && s->got && s->state && s->got_state);
    whole = driver_new_sequence(&s->d, s->ids[0], N);
    driver_run(&s->d, &whole, 0, N, 0, s->solo);
    hr_backend_cpu.read_slot(s->d.backend, whole.slot, s->state);
}

static void tear_down(subject *s)
{
    driver_close(&s->d);
    random_model_destroy(s->model);
    free(s->solo);
    free(s->got);
    free(s->state);
    free(s->got_state);
}

/* Rows [from, N) of got, and the state of `slot`, equal the solo run's. */
static bool is_equal(subject *s, uint32_t from, uint32_t slot)
{
    size_t V = s->model->arch.vocab_size;

    hr_backend_cpu.read_slot(s->d.backend, slot, s->got_state);
    return memcmp(s->got + from * V, s->solo + from * V, (N - from) * V * sizeof *s->got) == 0 &&
           memcmp(s->got_state, s->state, hr_arch_state_values(&s->model->arch) * sizeof *s->state) == 0;
}

static void check_equal(subject *s, uint32_t from, uint32_t slot, const char *what, uint32_t number)
{
    if (!is_equal(s, from, slot))
        fail_msg("%s: %s %u differs from the solo run", s->name, what, number);
    memset(s->got, 0xFF, (size_t)N * s->model->arch.vocab_size * sizeof *s->got);
}

static void check_chunks(subject *s)
{
    static const uint32_t chunks[] = {1, 2, 3, 7, 16};

    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        driver_sequence sequence;

        driver_forget(&s->d);
        sequence = driver_new_sequence(&s->d, s->ids[0], N);
        driver_run(&s->d, &sequence, 0, N, chunks[i], s->got);
        check_equal(s, 0, sequence.slot, "in chunks of", chunks[i]);
    }
}

/* Every sequence advances by pseudo-random pieces, in an order that changes with each step. */
static void check_strangers(subject *s)
{
    size_t V = s->model->arch.vocab_size;
    driver_sequence sequences[SEQUENCES];
    uint32_t done[SEQUENCES] = {0}, own_rows;

    driver_forget(&s->d);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        sequences[i] = driver_new_sequence(&s->d, s->ids[i], N);
    for (uint32_t step = 0; done[0] < N; step++) {
        driver_piece pieces[SEQUENCES];
        uint32_t n = 0;

        for (uint32_t j = 0; j < SEQUENCES; j++) {
            uint32_t i = (j + step) % SEQUENCES, rows = 1 + (step * 7 + i * 5) % 9;

            if (rows > N - done[i])
                rows = N - done[i];
            if (rows == 0)
                continue;
            pieces[n++] = (driver_piece){.sequence = &sequences[i],
                                         .start = done[i],
                                         .n_rows = rows,
                                         .logits = i == 0 ? s->got + done[0] * V : NULL};
            done[i] += rows;
        }
        driver_step(&s->d, pieces, n);
    }
    own_rows = done[0];
    assert_int_equal(own_rows, N);
    check_equal(s, 0, sequences[0].slot, "among strangers, rows", own_rows);
}

/* A sequence that shares its first `hit` tokens with the subject and then says something else: the pages it leaves
 * behind hold the shared past, and rubbish after it. */
static driver_sequence make_donor(subject *s, uint32_t hit, int32_t *donor_ids)
{
    driver_sequence donor;

    memcpy(donor_ids, s->ids[1], N * sizeof *donor_ids);
    memcpy(donor_ids, s->ids[0], hit * sizeof *donor_ids);
    donor = driver_new_sequence(&s->d, donor_ids, N);
    driver_run(&s->d, &donor, 0, N, 5, NULL);
    return donor;
}

/* The sequence resumes after a hit of `hit` tokens with `warmup` rows run again, `chunk` rows a step, a stranger beside
 * it. */
static driver_sequence resume(subject *s, const driver_sequence *donor, uint32_t hit, uint32_t warmup, uint32_t chunk)
{
    size_t V = s->model->arch.vocab_size;
    driver_sequence sequence = driver_new_sequence(&s->d, s->ids[0], N);
    driver_sequence stranger = driver_new_sequence(&s->d, s->ids[2], N);
    uint32_t first = hit - warmup;

    for (uint32_t i = 0; i * DRIVER_PAGE_TOKENS < hit; i++)
        hr_backend_cpu.copy_page(s->d.backend, donor->pages[i], sequence.pages[i]);
    for (uint32_t at = first, step = 0; at < N; at += chunk, step++) {
        uint32_t rows = N - at < chunk ? N - at : chunk;
        driver_piece pieces[2] = {{.sequence = &stranger, .start = step, .n_rows = 1},
                                  {.sequence = &sequence,
                                   .start = at,
                                   .n_rows = rows,
                                   .n_warmup = at >= hit ? 0 : (hit - at < rows ? hit - at : rows),
                                   .is_fresh = at == first,
                                   .logits = s->got + at * V}};

        driver_step(&s->d, step < N ? pieces : pieces + 1, step < N ? 2 : 1);
    }
    return sequence;
}

static void check_hits(subject *s)
{
    uint32_t W = hr_arch_warmup_rows(&s->model->arch);
    const uint32_t hits[] = {1, 2, W - 1, W, W + 1, DRIVER_PAGE_TOKENS, 5 * DRIVER_PAGE_TOKENS, N - 1};
    static const uint32_t chunks[] = {1, 7, N};

    for (size_t i = 0; i < sizeof hits / sizeof *hits; i++) {
        for (size_t j = 0; j < sizeof chunks / sizeof *chunks; j++) {
            int32_t donor_ids[N];
            driver_sequence donor, sequence;

            driver_forget(&s->d);
            donor = make_donor(s, hits[i], donor_ids);
            sequence = resume(s, &donor, hits[i], hits[i] < W ? hits[i] : W, chunks[j]);
            check_equal(s, hits[i], sequence.slot, "after a hit of", hits[i]);
        }
    }
}

static void each_subject(void (*check)(subject *s))
{
    for (uint32_t which = 0; which < MODELS; which++) {
        subject s;

        set_up(&s, which, false, 3);
        check(&s);
        tear_down(&s);
    }
}

static void chunks_change_nothing(void **state)
{
    (void)state;
    each_subject(check_chunks);
}

static void strangers_change_nothing(void **state)
{
    (void)state;
    each_subject(check_strangers);
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
        donor = make_donor(&s, W + 8, donor_ids);
        sequence = resume(&s, &donor, W + 8, W - 1, N);
        if (is_equal(&s, W + 8, sequence.slot))
            fail_msg("%s: %u of %u warm-up rows were enough", s.name, W - 1, W);
        tear_down(&s);
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
            tear_down(&one);
            tear_down(&many);
        }
    }
}

/* A fork copies its parent's slot and its unfinished page, and goes on as the parent would. */
static void a_fork_goes_on_as_its_parent(void **state)
{
    enum { AT = 30 };
    subject s;
    driver_sequence parent, child;
    size_t V;

    (void)state;
    set_up(&s, 1, false, 2);
    V = s.model->arch.vocab_size;
    driver_forget(&s.d);
    parent = driver_new_sequence(&s.d, s.ids[0], N);
    child = driver_new_sequence(&s.d, s.ids[0], N);
    driver_run(&s.d, &parent, 0, AT, 0, NULL);
    for (uint32_t i = 0; i < AT / DRIVER_PAGE_TOKENS; i++)
        child.pages[i] = parent.pages[i];
    hr_backend_cpu.copy_page(s.d.backend, parent.pages[AT / DRIVER_PAGE_TOKENS], child.pages[AT / DRIVER_PAGE_TOKENS]);
    hr_backend_cpu.copy_slot(s.d.backend, parent.slot, child.slot);
    parent.ids = s.ids[3]; /* the parent says something else */
    driver_run(&s.d, &parent, AT, N, 0, NULL);
    driver_run(&s.d, &child, AT, N, 0, s.got + AT * V);
    check_equal(&s, AT, child.slot, "a fork at", AT);
    tear_down(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_change_nothing),        cmocka_unit_test(strangers_change_nothing),
        cmocka_unit_test(a_prefix_hit_changes_nothing), cmocka_unit_test(one_warmup_row_less_is_noticed),
        cmocka_unit_test(threads_change_nothing),       cmocka_unit_test(a_fork_goes_on_as_its_parent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

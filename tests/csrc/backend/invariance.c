/* See invariance.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "csrc/backend/invariance.h"

enum { N = INVARIANCE_TOKENS, SEQUENCES = INVARIANCE_SEQUENCES };

static driver_sequence new_sequence(subject *s, uint32_t i)
{
    driver_sequence sequence = driver_new_sequence(&s->d, s->ids[i], N);

    sequence.n_prompt = s->n_prompt;
    return sequence;
}

void invariance_set_up(subject *s, const random_model_options *model, uint32_t n_prompt, const driver_options *options)
{
    size_t n_logits = (size_t)N * model->vocab_size;
    driver_sequence whole;

    *s = (subject){.model = random_model_create(model), .n_prompt = n_prompt};
    driver_open(&s->d, s->model, options);
    (void)snprintf(s->name, sizeof s->name, "%s, H %u, D %u, L %u, %u experts", s->d.ops->compute_name(s->d.backend),
                   model->hidden_size, model->head_dim, model->conv_length, model->n_experts);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        driver_random_ids(s->model, 200 + i, N, s->ids[i]);
    s->solo = calloc(n_logits, sizeof *s->solo);
    s->got = calloc(n_logits, sizeof *s->got);
    s->state = calloc(hr_arch_state_values(&s->model->arch), sizeof *s->state);
    s->got_state = calloc(hr_arch_state_values(&s->model->arch), sizeof *s->state);
    assert_true(s->solo && s->got && s->state && s->got_state);
    whole = new_sequence(s, 0);
    driver_run(&s->d, &whole, 0, N, 0, s->solo);
    s->d.ops->read_slot(s->d.backend, whole.slot, s->state);
}

void invariance_tear_down(subject *s)
{
    driver_close(&s->d);
    random_model_destroy(s->model);
    free(s->solo);
    free(s->got);
    free(s->state);
    free(s->got_state);
}

/* Rows [from, N) of got, and the state of `slot`, equal the solo run's. */
bool invariance_is_equal(subject *s, uint32_t from, uint32_t slot)
{
    size_t V = s->model->arch.vocab_size;

    s->d.ops->read_slot(s->d.backend, slot, s->got_state);
    return memcmp(s->got + from * V, s->solo + from * V, (N - from) * V * sizeof *s->got) == 0 &&
           memcmp(s->got_state, s->state, hr_arch_state_values(&s->model->arch) * sizeof *s->state) == 0;
}

void invariance_check_equal(subject *s, uint32_t from, uint32_t slot, const char *what, uint32_t number)
{
    if (!invariance_is_equal(s, from, slot))
        fail_msg("%s: %s %u differs from the solo run", s->name, what, number);
    memset(s->got, 0xFF, (size_t)N * s->model->arch.vocab_size * sizeof *s->got);
}

void invariance_check_chunks(subject *s, const uint32_t *chunks, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        driver_sequence sequence;

        driver_forget(&s->d);
        sequence = new_sequence(s, 0);
        driver_run(&s->d, &sequence, 0, N, chunks[i], s->got);
        invariance_check_equal(s, 0, sequence.slot, "in chunks of", chunks[i]);
    }
}

/* Every sequence advances by pseudo-random pieces, in an order that changes with each step. */
void invariance_check_strangers(subject *s)
{
    size_t V = s->model->arch.vocab_size;
    driver_sequence sequences[SEQUENCES];
    uint32_t done[SEQUENCES] = {0}, own_rows;

    driver_forget(&s->d);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        sequences[i] = new_sequence(s, i);
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
    invariance_check_equal(s, 0, sequences[0].slot, "among strangers, rows", own_rows);
}

/* A sequence that shares its first `hit` tokens with the subject and then says something else: the pages it leaves
 * behind hold the shared past, and rubbish after it. */
driver_sequence invariance_make_donor(subject *s, uint32_t hit, int32_t *donor_ids)
{
    driver_sequence donor;

    memcpy(donor_ids, s->ids[1], N * sizeof *donor_ids);
    memcpy(donor_ids, s->ids[0], hit * sizeof *donor_ids);
    donor = driver_new_sequence(&s->d, donor_ids, N);
    donor.n_prompt = s->n_prompt;
    driver_run(&s->d, &donor, 0, N, 5, NULL);
    return donor;
}

/* The sequence resumes after a hit of `hit` tokens with `warmup` rows run again, `chunk` rows a step, a stranger beside
 * it. */
driver_sequence invariance_resume(subject *s, const driver_sequence *donor, uint32_t hit, uint32_t warmup,
                                  uint32_t chunk)
{
    size_t V = s->model->arch.vocab_size;
    driver_sequence sequence = new_sequence(s, 0);
    driver_sequence stranger = new_sequence(s, 2);
    uint32_t first = hit - warmup;

    for (uint32_t i = 0; i * s->d.page_tokens < hit; i++)
        s->d.ops->copy_page(s->d.backend, donor->pages[i], sequence.pages[i]);
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

void invariance_check_hit(subject *s, uint32_t hit, uint32_t chunk)
{
    uint32_t W = hr_arch_warmup_rows(&s->model->arch);
    int32_t donor_ids[N];
    driver_sequence donor, sequence;

    driver_forget(&s->d);
    donor = invariance_make_donor(s, hit, donor_ids);
    sequence = invariance_resume(s, &donor, hit, hit < W ? hit : W, chunk);
    invariance_check_equal(s, hit, sequence.slot, "after a hit of", hit);
}

void invariance_check_fork(subject *s)
{
    enum { AT = 30 };
    size_t V = s->model->arch.vocab_size;
    uint32_t P = s->d.page_tokens;
    driver_sequence parent, child;

    driver_forget(&s->d);
    parent = new_sequence(s, 0);
    child = new_sequence(s, 0);
    driver_run(&s->d, &parent, 0, AT, 0, NULL);
    for (uint32_t i = 0; i < AT / P; i++)
        child.pages[i] = parent.pages[i];
    if (AT % P != 0)
        s->d.ops->copy_page(s->d.backend, parent.pages[AT / P], child.pages[AT / P]);
    s->d.ops->copy_slot(s->d.backend, parent.slot, child.slot);
    parent.ids = s->ids[3]; /* the parent says something else */
    driver_run(&s->d, &parent, AT, N, 0, NULL);
    driver_run(&s->d, &child, AT, N, 0, s->got + AT * V);
    invariance_check_equal(s, AT, child.slot, "a fork at", AT);
}

/* One step of the check: rows [begun, at) once more, row `at`, and n_guesses rows after it of which n_right are as they
 * should be. A stranger runs beside it. */
static void step_with_guesses(subject *s, driver_sequence *sequence, driver_sequence *stranger, uint32_t stranger_at,
                              uint32_t begun, uint32_t at, uint32_t n_guesses, uint32_t n_right)
{
    int32_t ids[N];
    driver_piece pieces[2] = {{.sequence = sequence,
                               .start = begun,
                               .n_rows = at - begun + 1 + n_guesses,
                               .n_warmup = at - begun,
                               .logits = s->got + begun * (size_t)s->model->arch.vocab_size},
                              {.sequence = stranger, .start = stranger_at, .n_rows = 1}};

    memcpy(ids, s->ids[0], sizeof ids);
    for (uint32_t i = n_right; i < n_guesses; i++)
        ids[at + 1 + i] = s->ids[2][at + 1 + i];
    sequence->ids = ids;
    driver_step(&s->d, pieces, 2);
}

void invariance_check_guesses(subject *s)
{
    enum { GUESSES = 3, LONGEST_REPEAT = 5 };
    uint32_t from = s->n_prompt < N - 10 ? s->n_prompt : 20, begun = from;
    driver_sequence sequence, stranger, spare;

    driver_forget(&s->d);
    sequence = new_sequence(s, 0);
    stranger = new_sequence(s, 1);
    spare = new_sequence(s, 2);
    driver_run(&s->d, &sequence, 0, from, 0, NULL);
    driver_run(&s->d, &stranger, 0, from, 0, NULL);
    for (uint32_t at = from, step = 0; at < N; step++) {
        uint32_t n = at - begun > LONGEST_REPEAT || at + GUESSES >= N ? 0 : GUESSES;
        uint32_t n_right = n > 0 ? step % (GUESSES + 1) : 0;

        s->d.ops->copy_slot(s->d.backend, sequence.slot, spare.slot);
        step_with_guesses(s, &sequence, &stranger, from + step, begun, at, n, n_right);
        at += 1 + n_right;
        if (n_right == n)
            begun = at;
        else
            s->d.ops->copy_slot(s->d.backend, spare.slot, sequence.slot);
    }
    invariance_check_equal(s, from, sequence.slot, "with guesses from", from);
}

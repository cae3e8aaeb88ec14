/* The promise of invariance.h on the CUDA backend, bit for bit, kernels emulated: for the portable and for the fused
 * kernels, for prompts (prefill tiles) and for generated rows that are computed again in any cut (decode items). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "csrc/backend/cuda/gpu.h"
#include "csrc/backend/invariance.h"

enum { N = INVARIANCE_TOKENS, N_PROMPT = 20 };

/* Heads of 64, as every published model has: all fused kernels apply. */
static random_model_options dense(void)
{
    random_model_options o = random_model_defaults();

    o.pattern = "cac";
    o.hidden_size = 128;
    o.n_heads = 4;
    o.n_kv_heads = 2;
    o.head_dim = 64;
    o.ffn_dim = 144;
    o.vocab_size = 130; /* not a multiple of any tile */
    o.seed = 71;
    return o;
}

static random_model_options mixture(void)
{
    random_model_options o = dense();

    o.n_experts = 16;
    o.n_experts_used = 4;
    o.expert_ffn_dim = 40;
    o.n_dense_layers = 1;
    o.use_expert_bias = true;
    return o;
}

/* What the fused kernels do not take: four taps and more, biases, other heads. */
static random_model_options odd(void)
{
    random_model_options o = dense();

    o.conv_length = 5;
    o.conv_bias = true;
    o.hidden_size = 144;
    o.n_heads = 3;
    o.n_kv_heads = 1;
    o.head_dim = 24;
    o.dtype = HR_F32;
    o.is_untied = true;
    return o;
}

static void check(int kind, random_model_options model, void (*run)(subject *s))
{
    subject s;

    gpu_be(kind);
    invariance_set_up(&s, &model, N_PROMPT, &(driver_options){.ops = &hr_backend_cuda, .page_tokens = 8});
    run(&s);
    invariance_tear_down(&s);
    gpu_check_clean();
}

static void check_all_models(void (*run)(subject *s))
{
    check(GPU_FUSED, dense(), run);
    check(GPU_FUSED, mixture(), run);
    check(GPU_FUSED, odd(), run);
    check(GPU_PORTABLE, mixture(), run);
    check(GPU_PORTABLE, odd(), run);
}

static void row_by_row(subject *s)
{
    invariance_check_chunks(s, &(uint32_t){1}, 1);
}

static void cut(subject *s)
{
    static const uint32_t chunks[] = {3, 17};

    invariance_check_chunks(s, chunks, sizeof chunks / sizeof *chunks);
}

static void hit(subject *s)
{
    invariance_check_hit(s, 3, N);
    invariance_check_hit(s, N_PROMPT + 5, 9); /* some of the rows that are run again were generated */
}

static void chunks_change_nothing(void **state)
{
    (void)state;
    check_all_models(cut);
    check(GPU_FUSED, dense(), row_by_row);
}

static void strangers_change_nothing(void **state)
{
    (void)state;
    check_all_models(invariance_check_strangers);
}

static void a_prefix_hit_changes_nothing(void **state)
{
    (void)state;
    check_all_models(hit);
}

static void a_fork_goes_on_as_its_parent(void **state)
{
    (void)state;
    check(GPU_FUSED, mixture(), invariance_check_fork);
    check(GPU_PORTABLE, odd(), invariance_check_fork);
}

static void wrong_guesses_leave_nothing_behind(void **state)
{
    (void)state;
    check(GPU_FUSED, mixture(), invariance_check_guesses);
    check(GPU_PORTABLE, odd(), invariance_check_guesses);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_change_nothing),
        cmocka_unit_test(strangers_change_nothing),
        cmocka_unit_test(a_prefix_hit_changes_nothing),
        cmocka_unit_test(a_fork_goes_on_as_its_parent),
        cmocka_unit_test(wrong_guesses_leave_nothing_behind),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The goldens (golden_check.h) on the CPU backend: its plain path with the tolerances of fp32, and the best kernels of
 * the machine, or those that HEADRACE_CPU names, with those of bf16. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "csrc/backend/golden_check.h"

#ifdef HR_FEWER_CUTS
enum { FEWER_CUTS = 1 };
#else
enum { FEWER_CUTS = 0 };
#endif

static const golden_mode modes[] = {{.driver = {.exact = true}, .exact = true, .has_fewer_cuts = FEWER_CUTS},
                                    {.has_fewer_cuts = FEWER_CUTS}};
enum { MODES = sizeof modes / sizeof *modes };

static void dense_tiny(void **state)
{
    (void)state;
    golden_check_case("dense_tiny", false, modes, MODES);
}
static void dense_f32(void **state)
{
    (void)state;
    golden_check_case("dense_f32", false, modes, MODES);
}
static void dense_lengths(void **state)
{
    (void)state;
    golden_check_case("dense_lengths", false, modes, MODES);
}
static void moe_tiny(void **state)
{
    (void)state;
    golden_check_case("moe_tiny", false, modes, MODES);
}
static void moe_64x4(void **state)
{
    (void)state;
    golden_check_case("moe_64x4", false, modes, MODES);
}
static void real_shape(void **state)
{
    (void)state;
    golden_check_case("real_shape", true, modes, MODES);
}

static void every_gguf_file(void **state)
{
    (void)state;
    golden_check_gguf_files(modes, MODES);
}

/* With an argument: the case that needs 256 MB of weights, which is slow and stands apart. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_tiny), cmocka_unit_test(dense_f32), cmocka_unit_test(dense_lengths),
        cmocka_unit_test(moe_tiny),   cmocka_unit_test(moe_64x4),  cmocka_unit_test(every_gguf_file),
    };
    const struct CMUnitTest slow[] = {cmocka_unit_test(real_shape)};

    (void)argv;
    return argc > 1 ? cmocka_run_group_tests(slow, NULL, NULL) : cmocka_run_group_tests(tests, NULL, NULL);
}

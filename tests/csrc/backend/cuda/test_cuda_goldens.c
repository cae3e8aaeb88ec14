/* The goldens (golden_check.h) on the CUDA backend, kernels emulated: with the portable kernels of any GPU, and with
 * those of an H100 as far as the small shapes allow (heads of 16 and 32 are not for the fused attention). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "csrc/backend/cuda/gpu.h"
#include "csrc/backend/golden_check.h"

static const golden_mode modes[] = {{.driver = {.ops = &hr_backend_cuda, .page_tokens = 16}, .has_fewer_cuts = true}};

static int kind = GPU_PORTABLE;

static void check(const char *name)
{
    gpu_be(kind);
    golden_check_case(name, false, modes, 1);
    gpu_check_clean();
}

static void dense_tiny(void **state)
{
    (void)state;
    check("dense_tiny");
}
static void dense_f32(void **state)
{
    (void)state;
    check("dense_f32");
}
static void dense_lengths(void **state)
{
    (void)state;
    check("dense_lengths");
}
static void moe_tiny(void **state)
{
    (void)state;
    check("moe_tiny");
}
static void moe_64x4(void **state)
{
    (void)state;
    check("moe_64x4");
}
static void every_gguf_file(void **state)
{
    (void)state;
    gpu_be(kind);
    golden_check_gguf_files(modes, 1);
    gpu_check_clean();
}

/* With an argument: the fused kernels. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_tiny), cmocka_unit_test(dense_f32), cmocka_unit_test(dense_lengths),
        cmocka_unit_test(moe_tiny),   cmocka_unit_test(moe_64x4),  cmocka_unit_test(every_gguf_file),
    };

    (void)argv;
    kind = argc > 1 ? GPU_FUSED : GPU_PORTABLE;
    return cmocka_run_group_tests(tests, NULL, NULL);
}

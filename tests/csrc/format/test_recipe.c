/* The test support itself: a materialised recipe is, byte for byte, the checkpoint that the recipe's author stored. */
#include "support/recipe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static void a_materialised_checkpoint_equals_the_stored_one(void **state)
{
    static const char *const cases[] = {"dense_tiny", "dense_f32", "moe_tiny"};
    char folder[256], path[512];

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t made_len, stored_len;
        char *made, *stored;

        hr_test_make_folder(folder, sizeof folder);
        (void)snprintf(path, sizeof path, HEADRACE_TEST_DATA "/goldens/%s", cases[i]);
        assert_true(hr_test_materialize(path, folder));
        (void)snprintf(path, sizeof path, "%s/model.safetensors", folder);
        made = hr_test_read_file(path, &made_len);
        (void)snprintf(path, sizeof path, HEADRACE_TEST_DATA "/goldens/%s/model.safetensors", cases[i]);
        stored = hr_test_read_file(path, &stored_len);
        assert_int_equal(made_len, stored_len);
        assert_memory_equal(made, stored, stored_len);
        free(made);
        free(stored);
        hr_test_remove_folder(folder);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_materialised_checkpoint_equals_the_stored_one)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

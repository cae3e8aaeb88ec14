/* Which backend a name means, in a program that has one for a device: two work, the third does not. */
#include "backend/devices.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static bool is_present;

static headrace_status device_memory(uint32_t index, hr_device_memory *out, headrace_error *err)
{
    if (!is_present)
        return hr_fail(err, HEADRACE_E_UNSUPPORTED, "no driver");
    if (index > 1)
        return hr_fail(err, HEADRACE_E_UNSUPPORTED, "no GPU %u", index);
    *out = (hr_device_memory){.free_bytes = 1, .total_bytes = 2};
    return HEADRACE_OK;
}

static const hr_backend_ops device = {.name = "cuda", .max_steps_in_flight = 2, .device_memory = device_memory};
const hr_backend_ops *const hr_backends[] = {&device, &hr_backend_cpu, NULL};

static void chooses(const char *name, const hr_backend_ops *ops, uint32_t index)
{
    hr_device_choice choice;
    headrace_error err = {0};

    if (hr_device_choose(name, &choice, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    assert_ptr_equal(choice.ops, ops);
    assert_int_equal(choice.index, index);
}

static void refuses(const char *name, const char *part)
{
    hr_device_choice choice;
    headrace_error err = {0};

    assert_int_equal(hr_device_choose(name, &choice, &err), HEADRACE_E_UNSUPPORTED);
    assert_string_equal(err.param, "device");
    if (!strstr(err.message, part))
        fail_msg("'%s' is not in '%s'", part, err.message);
}

static void auto_takes_a_device_that_works_and_else_the_cpu(void **state)
{
    (void)state;
    is_present = true;
    chooses(NULL, &device, 0);
    chooses("auto", &device, 0);
    is_present = false;
    chooses("auto", &hr_backend_cpu, 0);
}

static void a_name_means_that_device_and_no_other(void **state)
{
    (void)state;
    is_present = true;
    chooses("cpu", &hr_backend_cpu, 0);
    chooses("cuda", &device, 0);
    chooses("cuda:1", &device, 1);
    refuses("cuda:2", "'cuda:2' cannot be used: no GPU 2");
    is_present = false;
    refuses("cuda", "'cuda' cannot be used: no driver");
    chooses("cpu", &hr_backend_cpu, 0);
}

static void other_names_are_refused(void **state)
{
    static const char *const names[] = {"",      "CUDA",     "cud",  "cudas",  "cuda:",     "cuda:x", "cuda:-1",
                                        "cpu:0", "cuda:1:1", "rocm", "auto:0", "cuda:1000", "cuda 1"};

    (void)state;
    is_present = true;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        refuses(names[i], "auto, cpu, cuda, cuda:N");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(auto_takes_a_device_that_works_and_else_the_cpu),
        cmocka_unit_test(a_name_means_that_device_and_no_other),
        cmocka_unit_test(other_names_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

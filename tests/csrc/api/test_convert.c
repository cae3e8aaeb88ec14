/* headrace_convert through the public header: what it says of a file, how it is stopped, what it refuses. */
#include "api_fixture.h"

#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/headrace-convert-XXXXXX";
static char out_path[128];

static headrace_convert_options options_of(const char *type)
{
    headrace_convert_options options;

    headrace_convert_options_init(&options);
    options.path = "tiny";
    options.out = out_path;
    options.type = type;
    options.n_threads = 2;
    return options;
}

static bool is_there(const char *suffix)
{
    char path[160];

    (void)snprintf(path, sizeof path, "%s%s", out_path, suffix);
    return access(path, F_OK) == 0;
}

typedef struct seen {
    uint64_t n_calls, last, total;
    bool went_back, stops;
} seen;

static bool on_progress(uint64_t done, uint64_t total, void *user)
{
    seen *s = user;

    s->went_back = s->went_back || done < s->last || done > total || (s->total && total != s->total);
    s->last = done;
    s->total = total;
    s->n_calls++;
    return !s->stops;
}

static void test_what_is_said_of_the_file(void **state)
{
    headrace_convert_options options = options_of("q4_k");
    headrace_convert_info info;
    headrace_model_options model_options;
    headrace_model *model;
    headrace_model_info model_info;
    struct stat there;
    seen s = {0};

    (void)state;
    options.progress = on_progress;
    options.progress_user = &s;
    if (headrace_convert(&options, &info, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    assert_string_equal(info.path, out_path);
    assert_string_equal(info.type, "Q4_K_M");
    assert_int_equal(stat(out_path, &there), 0);
    assert_int_equal(info.n_bytes, there.st_size);
    assert_true(s.n_calls > 0);
    assert_false(s.went_back);
    assert_int_equal(s.last, s.total);
    headrace_model_options_init(&model_options);
    model_options.path = info.path;
    if (headrace_model_open(&model_options, &model, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    headrace_model_get_info(model, &model_info);
    assert_int_equal(model_info.n_parameters, info.n_parameters);
    assert_string_equal(model_info.chat_template_name, "checkpoint");
    headrace_model_close(model);
    headrace_free(info.path);
    assert_int_equal(unlink(out_path), 0);
}

static void test_the_callback_can_stop_it(void **state)
{
    headrace_convert_options options = options_of("q5_k_m");
    headrace_convert_info info;
    seen s = {.stops = true};

    (void)state;
    options.progress = on_progress;
    options.progress_user = &s;
    assert_error(headrace_convert(&options, &info, &err), HEADRACE_E_CANCELLED, "", "was stopped");
    assert_null(info.path);
    assert_false(is_there(""));
    assert_false(is_there(".partial"));
}

static void test_options_that_make_no_sense(void **state)
{
    headrace_convert_options options = options_of("q2_k");
    headrace_convert_info info;

    (void)state;
    assert_error(headrace_convert(&options, &info, &err), HEADRACE_E_ARGUMENT, "type", headrace_convert_types());
    options.type = NULL;
    assert_error(headrace_convert(&options, &info, &err), HEADRACE_E_ARGUMENT, "type", "is not one of");
    options = options_of("f16");
    options.path = "";
    assert_error(headrace_convert(&options, &info, &err), HEADRACE_E_ARGUMENT, "path", "is empty");
    options.path = "/nowhere/model";
    assert_error(headrace_convert(&options, &info, &err), HEADRACE_E_IO, "", "/nowhere/model");
    options = options_of("f16");
    options.out = "";
    assert_error(headrace_convert(&options, &info, &err), HEADRACE_E_ARGUMENT, "out", "is empty");
    options = options_of("q4_0");
    options.imatrix = "/nowhere/imatrix";
    assert_error(headrace_convert(&options, &info, &err), HEADRACE_E_IO, "", "/nowhere/imatrix");
    options.struct_size = 4;
    assert_error(headrace_convert(&options, &info, &err), HEADRACE_E_ARGUMENT, "struct_size", "struct_size 4");
    assert_false(is_there(""));
    assert_false(is_there(".partial"));
}

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    (void)snprintf(out_path, sizeof out_path, "%s/out.gguf", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder); /* fails if a test left something */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_said_of_the_file),
        cmocka_unit_test(test_the_callback_can_stop_it),
        cmocka_unit_test(test_options_that_make_no_sense),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}

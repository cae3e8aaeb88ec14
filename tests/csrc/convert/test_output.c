/* The file under its name: whole, or not there; and whose place it may take. */
#include "convert/output.h"

#include "base/file.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/headrace-output-XXXXXX";
static const hr_tensor_file no_source;

static const char *in_folder(const char *name)
{
    static char paths[8][128];
    static unsigned next;
    char *path = paths[next++ % 8];

    (void)snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static void put_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
}

static void assert_file(const char *path, const char *bytes, size_t n)
{
    headrace_error err = {0};
    char *text;
    size_t len;

    if (hr_file_read(path, 1 << 20, &text, &len, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    assert_int_equal(len, n);
    assert_memory_equal(text, bytes, n);
    free(text);
}

static void refuse(const char *path, const hr_tensor_file *source, uint64_t n_bytes, bool may_replace,
                   headrace_status status, const char *words)
{
    headrace_error err = {0};
    hr_output output;

    assert_int_equal(hr_output_open(path, source, n_bytes, may_replace, &output, &err), status);
    if (!strstr(err.message, words))
        fail_msg("expected \"%s\" in \"%s\"", words, err.message);
    assert_int_equal(output.fd, -1);
}

static hr_output must_open(const char *path, uint64_t n_bytes, bool may_replace)
{
    headrace_error err = {0};
    hr_output output;

    if (hr_output_open(path, &no_source, n_bytes, may_replace, &output, &err) != HEADRACE_OK)
        fail_msg("%s", err.message);
    return output;
}

static void test_the_name_appears_at_the_end(void **state)
{
    const char *path = in_folder("a.gguf"), *partial = in_folder("a.gguf.partial");
    hr_output output = must_open(path, 12, false);

    (void)state;
    assert_false(hr_file_exists(path));
    assert_file(partial, "\0\0\0\0\0\0\0\0\0\0\0\0", 12);
    assert_int_equal(hr_output_write(&output, "DATA", 4, 8, NULL), HEADRACE_OK);
    assert_file(partial, "\0\0\0\0\0\0\0\0DATA", 12); /* no magic number yet */
    assert_int_equal(hr_output_finish(&output, "GGUFhead", 8, NULL), HEADRACE_OK);
    hr_output_close(&output);
    assert_file(path, "GGUFheadDATA", 12);
    assert_false(hr_file_exists(partial));
}

static void test_giving_up_leaves_what_was_there(void **state)
{
    const char *path = in_folder("b.gguf");
    hr_output output;

    (void)state;
    put_file(path, "old");
    refuse(path, &no_source, 10, false, HEADRACE_E_IO, "--force");
    output = must_open(path, 10, true);
    assert_file(path, "old", 3);
    hr_output_close(&output);
    assert_file(path, "old", 3);
    assert_false(hr_file_exists(in_folder("b.gguf.partial")));
}

static void test_what_a_killed_run_left_is_replaced(void **state)
{
    const char *path = in_folder("c.gguf");
    hr_output output;

    (void)state;
    put_file(in_folder("c.gguf.partial"), "rests of an earlier run, longer than the file will be");
    output = must_open(path, 4, false);
    assert_int_equal(hr_output_finish(&output, "GGUF", 4, NULL), HEADRACE_OK);
    hr_output_close(&output);
    assert_file(path, "GGUF", 4);
}

static void test_two_do_not_write_one_file(void **state)
{
    const char *path = in_folder("d.gguf");
    hr_output first = must_open(path, 4, false);

    (void)state;
    refuse(path, &no_source, 4, false, HEADRACE_E_IO, "another conversion");
    assert_true(hr_file_exists(in_folder("d.gguf.partial")));
    hr_output_close(&first);
    first = must_open(path, 4, false);
    hr_output_close(&first);
}

static void test_a_name_taken_meanwhile_stays(void **state)
{
    const char *path = in_folder("e.gguf");
    hr_output output = must_open(path, 4, false);

    (void)state;
    put_file(path, "new");
    assert_int_equal(hr_output_finish(&output, "GGUF", 4, NULL), HEADRACE_E_IO);
    hr_output_close(&output);
    assert_file(path, "new", 3);
    assert_false(hr_file_exists(in_folder("e.gguf.partial")));
}

static void test_the_source_is_never_written(void **state)
{
    char name[128];
    const char *paths[1] = {name};
    hr_mapped mapping = {0};
    hr_tensor_file source = {.n_shards = 1, .paths = paths, .mappings = &mapping};

    (void)state;
    (void)snprintf(name, sizeof name, "%s", in_folder("model.gguf"));
    put_file(name, "weights");
    assert_int_equal(symlink(name, in_folder("link.gguf")), 0);
    assert_int_equal(link(name, in_folder("hard.gguf")), 0);
    assert_int_equal(link(name, in_folder("other.gguf.partial")), 0);
    refuse(name, &source, 4, true, HEADRACE_E_ARGUMENT, "own file");
    refuse(in_folder("link.gguf"), &source, 4, true, HEADRACE_E_ARGUMENT, "own file");
    refuse(in_folder("hard.gguf"), &source, 4, true, HEADRACE_E_ARGUMENT, "own file");
    refuse(in_folder("other.gguf"), &source, 4, true, HEADRACE_E_ARGUMENT, "own file");
    assert_file(name, "weights", 7);
    assert_file(in_folder("other.gguf.partial"), "weights", 7);
}

static void test_places_that_cannot_be_written(void **state)
{
    (void)state;
    assert_int_equal(mkdir(in_folder("dir.gguf"), 0755), 0);
    refuse(in_folder("dir.gguf"), &no_source, 4, true, HEADRACE_E_IO, "not an ordinary file");
    refuse(in_folder("nowhere/x.gguf"), &no_source, 4, true, HEADRACE_E_IO, "nowhere/x.gguf.partial");
    assert_int_equal(symlink("/dev/null", in_folder("n.gguf.partial")), 0);
    refuse(in_folder("n.gguf"), &no_source, 4, true, HEADRACE_E_IO, "n.gguf.partial");
}

static void test_too_large_is_found_out_first(void **state)
{
    struct rlimit before, small;

    (void)state;
    refuse(in_folder("f.gguf"), &no_source, (uint64_t)1 << 60, false, HEADRACE_E_IO, "the disk has");
    assert_false(hr_file_exists(in_folder("f.gguf.partial")));
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 100;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    refuse(in_folder("f.gguf"), &no_source, 101, false, HEADRACE_E_IO, "ulimit -f");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_false(hr_file_exists(in_folder("f.gguf.partial")));
}

static void on_alarm(int number)
{
    (void)number;
}

static void test_signals_do_not_end_it(void **state)
{
    char place[64]; /* in memory, where signals end system calls */
    const struct itimerval often = {{0, 2000}, {0, 2000}}, never = {{0, 0}, {0, 0}};
    struct sigaction action = {.sa_handler = on_alarm}, before;
    hr_output output;

    (void)state;
    (void)snprintf(place, sizeof place, "/dev/shm/headrace-output-%d.gguf", (int)getpid());
    assert_int_equal(sigaction(SIGALRM, &action, &before), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &often, NULL), 0);
    for (int i = 0; i < 10; i++) {
        output = must_open(hr_file_is_directory("/dev/shm") ? place : in_folder("g.gguf"), 24 << 20, true);
        hr_output_close(&output);
    }
    assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
    assert_int_equal(sigaction(SIGALRM, &before, NULL), 0);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    char command[128];

    (void)state;
    (void)snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command); /* NOLINT(cert-env33-c): the name is mkdtemp's */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_name_appears_at_the_end),
        cmocka_unit_test(test_giving_up_leaves_what_was_there),
        cmocka_unit_test(test_what_a_killed_run_left_is_replaced),
        cmocka_unit_test(test_two_do_not_write_one_file),
        cmocka_unit_test(test_a_name_taken_meanwhile_stays),
        cmocka_unit_test(test_the_source_is_never_written),
        cmocka_unit_test(test_places_that_cannot_be_written),
        cmocka_unit_test(test_too_large_is_found_out_first),
        cmocka_unit_test(test_signals_do_not_end_it),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}

/* Reading a model's bytes again: the same as its mapping shows, and an error where the file is no longer the same. */
#include "convert/source.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct file {
    char path[64];
    const char *paths[1];
    hr_mapped mapping;
    hr_tensor_file table;
} file;

static void make(file *out, size_t n)
{
    int fd;

    *out = (file){.path = "/tmp/headrace-source-XXXXXX"};
    fd = mkstemp(out->path);
    assert_true(fd >= 0);
    for (size_t i = 0; i < n; i++) {
        char byte = (char)(i * 7);

        assert_int_equal(write(fd, &byte, 1), 1);
    }
    assert_int_equal(close(fd), 0);
    assert_int_equal(hr_file_map(out->path, &out->mapping, NULL), HEADRACE_OK);
    out->paths[0] = out->path;
    out->table = (hr_tensor_file){.n_shards = 1, .paths = out->paths, .mappings = &out->mapping};
}

static void discard(file *f)
{
    hr_file_unmap(&f->mapping);
    (void)unlink(f->path);
}

static void test_any_range_is_what_the_mapping_shows(void **state)
{
    hr_source source;
    char read[300];
    file f;

    (void)state;
    make(&f, 300);
    assert_int_equal(hr_source_open(&f.table, &source, NULL), HEADRACE_OK);
    for (size_t from = 0; from < 300; from += 37) {
        assert_int_equal(hr_source_read(&source, f.mapping.at + from, 300 - from, read, NULL), HEADRACE_OK);
        assert_memory_equal(read, f.mapping.at + from, 300 - from);
    }
    hr_source_close(&source);
    discard(&f);
}

static void test_memory_outside_of_the_files_is_copied(void **state)
{
    static const char elsewhere[] = "copied";
    hr_source source;
    char read[sizeof elsewhere];
    file f;

    (void)state;
    make(&f, 10);
    assert_int_equal(hr_source_open(&f.table, &source, NULL), HEADRACE_OK);
    assert_int_equal(hr_source_read(&source, elsewhere, sizeof elsewhere, read, NULL), HEADRACE_OK);
    assert_string_equal(read, elsewhere);
    hr_source_close(&source);
    discard(&f);
}

static void test_a_file_that_changes_is_an_error(void **state)
{
    headrace_error err = {0};
    hr_source source;
    char read[100];
    file f;

    (void)state;
    make(&f, 100);
    assert_int_equal(hr_source_open(&f.table, &source, NULL), HEADRACE_OK);
    assert_int_equal(truncate(f.path, 60), 0);
    assert_int_equal(hr_source_read(&source, f.mapping.at + 10, 80, read, &err), HEADRACE_E_IO);
    assert_non_null(strstr(err.message, "30 bytes at byte 60"));
    hr_source_close(&source);
    assert_int_equal(hr_source_open(&f.table, &source, &err), HEADRACE_E_IO);
    assert_non_null(strstr(err.message, "has changed"));
    assert_int_equal(unlink(f.path), 0);
    assert_int_equal(hr_source_open(&f.table, &source, &err), HEADRACE_E_IO);
    assert_non_null(strstr(err.message, f.path));
    discard(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_range_is_what_the_mapping_shows),
        cmocka_unit_test(test_memory_outside_of_the_files_is_copied),
        cmocka_unit_test(test_a_file_that_changes_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

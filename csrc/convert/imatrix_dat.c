/* The older form of importance matrices, little endian and without a magic number:
 *
 *   i32 n; n times { i32 name length, name, i32 calls, i32 n_values, f32 values[n_values] }
 *   and, in files that are not very old: i32 chunks, i32 length, name of the text
 *
 * A value is (sum of x^2 / rows) x calls. Experts lie side by side in one row of values; how many there are is known
 * only beside the model, so an entry is read as one row and hr_imatrix_find compares its length.
 */
#include "convert/imatrix_form.h"

#include <string.h>

enum { ENTRIES_MAX = 65536, NAME_BYTES_MAX = 255 };

typedef struct reader {
    const unsigned char *bytes;
    size_t len, at;
    const char *path;
    headrace_error *err;
} reader;

static size_t n_left(const reader *in)
{
    return in->len - in->at;
}

static headrace_status take_i32(reader *in, int32_t least, int32_t most, const char *what, int32_t *out)
{
    if (n_left(in) < sizeof *out)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: byte %zu: the file ends before %s (%zu bytes; truncated?)",
                       in->path, in->at, what, in->len);
    memcpy(out, in->bytes + in->at, sizeof *out);
    if (*out < least || *out > most)
        return hr_fail(in->err, HEADRACE_E_MODEL,
                       "%s: byte %zu: %s is %d, expected %d to %d (neither a GGUF file nor an imatrix.dat?)", in->path,
                       in->at, what, *out, least, most);
    in->at += sizeof *out;
    return HEADRACE_OK;
}

/* A number of things of `size` bytes that must still fit into the file. */
static headrace_status take_count(reader *in, int32_t least, int32_t most, size_t size, const char *what, int32_t *out)
{
    HR_PASS(take_i32(in, least, most, what, out));
    if ((size_t)*out > n_left(in) / size)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: byte %zu: %s is %d in a file with %zu bytes left (truncated?)",
                       in->path, in->at - sizeof *out, what, *out, n_left(in));
    return HEADRACE_OK;
}

static headrace_status read_entry(reader *in, hr_imatrix *out)
{
    int32_t name_len, calls, n_values;
    const char *name;
    hr_imatrix_entry *entry;
    float count;

    HR_PASS(take_count(in, 1, NAME_BYTES_MAX, 1, "the length of a name", &name_len));
    name = (const char *)in->bytes + in->at;
    if (memchr(name, '\0', (size_t)name_len))
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: byte %zu: a zero byte in a tensor's name", in->path, in->at);
    in->at += (size_t)name_len;
    HR_PASS(take_i32(in, 0, INT32_MAX, "the number of calls", &calls));
    HR_PASS(take_count(in, 1, INT32_MAX, sizeof(float), "the number of values", &n_values));
    HR_PASS(hr_imatrix_add(out, name, (size_t)name_len, 1, (uint32_t)n_values, &entry, in->err));
    memcpy(entry->mean_squares, in->bytes + in->at, (size_t)n_values * sizeof(float));
    HR_PASS(hr_imatrix_check(out, entry, in->at, in->err));
    in->at += (size_t)n_values * sizeof(float);
    count = (float)calls;
    return hr_imatrix_settle(out, entry, &count, in->err);
}

static headrace_status read_end(reader *in, hr_imatrix *out)
{
    int32_t chunks, len;

    if (n_left(in) == 0)
        return HEADRACE_OK;
    HR_PASS(take_i32(in, 0, INT32_MAX, "the number of chunks", &chunks));
    out->chunk_count = (uint32_t)chunks;
    HR_PASS(take_count(in, 0, INT32_MAX, 1, "the length of the text's name", &len));
    out->datasets = hr_arena_calloc(&out->arena, 1, sizeof *out->datasets);
    if (!out->datasets)
        return hr_fail(in->err, HEADRACE_E_MEMORY, "%s: no memory for a name", in->path);
    if (len > 0)
        HR_PASS(hr_imatrix_add_dataset(out, (const char *)in->bytes + in->at, (size_t)len, in->err));
    in->at += (size_t)len;
    if (n_left(in) > 0)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: byte %zu: %zu bytes behind the end", in->path, in->at,
                       n_left(in));
    return HEADRACE_OK;
}

headrace_status hr_imatrix_read_dat(const unsigned char *bytes, size_t len, hr_imatrix *out, headrace_error *err)
{
    reader in = {.bytes = bytes, .len = len, .path = out->path, .err = err};
    int32_t n;

    /* The smallest entry: a length, a name of one letter, calls, a number, one value. */
    HR_PASS(take_count(&in, 1, ENTRIES_MAX, 17, "the number of tensors", &n));
    HR_PASS(hr_imatrix_reserve(out, (uint64_t)n, err));
    for (int32_t i = 0; i < n; i++)
        HR_TRY(read_entry(&in, out), "entry %d of %d", i + 1, n);
    return read_end(&in, out);
}

/* Writing importance matrices in the GGUF form, so that llama.cpp reads ours as we read its. */
#include "convert/imatrix.h"
#include "convert/output.h"
#include "format/gguf_write.h"

#include <float.h>
#include <string.h>

enum { NAME_BYTES_MAX = 63 }; /* what llama.cpp reads, the suffix included */
static const char SUMS_SUFFIX[] = ".in_sum2", COUNTS_SUFFIX[] = ".counts";

/* A tensor of the file, and what goes into it. */
typedef struct item {
    const hr_imatrix_sums *sums;
    uint64_t counts_at, sums_at; /* from the start of the data */
} item;

static headrace_status check_sums(const hr_imatrix_sums *sums, headrace_error *err)
{
    size_t most = NAME_BYTES_MAX - strlen(SUMS_SUFFIX), len = strlen(sums->name);

    if (len == 0 || len > most)
        return hr_fail(err, HEADRACE_E_ARGUMENT, "tensor '%s': a name of %zu bytes, expected 1 to %zu", sums->name, len,
                       most);
    if (sums->n_experts == 0 || sums->n_columns == 0)
        return hr_fail(err, HEADRACE_E_ARGUMENT, "tensor '%s': %u experts of %u columns, expected at least one",
                       sums->name, sums->n_experts, sums->n_columns);
    for (size_t i = 0; i < (size_t)sums->n_experts * sums->n_columns; i++)
        if (!(sums->sums[i] >= 0.0 && sums->sums[i] <= (double)FLT_MAX))
            return hr_fail(err, HEADRACE_E_ARGUMENT, "tensor '%s': expert %zu, column %zu: %g is no sum of squares",
                           sums->name, i / sums->n_columns, i % sums->n_columns, sums->sums[i]);
    return HEADRACE_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const item *)a)->sums->name, ((const item *)b)->sums->name);
}

static headrace_status make_items(const hr_imatrix_sums *sums, size_t n_sums, item *items, headrace_error *err)
{
    for (size_t i = 0; i < n_sums; i++) {
        HR_PASS(check_sums(&sums[i], err));
        items[i] = (item){.sums = &sums[i]};
    }
    qsort(items, n_sums, sizeof *items, by_name);
    for (size_t i = 1; i < n_sums; i++)
        if (by_name(&items[i - 1], &items[i]) == 0)
            return hr_fail(err, HEADRACE_E_ARGUMENT, "tensor '%s' is given twice", items[i].sums->name);
    return HEADRACE_OK;
}

static uint64_t add_tensor(hr_gguf_writer *writer, const hr_imatrix_sums *sums, const char *suffix, uint64_t n_columns)
{
    uint64_t shape[2] = {sums->n_experts, n_columns};
    char name[NAME_BYTES_MAX + 1];

    (void)snprintf(name, sizeof name, "%s%s", sums->name, suffix);
    return hr_gguf_add_tensor(writer, name, HR_F32, 2, shape);
}

static void make_header(const hr_imatrix_source *source, item *items, size_t n_items, hr_gguf_writer *writer)
{
    hr_gguf_put_string(writer, "general.type", "imatrix", strlen("imatrix"));
    hr_gguf_put_strings(writer, "imatrix.datasets", source->n_datasets);
    for (uint32_t i = 0; i < source->n_datasets; i++)
        hr_gguf_put_element(writer, source->datasets[i], strlen(source->datasets[i]));
    hr_gguf_put_u32(writer, "imatrix.chunk_count", source->chunk_count);
    hr_gguf_put_u32(writer, "imatrix.chunk_size", source->chunk_size);
    for (size_t i = 0; i < n_items; i++) {
        items[i].sums_at = add_tensor(writer, items[i].sums, SUMS_SUFFIX, items[i].sums->n_columns);
        items[i].counts_at = add_tensor(writer, items[i].sums, COUNTS_SUFFIX, 1);
    }
}

/* A stretch of n numbers as float32, a piece at a time. */
static headrace_status write_floats(const hr_output *output, uint64_t at, const double *sums, const uint64_t *rows,
                                    size_t n, headrace_error *err)
{
    float piece[1024];
    size_t most = sizeof piece / sizeof *piece;

    for (size_t from = 0; from < n; from += most) {
        size_t here = n - from < most ? n - from : most;

        for (size_t i = 0; i < here; i++)
            piece[i] = sums ? (float)sums[from + i] : (float)rows[from + i];
        HR_PASS(hr_output_write(output, piece, here * sizeof *piece, at + from * sizeof *piece, err));
    }
    return HEADRACE_OK;
}

static headrace_status write_file(const char *path, const hr_tensor_file *model, const item *items, size_t n_items,
                                  const hr_gguf_writer *writer, headrace_error *err)
{
    const hr_tensor_file no_source = {0};
    hr_output output = {.fd = -1};
    hr_buffer header = {0};
    headrace_status status;

    HR_TRY_GOTO(done, hr_gguf_header(writer, &header, err));
    HR_TRY_GOTO(
        done, hr_output_open(path, model ? model : &no_source, header.len + writer->n_data_bytes, true, &output, err));
    for (size_t i = 0; i < n_items; i++) {
        const hr_imatrix_sums *sums = items[i].sums;

        HR_TRY_GOTO(done, write_floats(&output, header.len + items[i].sums_at, sums->sums, NULL,
                                       (size_t)sums->n_experts * sums->n_columns, err));
        HR_TRY_GOTO(done,
                    write_floats(&output, header.len + items[i].counts_at, NULL, sums->rows, sums->n_experts, err));
    }
    status = hr_output_finish(&output, header.at, header.len, err);
done:
    hr_output_close(&output);
    hr_buffer_deinit(&header);
    return status;
}

headrace_status hr_imatrix_write(const char *path, const hr_imatrix_sums *sums, size_t n_sums,
                                 const hr_imatrix_source *source, headrace_error *err)
{
    hr_gguf_writer writer = {0};
    headrace_status status;
    item *items;

    if (n_sums == 0)
        return hr_fail(err, HEADRACE_E_ARGUMENT, "%s: no tensor to write", path);
    items = calloc(n_sums, sizeof *items);
    if (!items)
        return hr_fail(err, HEADRACE_E_MEMORY, "%s: no memory for %zu tensors", path, n_sums);
    status = make_items(sums, n_sums, items, err);
    if (status == HEADRACE_OK) {
        make_header(source, items, n_sums, &writer);
        status = write_file(path, source->model, items, n_sums, &writer, err);
    }
    hr_gguf_writer_deinit(&writer);
    free(items);
    return status;
}

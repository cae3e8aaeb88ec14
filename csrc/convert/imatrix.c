/* Reading importance matrices: the GGUF form, and what both forms have in common. */
#include "convert/imatrix.h"

#include "base/file.h"
#include "base/log.h"
#include "convert/imatrix_form.h"
#include "format/gguf.h"

#include <float.h>
#include <math.h>
#include <string.h>

static const char SUMS_SUFFIX[] = ".in_sum2", COUNTS_SUFFIX[] = ".counts";

/* ---------------------------------------------------------------- entries */

static headrace_status no_memory(const hr_imatrix *imatrix, headrace_error *err)
{
    return hr_fail(err, HEADRACE_E_MEMORY, "%s: no memory for its figures", imatrix->path);
}

headrace_status hr_imatrix_reserve(hr_imatrix *imatrix, uint64_t n, headrace_error *err)
{
    imatrix->entries = hr_arena_calloc(&imatrix->arena, (size_t)n, sizeof *imatrix->entries);
    return imatrix->entries ? HEADRACE_OK : no_memory(imatrix, err);
}

headrace_status hr_imatrix_add(hr_imatrix *imatrix, const char *name, size_t name_len, uint32_t n_experts,
                               uint32_t n_columns, hr_imatrix_entry **out, headrace_error *err)
{
    hr_imatrix_entry *entry = &imatrix->entries[imatrix->n_entries];

    entry->name = hr_arena_strndup(&imatrix->arena, name, name_len);
    entry->mean_squares = hr_arena_calloc(&imatrix->arena, (size_t)n_experts * n_columns, sizeof *entry->mean_squares);
    if (!entry->name || !entry->mean_squares)
        return no_memory(imatrix, err);
    entry->n_experts = n_experts;
    entry->n_columns = n_columns;
    imatrix->n_entries++;
    *out = entry;
    return HEADRACE_OK;
}

headrace_status hr_imatrix_add_dataset(hr_imatrix *imatrix, const char *name, size_t len, headrace_error *err)
{
    const char *copy = hr_arena_strndup(&imatrix->arena, name, len);

    if (!copy)
        return no_memory(imatrix, err);
    imatrix->datasets[imatrix->n_datasets++] = copy;
    return HEADRACE_OK;
}

headrace_status hr_imatrix_check(const hr_imatrix *imatrix, const hr_imatrix_entry *entry, uint64_t at,
                                 headrace_error *err)
{
    for (size_t i = 0; i < (size_t)entry->n_experts * entry->n_columns; i++)
        if (!isfinite(entry->mean_squares[i]) || entry->mean_squares[i] < 0.0F)
            return hr_fail(err, HEADRACE_E_MODEL,
                           "%s: tensor '%s', byte %llu: %g of expert %zu, column %zu, is no sum of squares",
                           imatrix->path, entry->name, (unsigned long long)(at + i * sizeof(float)),
                           (double)entry->mean_squares[i], i / entry->n_columns, i % entry->n_columns);
    return HEADRACE_OK;
}

static double sum_of(const float *values, size_t n)
{
    double sum = 0.0;

    for (size_t i = 0; i < n; i++)
        sum += (double)values[i];
    return sum;
}

static void settle_expert(const hr_imatrix_entry *entry, uint32_t expert, double rows, const double *mean,
                          double size_of_mean)
{
    float *values = entry->mean_squares + (size_t)expert * entry->n_columns;
    double size = rows > 0.0 ? sum_of(values, entry->n_columns) / rows : 0.0;
    double scale = size > 0.0 ? size / size_of_mean : 1.0;
    double prior = entry->n_experts > 1 ? HR_IMATRIX_PRIOR_ROWS : 0.0;

    for (uint32_t i = 0; i < entry->n_columns; i++)
        values[i] = (float)fmin(((double)values[i] + prior * scale * mean[i]) / (rows + prior), (double)FLT_MAX);
}

headrace_status hr_imatrix_settle(const hr_imatrix *imatrix, hr_imatrix_entry *entry, const float *counts,
                                  headrace_error *err)
{
    size_t n = (size_t)entry->n_experts * entry->n_columns;
    double rows = sum_of(counts, entry->n_experts), size = sum_of(entry->mean_squares, n) / fmax(rows, 1.0), *mean;

    for (uint32_t e = 0; e < entry->n_experts; e++) {
        entry->n_unseen += counts[e] == 0.0F;
        entry->n_rare += counts[e] > 0.0F && counts[e] < (float)HR_IMATRIX_PRIOR_ROWS && entry->n_experts > 1;
    }
    if (rows == 0.0 || size == 0.0) { /* nothing was seen: no column counts more than another */
        entry->n_unseen = entry->n_experts;
        for (size_t i = 0; i < n; i++)
            entry->mean_squares[i] = 1.0F;
        return HEADRACE_OK;
    }
    mean = calloc(entry->n_columns, sizeof *mean);
    if (!mean)
        return no_memory(imatrix, err);
    for (size_t i = 0; i < n; i++)
        mean[i % entry->n_columns] += (double)entry->mean_squares[i] / rows;
    for (uint32_t e = 0; e < entry->n_experts; e++)
        settle_expert(entry, e, (double)counts[e], mean, size);
    free(mean);
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- the GGUF form */

static bool ends_with(const char *name, const char *suffix)
{
    size_t len = strlen(name), suffix_len = strlen(suffix);

    return len > suffix_len && strcmp(name + len - suffix_len, suffix) == 0;
}

/* The tensor NAME.suffix that belongs to `other`, whose own suffix is other_suffix. */
static headrace_status find_sibling(const hr_tensor_file *file, const hr_tensor *other, const char *other_suffix,
                                    const char *suffix, const hr_tensor **out, headrace_error *err)
{
    char name[HR_TENSOR_NAME_MAX + sizeof SUMS_SUFFIX];
    int base = (int)(strlen(other->name) - strlen(other_suffix));

    (void)snprintf(name, sizeof name, "%.*s%s", base, other->name, suffix);
    *out = hr_tensor_file_find(file, name);
    return *out ? HEADRACE_OK
                : hr_fail(err, HEADRACE_E_MODEL, "%s: tensor '%s' is there without '%s'", file->paths[0], other->name,
                          name);
}

static headrace_status refuse_tensor(const hr_tensor_file *file, const hr_tensor *tensor, const char *expected,
                                     headrace_error *err)
{
    return hr_fail(err, HEADRACE_E_MODEL, "%s: tensor '%s', byte %llu: expected %s", file->paths[0], tensor->name,
                   (unsigned long long)tensor->file_offset, expected);
}

/* counts of at most 65536 experts, copied since a file may place them at any byte. */
static headrace_status read_counts(const hr_tensor_file *file, const hr_tensor *tensor, uint64_t n_experts, float **out,
                                   headrace_error *err)
{
    if (tensor->dtype != HR_F32 || tensor->n_bytes != n_experts * sizeof(float))
        return refuse_tensor(file, tensor, "one F32 number for each row of the sums", err);
    *out = malloc((size_t)tensor->n_bytes);
    if (!*out)
        return hr_fail(err, HEADRACE_E_MEMORY, "%s: no memory for counts", file->paths[0]);
    memcpy(*out, tensor->data, (size_t)tensor->n_bytes);
    for (uint64_t e = 0; e < n_experts; e++)
        if (!((*out)[e] >= 0.0F) || !isfinite((*out)[e]) || (*out)[e] != floorf((*out)[e])) {
            free(*out);
            return refuse_tensor(file, tensor, "numbers of rows: whole, finite and not negative", err);
        }
    return HEADRACE_OK;
}

static headrace_status read_sums(const hr_tensor_file *file, const hr_tensor *tensor, hr_imatrix *out,
                                 headrace_error *err)
{
    uint64_t n_columns = tensor->shape[tensor->rank - 1], n_experts = 1;
    const hr_tensor *counts_at;
    hr_imatrix_entry *entry;
    float *counts = NULL;
    headrace_status status;

    for (uint32_t i = 0; i + 1 < tensor->rank; i++)
        n_experts *= tensor->shape[i];
    if (tensor->dtype != HR_F32 || n_columns == 0 || n_experts == 0 || n_columns > INT32_MAX || n_experts > 65536)
        return refuse_tensor(file, tensor, "F32 sums [experts][columns], 1 to 65536 experts", err);
    HR_PASS(find_sibling(file, tensor, SUMS_SUFFIX, COUNTS_SUFFIX, &counts_at, err));
    HR_PASS(read_counts(file, counts_at, n_experts, &counts, err));
    HR_TRY_GOTO(done, hr_imatrix_add(out, tensor->name, strlen(tensor->name) - strlen(SUMS_SUFFIX), (uint32_t)n_experts,
                                     (uint32_t)n_columns, &entry, err));
    memcpy(entry->mean_squares, tensor->data, (size_t)tensor->n_bytes);
    HR_TRY_GOTO(done, hr_imatrix_check(out, entry, tensor->file_offset, err));
    status = hr_imatrix_settle(out, entry, counts, err);
done:
    free(counts);
    return status;
}

static headrace_status read_keys(const hr_gguf *gguf, hr_imatrix *out, headrace_error *err)
{
    const hr_gguf_value *datasets = hr_gguf_find(gguf, "imatrix.datasets");
    const unsigned char *cursor;
    hr_gguf_string type;

    HR_PASS(hr_gguf_str(gguf, "general.type", &type, err));
    if (type.len != strlen("imatrix") || memcmp(type.at, "imatrix", strlen("imatrix")) != 0)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: key 'general.type' is '%.*s', expected 'imatrix'", out->path,
                       (int)(type.len < 40 ? type.len : 40), type.at);
    HR_PASS(hr_gguf_u32(gguf, "imatrix.chunk_count", &out->chunk_count, err));
    HR_PASS(hr_gguf_u32(gguf, "imatrix.chunk_size", &out->chunk_size, err));
    if (!datasets || datasets->type != HR_GGUF_ARRAY || datasets->element_type != HR_GGUF_STRING)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: key 'imatrix.datasets': expected an array of strings", out->path);
    out->datasets = hr_arena_calloc(&out->arena, (size_t)datasets->n_elements, sizeof *out->datasets);
    if (!out->datasets)
        return no_memory(out, err);
    cursor = datasets->at;
    for (uint64_t i = 0; i < datasets->n_elements; i++) {
        hr_gguf_string name = hr_gguf_next_string(&cursor);

        HR_PASS(hr_imatrix_add_dataset(out, name.at, (size_t)name.len, err));
    }
    return HEADRACE_OK;
}

/* Tensors of other names are none of ours: later versions of the form may bring more figures. */
static headrace_status read_gguf(const unsigned char *bytes, size_t len, hr_imatrix *out, headrace_error *err)
{
    hr_gguf gguf;
    const hr_tensor_file *file = &gguf.file;
    const hr_tensor *sibling;
    headrace_status status;

    HR_PASS(hr_gguf_parse(bytes, len, out->path, &gguf, err));
    HR_TRY_GOTO(done, read_keys(&gguf, out, err));
    HR_TRY_GOTO(done, hr_imatrix_reserve(out, file->n_tensors, err));
    for (uint32_t i = 0; i < file->n_tensors; i++)
        if (ends_with(file->tensors[i].name, SUMS_SUFFIX))
            HR_TRY_GOTO(done, read_sums(file, &file->tensors[i], out, err));
        else if (ends_with(file->tensors[i].name, COUNTS_SUFFIX))
            HR_TRY_GOTO(done, find_sibling(file, &file->tensors[i], COUNTS_SUFFIX, SUMS_SUFFIX, &sibling, err));
done:
    hr_gguf_close(&gguf);
    return status;
}

/* ---------------------------------------------------------------- both forms */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const hr_imatrix_entry *)a)->name, ((const hr_imatrix_entry *)b)->name);
}

static headrace_status sort_entries(hr_imatrix *imatrix, headrace_error *err)
{
    if (imatrix->n_entries == 0)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: it holds no tensor's figures", imatrix->path);
    qsort(imatrix->entries, imatrix->n_entries, sizeof *imatrix->entries, by_name);
    for (uint32_t i = 1; i < imatrix->n_entries; i++)
        if (by_name(&imatrix->entries[i - 1], &imatrix->entries[i]) == 0)
            return hr_fail(err, HEADRACE_E_MODEL, "%s: tensor '%s' occurs twice", imatrix->path,
                           imatrix->entries[i].name);
    return HEADRACE_OK;
}

static void log_gaps(const hr_imatrix *imatrix)
{
    uint64_t n_unseen = 0, n_rare = 0;
    const char *first = NULL;

    for (uint32_t i = 0; i < imatrix->n_entries; i++) {
        n_unseen += imatrix->entries[i].n_unseen;
        n_rare += imatrix->entries[i].n_rare;
        if (!first && imatrix->entries[i].n_unseen + imatrix->entries[i].n_rare > 0)
            first = imatrix->entries[i].name;
    }
    if (first)
        hr_log(HEADRACE_LOG_WARNING,
               "%s: %llu matrices were reached by no row and take the mean of their siblings (all columns alike where "
               "there is none), %llu by fewer than %d and lean on it; the first are in %s",
               imatrix->path, (unsigned long long)n_unseen, (unsigned long long)n_rare, HR_IMATRIX_PRIOR_ROWS, first);
}

headrace_status hr_imatrix_parse(const unsigned char *bytes, size_t len, const char *path, hr_imatrix *out,
                                 headrace_error *err)
{
    bool is_gguf = len >= 4 && memcmp(bytes, "GGUF", 4) == 0;
    headrace_status status;

    *out = (hr_imatrix){0};
    out->path = hr_arena_strndup(&out->arena, path, strlen(path));
    if (!out->path)
        return hr_fail(err, HEADRACE_E_MEMORY, "%s: no memory for its figures", path);
    status = is_gguf ? read_gguf(bytes, len, out, err) : hr_imatrix_read_dat(bytes, len, out, err);
    if (status == HEADRACE_OK)
        status = sort_entries(out, err);
    if (status != HEADRACE_OK)
        hr_imatrix_close(out);
    else
        log_gaps(out);
    return status;
}

headrace_status hr_imatrix_open(const char *path, hr_imatrix *out, headrace_error *err)
{
    hr_mapped mapped;
    headrace_status status;

    *out = (hr_imatrix){0};
    HR_PASS(hr_file_map(path, &mapped, err));
    status = hr_imatrix_parse(mapped.at, mapped.len, path, out, err);
    hr_file_unmap(&mapped);
    return status;
}

void hr_imatrix_close(hr_imatrix *imatrix)
{
    hr_arena_deinit(&imatrix->arena);
    *imatrix = (hr_imatrix){0};
}

headrace_status hr_imatrix_find(const hr_imatrix *imatrix, const char *name, uint64_t n_experts, uint64_t n_columns,
                                const float **out, headrace_error *err)
{
    hr_imatrix_entry key = {.name = name};
    const hr_imatrix_entry *entry = NULL;

    *out = NULL;
    if (imatrix->n_entries > 0)
        entry = bsearch(&key, imatrix->entries, imatrix->n_entries, sizeof key, by_name);
    if (!entry)
        return HEADRACE_OK;
    bool is_same = entry->n_experts == n_experts && entry->n_columns == n_columns;
    bool is_flat = entry->n_experts == 1 && n_columns > 0 && entry->n_columns % n_columns == 0 &&
                   entry->n_columns / n_columns == n_experts;

    if (!is_same && !is_flat)
        return hr_fail(err, HEADRACE_E_MODEL,
                       "%s: tensor '%s': figures of %u experts and %u columns, the weight has %llu and %llu (made from "
                       "another model?)",
                       imatrix->path, name, entry->n_experts, entry->n_columns, (unsigned long long)n_experts,
                       (unsigned long long)n_columns);
    *out = entry->mean_squares;
    return HEADRACE_OK;
}

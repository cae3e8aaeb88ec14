/* See tensor_file.h and tensor_list.h.
 *
 * Limits keep a refused file cheap: at most HR_TENSORS_MAX tensors with names below HR_TENSOR_NAME_MAX bytes, about 30
 * MiB of table in the worst case, whatever counts a header claims.
 */
#include "format/tensor_list.h"

#include <string.h>

headrace_status hr_tensor_file_init(hr_tensor_file *file, uint32_t n_shards, headrace_error *err)
{
    *file = (hr_tensor_file){.n_shards = n_shards};
    file->mappings = hr_arena_calloc(&file->arena, n_shards, sizeof *file->mappings);
    file->paths = hr_arena_calloc(&file->arena, n_shards, sizeof *file->paths);
    if (!file->mappings || !file->paths) {
        file->n_shards = 0;
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the table of %u files", n_shards);
    }
    return HEADRACE_OK;
}

headrace_status hr_tensor_file_set_path(hr_tensor_file *file, uint32_t shard, const char *path, headrace_error *err)
{
    file->paths[shard] = hr_arena_strndup(&file->arena, path, strlen(path));
    return file->paths[shard] ? HEADRACE_OK : hr_fail(err, HEADRACE_E_MEMORY, "%s: no memory for its name", path);
}

headrace_status hr_tensor_list_add(hr_tensor_list *list, hr_tensor_file *file, uint32_t shard, const char *name,
                                   size_t name_len, hr_tensor **out, headrace_error *err)
{
    char *copy;

    if (list->n == HR_TENSORS_MAX)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: more than %d tensors", file->paths[shard], HR_TENSORS_MAX);
    if (list->n == list->capacity) {
        uint32_t capacity = list->capacity ? 2 * list->capacity : 256;
        hr_tensor *at = realloc(list->at, capacity * sizeof *at);

        if (!at)
            return hr_fail(err, HEADRACE_E_MEMORY, "%s: no memory for %u tensors", file->paths[shard], capacity);
        list->at = at;
        list->capacity = capacity;
    }
    copy = hr_arena_strndup(&file->arena, name, name_len);
    if (!copy)
        return hr_fail(err, HEADRACE_E_MEMORY, "%s: no memory for tensor names", file->paths[shard]);
    *out = &list->at[list->n++];
    **out = (hr_tensor){.name = copy, .shard = shard};
    return HEADRACE_OK;
}

headrace_status hr_tensor_size(hr_tensor *tensor, const char *path, headrace_error *err)
{
    const hr_dtype_info *info = &hr_dtypes[tensor->dtype];
    uint64_t n = 1;

    if (tensor->shape[tensor->rank - 1] % info->block_values != 0)
        return hr_fail(
            err, HEADRACE_E_MODEL, "%s: tensor '%s': rows of %llu values are no whole number of %s blocks of %u", path,
            tensor->name, (unsigned long long)tensor->shape[tensor->rank - 1], info->name, info->block_values);
    for (uint32_t i = 0; i < tensor->rank; i++)
        if (__builtin_mul_overflow(n, tensor->shape[i], &n))
            return hr_fail(err, HEADRACE_E_MODEL, "%s: tensor '%s': its shape has more than 2^64 values", path,
                           tensor->name);
    if (__builtin_mul_overflow(n / info->block_values, (uint64_t)info->block_bytes, &tensor->n_bytes))
        return hr_fail(err, HEADRACE_E_MODEL, "%s: tensor '%s': its shape has more than 2^64 bytes", path,
                       tensor->name);
    return HEADRACE_OK;
}

static int by_place(const void *a, const void *b)
{
    const hr_tensor *left = a, *right = b;

    if (left->file_offset != right->file_offset)
        return left->file_offset < right->file_offset ? -1 : 1;
    return (left->n_bytes > right->n_bytes) - (left->n_bytes < right->n_bytes);
}

headrace_status hr_tensor_list_check_layout(hr_tensor_list *list, uint32_t first, uint64_t begin, uint64_t end,
                                            bool is_packed, const char *path, headrace_error *err)
{
    uint64_t at = begin;
    const char *before = "the header";

    if (list->n > first)
        qsort(list->at + first, list->n - first, sizeof *list->at, by_place);
    for (uint32_t i = first; i < list->n; i++) {
        const hr_tensor *tensor = &list->at[i];

        if (tensor->file_offset < at)
            return hr_fail(err, HEADRACE_E_MODEL, "%s: tensor '%s' at byte %llu overlaps %s, which ends at byte %llu",
                           path, tensor->name, (unsigned long long)tensor->file_offset, before, (unsigned long long)at);
        if (is_packed && tensor->file_offset > at)
            return hr_fail(err, HEADRACE_E_MODEL, "%s: bytes %llu to %llu, before tensor '%s', belong to no tensor",
                           path, (unsigned long long)at, (unsigned long long)tensor->file_offset, tensor->name);
        at = tensor->file_offset + tensor->n_bytes;
        before = tensor->name;
    }
    if (is_packed && at != end)
        return hr_fail(err, HEADRACE_E_MODEL,
                       "%s: %llu bytes behind the last tensor, at byte %llu, belong to no tensor", path,
                       (unsigned long long)(end - at), (unsigned long long)at);
    return HEADRACE_OK;
}

static int by_name(const void *a, const void *b)
{
    const hr_tensor *left = a, *right = b;

    return strcmp(left->name, right->name);
}

headrace_status hr_tensor_list_seal(hr_tensor_list *list, hr_tensor_file *file, headrace_error *err)
{
    file->tensors = hr_arena_calloc(&file->arena, list->n, sizeof *file->tensors);
    if (!file->tensors)
        return hr_fail(err, HEADRACE_E_MEMORY, "%s: no memory for %u tensors", file->paths[0], list->n);
    if (list->n > 0) {
        qsort(list->at, list->n, sizeof *list->at, by_name);
        memcpy(file->tensors, list->at, list->n * sizeof *list->at);
    }
    file->n_tensors = list->n;
    file->weight_bytes = 0;
    for (uint32_t i = 0; i < list->n; i++) {
        const hr_tensor *tensor = &file->tensors[i];

        if (i > 0 && strcmp(tensor[-1].name, tensor->name) == 0)
            return hr_fail(err, HEADRACE_E_MODEL, "%s: tensor '%s' occurs twice (bytes %llu of %s and %llu of %s)",
                           file->paths[tensor->shard], tensor->name, (unsigned long long)tensor[-1].file_offset,
                           file->paths[tensor[-1].shard], (unsigned long long)tensor->file_offset,
                           file->paths[tensor->shard]);
        file->weight_bytes += tensor->n_bytes;
    }
    return HEADRACE_OK;
}

void hr_tensor_list_deinit(hr_tensor_list *list)
{
    free(list->at);
    *list = (hr_tensor_list){0};
}

const hr_tensor *hr_tensor_file_find(const hr_tensor_file *file, const char *name)
{
    hr_tensor key = {.name = name};

    return file->n_tensors == 0 ? NULL : bsearch(&key, file->tensors, file->n_tensors, sizeof key, by_name);
}

const hr_tensor *hr_tensor_file_at(const hr_tensor_file *file, const void *data)
{
    for (uint32_t i = 0; i < file->n_tensors; i++) {
        uintptr_t begin = (uintptr_t)file->tensors[i].data, at = (uintptr_t)data;

        if (at >= begin && at - begin < file->tensors[i].n_bytes)
            return &file->tensors[i];
    }
    return NULL;
}

void hr_tensor_file_close(hr_tensor_file *file)
{
    for (uint32_t i = 0; i < file->n_shards; i++)
        hr_file_unmap(&file->mappings[i]);
    hr_arena_deinit(&file->arena);
    *file = (hr_tensor_file){0};
}

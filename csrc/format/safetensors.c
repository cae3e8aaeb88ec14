/* Reading safetensors: one file, or a folder of shards with an index.
 *
 * The header is JSON written by strangers. It is scanned in place (json_scan.h), never built into a tree, so that a
 * refused file costs neither time nor memory. Every byte of the data must belong to exactly one tensor: no overlap, no
 * gap, nothing behind the last. That is stricter than reading needs; it is what makes a truncated or edited file
 * visible.
 */
#include "format/safetensors.h"

#include "format/json_scan.h"
#include "format/tensor_list.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

enum { HEADER_BYTES_MAX = 16 << 20, FILE_NAME_MAX = 256 };

static const struct {
    const char *name;
    hr_dtype dtype;
} supported[] = {{"BF16", HR_BF16}, {"F16", HR_F16}, {"F32", HR_F32}};

static headrace_status set_dtype(const char *name, hr_tensor *tensor, const char *path, headrace_error *err)
{
    for (size_t i = 0; i < sizeof supported / sizeof *supported; i++)
        if (strcmp(name, supported[i].name) == 0) {
            tensor->dtype = supported[i].dtype;
            return HEADRACE_OK;
        }
    return hr_fail(err, HEADRACE_E_MODEL, "%s: tensor '%s': dtype '%s' is not supported (BF16, F16 and F32 are)", path,
                   tensor->name, name);
}

static headrace_status scan_shape(hr_json_scan *scan, hr_tensor *tensor)
{
    bool more;

    HR_PASS(hr_scan_expect(scan, '['));
    for (tensor->rank = 0;; tensor->rank++) {
        HR_PASS(hr_scan_next(scan, ']', tensor->rank == 0, &more));
        if (!more)
            break;
        if (tensor->rank == HR_RANK_MAX)
            return hr_fail(scan->err, HEADRACE_E_MODEL, "%s: tensor '%s': more than %d dimensions", scan->path,
                           tensor->name, HR_RANK_MAX);
        HR_PASS(hr_scan_u64(scan, &tensor->shape[tensor->rank]));
    }
    if (tensor->rank == 0) { /* a scalar */
        tensor->rank = 1;
        tensor->shape[0] = 1;
    }
    return HEADRACE_OK;
}

static headrace_status scan_offsets(hr_json_scan *scan, uint64_t offsets[2])
{
    HR_PASS(hr_scan_expect(scan, '['));
    HR_PASS(hr_scan_u64(scan, &offsets[0]));
    HR_PASS(hr_scan_expect(scan, ','));
    HR_PASS(hr_scan_u64(scan, &offsets[1]));
    return hr_scan_expect(scan, ']');
}

/* The bytes of one file and what is known of it while its header is read. */
typedef struct source {
    const unsigned char *bytes;
    uint64_t data_at, data_bytes; /* where the data begin in the file, and how many there are */
    uint32_t shard;
} source;

static headrace_status place_tensor(hr_tensor *tensor, const uint64_t offsets[2], const source *from, const char *path,
                                    headrace_error *err)
{
    unsigned long long begin = offsets[0], end = offsets[1];

    if (begin > end || end > from->data_bytes)
        return hr_fail(
            err, HEADRACE_E_MODEL,
            "%s: tensor '%s': data_offsets [%llu, %llu] do not lie in order within the %llu bytes of data (the file "
            "may be truncated)",
            path, tensor->name, begin, end, (unsigned long long)from->data_bytes);
    HR_PASS(hr_tensor_size(tensor, path, err));
    if (end - begin != tensor->n_bytes)
        return hr_fail(err, HEADRACE_E_MODEL,
                       "%s: tensor '%s': data_offsets [%llu, %llu] span %llu bytes, its shape needs %llu", path,
                       tensor->name, begin, end, end - begin, (unsigned long long)tensor->n_bytes);
    tensor->file_offset = from->data_at + begin;
    tensor->data = from->bytes + tensor->file_offset;
    return HEADRACE_OK;
}

/* {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}, in any order, each once, nothing else. */
static headrace_status scan_tensor(hr_json_scan *scan, hr_tensor *tensor, const source *from)
{
    enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4 };
    char field[32], dtype[32] = "";
    uint64_t offsets[2];
    unsigned seen = 0;
    bool more;

    HR_PASS(hr_scan_expect(scan, '{'));
    for (bool is_first = true;; is_first = false) {
        unsigned bit;

        HR_PASS(hr_scan_next(scan, '}', is_first, &more));
        if (!more)
            break;
        HR_PASS(hr_scan_string(scan, field, sizeof field));
        HR_PASS(hr_scan_expect(scan, ':'));
        bit = strcmp(field, "dtype") == 0 ? DTYPE : strcmp(field, "shape") == 0 ? SHAPE : OFFSETS;
        if (bit == OFFSETS && strcmp(field, "data_offsets") != 0)
            return hr_fail(scan->err, HEADRACE_E_MODEL, "%s: tensor '%s': unknown field '%s'", scan->path, tensor->name,
                           field);
        if (seen & bit)
            return hr_fail(scan->err, HEADRACE_E_MODEL, "%s: tensor '%s': '%s' occurs twice", scan->path, tensor->name,
                           field);
        seen |= bit;
        if (bit == DTYPE)
            HR_PASS(hr_scan_string(scan, dtype, sizeof dtype));
        else
            HR_PASS(bit == SHAPE ? scan_shape(scan, tensor) : scan_offsets(scan, offsets));
    }
    if (seen != (DTYPE | SHAPE | OFFSETS))
        return hr_fail(scan->err, HEADRACE_E_MODEL, "%s: tensor '%s': '%s' is missing", scan->path, tensor->name,
                       !(seen & DTYPE)   ? "dtype"
                       : !(seen & SHAPE) ? "shape"
                                         : "data_offsets");
    HR_PASS(set_dtype(dtype, tensor, scan->path, scan->err));
    return place_tensor(tensor, offsets, from, scan->path, scan->err);
}

static headrace_status scan_header(hr_json_scan *scan, hr_tensor_file *file, hr_tensor_list *list, const source *from)
{
    char name[HR_TENSOR_NAME_MAX];
    bool more;
    hr_tensor *tensor;

    HR_PASS(hr_scan_expect(scan, '{'));
    for (bool is_first = true;; is_first = false) {
        HR_PASS(hr_scan_next(scan, '}', is_first, &more));
        if (!more)
            break;
        HR_PASS(hr_scan_string(scan, name, sizeof name));
        HR_PASS(hr_scan_expect(scan, ':'));
        if (strcmp(name, "__metadata__") == 0) {
            HR_PASS(hr_scan_skip(scan));
            continue;
        }
        HR_PASS(hr_tensor_list_add(list, file, from->shard, name, strlen(name), &tensor, scan->err));
        HR_PASS(scan_tensor(scan, tensor, from));
    }
    (void)hr_scan_peek(scan);
    return scan->at == scan->len ? HEADRACE_OK : hr_scan_fail(scan, "nothing but blanks after the header");
}

/* Adds the tensors of one file to the list. */
static headrace_status read_shard(hr_tensor_file *file, hr_tensor_list *list, uint32_t shard,
                                  const unsigned char *bytes, size_t len, headrace_error *err)
{
    const char *path = file->paths[shard];
    uint64_t header_bytes;
    uint32_t first = list->n;

    if (len < 8)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: %zu bytes are too few for a safetensors file", path, len);
    memcpy(&header_bytes, bytes, 8);
    if (header_bytes > HEADER_BYTES_MAX)
        return hr_fail(err, HEADRACE_E_MODEL,
                       "%s: byte 0: a header of %llu bytes, more than the %d allowed (is it a safetensors file?)", path,
                       (unsigned long long)header_bytes, HEADER_BYTES_MAX);
    if (header_bytes > len - 8)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: byte 0: a header of %llu bytes in a file of %zu (truncated?)", path,
                       (unsigned long long)header_bytes, len);

    source from = {.bytes = bytes, .data_at = 8 + header_bytes, .data_bytes = len - 8 - header_bytes, .shard = shard};
    hr_json_scan scan = {
        .text = (const char *)bytes + 8, .len = (size_t)header_bytes, .file_offset = 8, .path = path, .err = err};

    HR_PASS(scan_header(&scan, file, list, &from));
    return hr_tensor_list_check_layout(list, first, from.data_at, len, true, path, err);
}

headrace_status hr_safetensors_parse(const unsigned char *bytes, size_t len, const char *path, hr_tensor_file *out,
                                     headrace_error *err)
{
    headrace_status status;
    hr_tensor_list list = {0};

    *out = (hr_tensor_file){0};
    HR_TRY_GOTO(done, hr_tensor_file_init(out, 1, err));
    HR_TRY_GOTO(done, hr_tensor_file_set_path(out, 0, path, err));
    HR_TRY_GOTO(done, read_shard(out, &list, 0, bytes, len, err));
    HR_TRY_GOTO(done, hr_tensor_list_seal(&list, out, err));
done:
    hr_tensor_list_deinit(&list);
    if (status != HEADRACE_OK)
        hr_tensor_file_close(out);
    return status;
}

static headrace_status map_shard(hr_tensor_file *file, hr_tensor_list *list, uint32_t shard, headrace_error *err)
{
    hr_mapped *mapped = &file->mappings[shard];

    HR_PASS(hr_file_map(file->paths[shard], mapped, err));
    return read_shard(file, list, shard, mapped->at, mapped->len, err);
}

static headrace_status open_single(const char *path, hr_tensor_file *out, headrace_error *err)
{
    headrace_status status;
    hr_tensor_list list = {0};

    *out = (hr_tensor_file){0};
    HR_TRY_GOTO(done, hr_tensor_file_init(out, 1, err));
    HR_TRY_GOTO(done, hr_tensor_file_set_path(out, 0, path, err));
    HR_TRY_GOTO(done, map_shard(out, &list, 0, err));
    HR_TRY_GOTO(done, hr_tensor_list_seal(&list, out, err));
done:
    hr_tensor_list_deinit(&list);
    if (status != HEADRACE_OK)
        hr_tensor_file_close(out);
    return status;
}

/* ---------------------------------------------------------------- the index of a folder of shards */

typedef struct shard_index {
    const char *folder;
    char (*names)[FILE_NAME_MAX]; /* [HR_SHARDS_MAX], heap: distinct file names in order of appearance */
    uint32_t n;
    const hr_tensor_file *file; /* NULL while names are collected; then every entry is looked up in it */
} shard_index;

static headrace_status find_shard(hr_json_scan *scan, shard_index *index, const char *name, uint32_t *out)
{
    /* Neighbouring tensors lie in the same shard: look at the latest first. */
    for (uint32_t i = index->n; i-- > 0;)
        if (strcmp(index->names[i], name) == 0) {
            *out = i;
            return HEADRACE_OK;
        }
    if (name[0] == '\0' || strchr(name, '/') || strcmp(name, "..") == 0)
        return hr_fail(scan->err, HEADRACE_E_MODEL, "%s: byte %llu: '%s' is not the name of a file in this folder",
                       scan->path, (unsigned long long)scan->at, name);
    if (index->n == HR_SHARDS_MAX)
        return hr_fail(scan->err, HEADRACE_E_MODEL, "%s: more than %d files", scan->path, HR_SHARDS_MAX);
    *out = index->n;
    memcpy(index->names[index->n++], name, strlen(name) + 1);
    return HEADRACE_OK;
}

static headrace_status scan_weight_map(hr_json_scan *scan, shard_index *index)
{
    char tensor_name[HR_TENSOR_NAME_MAX], name[FILE_NAME_MAX];
    uint32_t shard = 0;
    bool more;

    HR_PASS(hr_scan_expect(scan, '{'));
    for (bool is_first = true;; is_first = false) {
        HR_PASS(hr_scan_next(scan, '}', is_first, &more));
        if (!more)
            return HEADRACE_OK;
        HR_PASS(hr_scan_string(scan, tensor_name, sizeof tensor_name));
        HR_PASS(hr_scan_expect(scan, ':'));
        HR_PASS(hr_scan_string(scan, name, sizeof name));
        HR_PASS(find_shard(scan, index, name, &shard));
        if (index->file) {
            const hr_tensor *tensor = hr_tensor_file_find(index->file, tensor_name);

            if (!tensor || tensor->shard != shard)
                return hr_fail(scan->err, HEADRACE_E_MODEL, "%s: tensor '%s' is said to lie in '%s', but is not there",
                               scan->path, tensor_name, name);
        }
    }
}

/* {"metadata": ..., "weight_map": {tensor: file}}. Read twice: once for the files, once more when their tensors are
 * known. */
static headrace_status scan_index(hr_json_scan scan, shard_index *index)
{
    char field[HR_TENSOR_NAME_MAX];
    bool more, has_map = false;

    HR_PASS(hr_scan_expect(&scan, '{'));
    for (bool is_first = true;; is_first = false) {
        HR_PASS(hr_scan_next(&scan, '}', is_first, &more));
        if (!more)
            break;
        HR_PASS(hr_scan_string(&scan, field, sizeof field));
        HR_PASS(hr_scan_expect(&scan, ':'));
        if (strcmp(field, "weight_map") != 0) {
            HR_PASS(hr_scan_skip(&scan));
            continue;
        }
        if (has_map)
            return hr_fail(scan.err, HEADRACE_E_MODEL, "%s: 'weight_map' occurs twice", scan.path);
        has_map = true;
        HR_PASS(scan_weight_map(&scan, index));
    }
    if (index->n == 0)
        return hr_fail(scan.err, HEADRACE_E_MODEL, "%s: 'weight_map' is missing or names no file", scan.path);
    return HEADRACE_OK;
}

static headrace_status open_shards(const hr_json_scan *scan, shard_index *index, hr_tensor_file *out,
                                   hr_tensor_list *list)
{
    char path[PATH_MAX];

    HR_PASS(scan_index(*scan, index));
    HR_PASS(hr_tensor_file_init(out, index->n, scan->err));
    for (uint32_t i = 0; i < index->n; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", index->folder, index->names[i]);
        HR_PASS(hr_tensor_file_set_path(out, i, path, scan->err));
    }
    for (uint32_t i = 0; i < index->n; i++) {
        if (!hr_file_exists(out->paths[i]))
            return hr_fail(scan->err, HEADRACE_E_MODEL, "%s: the file '%s' (%u of %u) is missing from the folder",
                           scan->path, index->names[i], i + 1, index->n);
        HR_PASS(map_shard(out, list, i, scan->err));
    }
    HR_PASS(hr_tensor_list_seal(list, out, scan->err));
    index->file = out;
    return scan_index(*scan, index);
}

static headrace_status open_index(const char *folder, const char *path, hr_tensor_file *out, headrace_error *err)
{
    headrace_status status;
    hr_mapped mapped = {0};
    hr_tensor_list list = {0};
    shard_index index = {.folder = folder};

    HR_PASS(hr_file_map(path, &mapped, err));
    hr_json_scan scan = {.text = (const char *)mapped.at, .len = mapped.len, .path = path, .err = err};

    index.names = calloc(HR_SHARDS_MAX, sizeof *index.names);
    if (!index.names)
        status = hr_fail(err, HEADRACE_E_MEMORY, "%s: no memory for the names of shards", path);
    else if (mapped.len > HEADER_BYTES_MAX)
        status = hr_fail(err, HEADRACE_E_MODEL, "%s: %zu bytes, more than the %d allowed", path, mapped.len,
                         HEADER_BYTES_MAX);
    else
        status = open_shards(&scan, &index, out, &list);
    hr_tensor_list_deinit(&list);
    free(index.names);
    hr_file_unmap(&mapped);
    if (status != HEADRACE_OK)
        hr_tensor_file_close(out);
    return status;
}

/* ---------------------------------------------------------------- folders */

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

/* The only *.safetensors of a folder. */
static headrace_status find_only(const char *folder, char path[PATH_MAX], headrace_error *err)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    int n = 0, n_gguf = 0;

    if (!dir)
        return hr_fail(err, HEADRACE_E_IO, "%s: %s", folder, strerror(errno));
    while ((entry = readdir(dir)) != NULL) {
        n_gguf += ends_with(entry->d_name, ".gguf");
        if (ends_with(entry->d_name, ".safetensors") && n++ == 0)
            (void)snprintf(path, PATH_MAX, "%s/%s", folder, entry->d_name);
    }
    (void)closedir(dir);
    if (n == 1)
        return HEADRACE_OK;
    if (n == 0 && n_gguf > 0)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: no *.safetensors file; to open a GGUF file give its own path",
                       folder);
    if (n == 0)
        return hr_fail(err, HEADRACE_E_MODEL,
                       "%s: no weights: expected model.safetensors or model.safetensors.index.json", folder);
    return hr_fail(err, HEADRACE_E_MODEL,
                   "%s: %d *.safetensors files, but neither model.safetensors nor model.safetensors.index.json", folder,
                   n);
}

headrace_status hr_safetensors_open_folder(const char *folder, hr_tensor_file *out, headrace_error *err)
{
    char path[PATH_MAX];

    *out = (hr_tensor_file){0};
    if (strlen(folder) > PATH_MAX - FILE_NAME_MAX - 2)
        return hr_fail(err, HEADRACE_E_IO, "the path is too long: %s", folder);
    (void)snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
    if (hr_file_exists(path))
        return open_index(folder, path, out, err);
    (void)snprintf(path, sizeof path, "%s/model.safetensors", folder);
    if (!hr_file_exists(path))
        HR_PASS(find_only(folder, path, err));
    return open_single(path, out, err);
}

/* Reading GGUF: key-value metadata, a tensor table, aligned data; one file or the shards of a split one.
 *
 * Every length and count comes from the file, so each is compared with the bytes that are left before anything is
 * allocated or skipped: an array of n elements needs at least n times their smallest size. Values are not copied; they
 * are read where they lie (gguf_read.c), after this file has walked over all of them once.
 */
#include "format/gguf.h"

#include "format/tensor_list.h"

#include <limits.h>
#include <string.h>

enum {
    METADATA_BYTES_MAX = 64 << 20,
    KEYS_MAX = 65536,
    KEY_BYTES_MAX = 65535,
    STRINGS_MAX = 1 << 22,
    ALIGNMENT_DEFAULT = 32,
    SHARD_SUFFIX_BYTES = 20
};

typedef struct reader {
    const unsigned char *bytes;
    size_t len, at;
    const char *path;
    headrace_error *err;
} reader;

static headrace_status truncated(const reader *in, const char *what)
{
    return hr_fail(in->err, HEADRACE_E_MODEL, "%s: byte %zu: the file ends within %s (%zu bytes; truncated?)", in->path,
                   in->at, what, in->len);
}

static headrace_status take(reader *in, size_t n, void *out, const char *what)
{
    if (in->len - in->at < n)
        return truncated(in, what);
    memcpy(out, in->bytes + in->at, n);
    in->at += n;
    return HEADRACE_OK;
}

static headrace_status take_string(reader *in, hr_gguf_string *out, const char *what)
{
    HR_PASS(take(in, 8, &out->len, what));
    if (out->len > in->len - in->at)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: byte %zu: %s of %llu bytes in a file with %zu left", in->path,
                       in->at - 8, what, (unsigned long long)out->len, in->len - in->at);
    out->at = (const char *)in->bytes + in->at;
    in->at += (size_t)out->len;
    return HEADRACE_OK;
}

/* Bytes of a scalar; 0 for strings, arrays and unknown types. */
static size_t scalar_bytes(uint32_t type)
{
    static const unsigned char bytes[] = {[HR_GGUF_U8] = 1,  [HR_GGUF_I8] = 1,  [HR_GGUF_U16] = 2, [HR_GGUF_I16] = 2,
                                          [HR_GGUF_U32] = 4, [HR_GGUF_I32] = 4, [HR_GGUF_F32] = 4, [HR_GGUF_BOOL] = 1,
                                          [HR_GGUF_U64] = 8, [HR_GGUF_I64] = 8, [HR_GGUF_F64] = 8};

    return type < sizeof bytes ? bytes[type] : 0;
}

/* A name for messages: shortened, and with anything but plain ASCII replaced. */
typedef struct label {
    char text[96];
} label;

static label label_of(hr_gguf_string string)
{
    label out;
    size_t n = string.len < sizeof out.text - 1 ? (size_t)string.len : sizeof out.text - 1;

    for (size_t i = 0; i < n; i++)
        out.text[i] = string.at[i] >= 0x20 && string.at[i] < 0x7F ? string.at[i] : '?';
    out.text[n] = '\0';
    return out;
}

static headrace_status skip_strings(reader *in, const hr_gguf_value *value)
{
    hr_gguf_string text;

    if (value->n_elements > STRINGS_MAX)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: byte %zu: an array of %llu strings, more than the %d allowed",
                       in->path, in->at - 8, (unsigned long long)value->n_elements, STRINGS_MAX);
    for (uint64_t i = 0; i < value->n_elements; i++)
        HR_PASS(take_string(in, &text, "a string"));
    return HEADRACE_OK;
}

static headrace_status skip_array(reader *in, hr_gguf_value *value)
{
    uint32_t type;
    size_t size;

    HR_PASS(take(in, 4, &type, "an array's type"));
    HR_PASS(take(in, 8, &value->n_elements, "an array's length"));
    size = scalar_bytes(type);
    if (type == HR_GGUF_ARRAY)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: byte %zu: arrays of arrays are not supported", in->path,
                       in->at - 12);
    if (size == 0 && type != HR_GGUF_STRING)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: byte %zu: unknown element type %u (0 to 12 exist)", in->path,
                       in->at - 12, type);
    if (value->n_elements > (in->len - in->at) / (size ? size : 8))
        return hr_fail(in->err, HEADRACE_E_MODEL,
                       "%s: byte %zu: an array of %llu elements in a file with %zu bytes left", in->path, in->at - 8,
                       (unsigned long long)value->n_elements, in->len - in->at);
    value->element_type = (hr_gguf_type)type;
    value->at = in->bytes + in->at;
    value->offset = in->at;
    if (type == HR_GGUF_STRING)
        return skip_strings(in, value);
    in->at += size * (size_t)value->n_elements;
    return HEADRACE_OK;
}

static headrace_status read_value(reader *in, hr_gguf_value *value)
{
    uint32_t type;
    hr_gguf_string text;

    HR_PASS(take(in, 4, &type, "a value's type"));
    if (type > HR_GGUF_F64)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: byte %zu: unknown value type %u (0 to 12 exist)", in->path,
                       in->at - 4, type);
    *value = (hr_gguf_value){.type = (hr_gguf_type)type, .at = in->bytes + in->at, .offset = in->at};
    if (type == HR_GGUF_ARRAY)
        return skip_array(in, value);
    if (type == HR_GGUF_STRING)
        return take_string(in, &text, "a string");
    if (in->len - in->at < scalar_bytes(type))
        return truncated(in, "a value");
    in->at += scalar_bytes(type);
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- metadata */

static int by_key(const void *a, const void *b)
{
    const hr_gguf_string *left = &(*(const hr_gguf_entry *const *)a)->key,
                         *right = &(*(const hr_gguf_entry *const *)b)->key;
    size_t n = (size_t)(left->len < right->len ? left->len : right->len);
    int order = memcmp(left->at, right->at, n);

    return order != 0 ? order : (left->len > right->len) - (left->len < right->len);
}

static headrace_status refuse_duplicate_keys(const reader *in, const hr_gguf_entry *entries, uint32_t n)
{
    const hr_gguf_entry **order = malloc((n + 1) * sizeof(void *));
    headrace_status status = HEADRACE_OK;

    if (!order)
        return hr_fail(in->err, HEADRACE_E_MEMORY, "%s: no memory for %u keys", in->path, n);
    for (uint32_t i = 0; i < n; i++)
        order[i] = &entries[i];
    /* NOLINTNEXTLINE(bugprone-sizeof-expression): the elements are pointers */
    qsort(order, n, sizeof *order, by_key);
    for (uint32_t i = 1; i < n && status == HEADRACE_OK; i++)
        if (by_key(&order[i - 1], &order[i]) == 0)
            status = hr_fail(in->err, HEADRACE_E_MODEL, "%s: key '%s' occurs twice (its values at bytes %llu and %llu)",
                             in->path, label_of(order[i]->key).text, (unsigned long long)order[i - 1]->value.offset,
                             (unsigned long long)order[i]->value.offset);
    free(order);
    return status;
}

static headrace_status read_entries(reader *in, hr_gguf *out, uint64_t n)
{
    headrace_error *err = in->err;

    /* The smallest entry: an 8-byte length, a 1-byte key, a 4-byte type, a 1-byte value. */
    if (n > KEYS_MAX || n > (in->len - in->at) / 14)
        return hr_fail(err, HEADRACE_E_MODEL,
                       "%s: byte 16: %llu metadata keys in a file of %zu bytes (at most %d are read)", in->path,
                       (unsigned long long)n, in->len, KEYS_MAX);
    out->entries = hr_arena_calloc(&out->file.arena, (size_t)n, sizeof *out->entries);
    if (!out->entries)
        return hr_fail(err, HEADRACE_E_MEMORY, "%s: no memory for %llu keys", in->path, (unsigned long long)n);
    out->n_entries = (uint32_t)n;
    for (uint32_t i = 0; i < out->n_entries; i++) {
        hr_gguf_entry *entry = &out->entries[i];

        HR_TRY(take_string(in, &entry->key, "a key"), "metadata key %u", i);
        if (entry->key.len == 0 || entry->key.len > KEY_BYTES_MAX)
            return hr_fail(err, HEADRACE_E_MODEL, "%s: byte %zu: a key of %llu bytes (1 to %d are allowed)", in->path,
                           in->at, (unsigned long long)entry->key.len, KEY_BYTES_MAX);
        HR_TRY(read_value(in, &entry->value), "key '%s'", label_of(entry->key).text);
        if (in->at > METADATA_BYTES_MAX)
            return hr_fail(err, HEADRACE_E_MODEL,
                           "%s: key '%s', byte %llu: the metadata are larger than the %d bytes allowed", in->path,
                           label_of(entry->key).text, (unsigned long long)entry->value.offset, METADATA_BYTES_MAX);
    }
    return refuse_duplicate_keys(in, out->entries, out->n_entries);
}

/* ---------------------------------------------------------------- tensors */

/* ggml's numbers. Those without a dtype of ours are listed so that a refusal can name them; some were taken out of the
 * format again. */
static const struct {
    const char *name;
    int dtype; /* -1: not supported */
} ggml_types[] = {
    [0] = {"F32", HR_F32},
    [1] = {"F16", HR_F16},
    [2] = {"Q4_0", HR_Q4_0},
    [3] = {"Q4_1", HR_Q4_1},
    [4] = {"Q4_2, removed", -1},
    [5] = {"Q4_3, removed", -1},
    [6] = {"Q5_0", HR_Q5_0},
    [7] = {"Q5_1", HR_Q5_1},
    [8] = {"Q8_0", HR_Q8_0},
    [9] = {"Q8_1", -1},
    [10] = {"Q2_K", -1},
    [11] = {"Q3_K", -1},
    [12] = {"Q4_K", HR_Q4_K},
    [13] = {"Q5_K", HR_Q5_K},
    [14] = {"Q6_K", HR_Q6_K},
    [15] = {"Q8_K", -1},
    [16] = {"IQ2_XXS", -1},
    [17] = {"IQ2_XS", -1},
    [18] = {"IQ3_XXS", -1},
    [19] = {"IQ1_S", -1},
    [20] = {"IQ4_NL", -1},
    [21] = {"IQ3_S", -1},
    [22] = {"IQ2_S", -1},
    [23] = {"IQ4_XS", -1},
    [24] = {"I8", -1},
    [25] = {"I16", -1},
    [26] = {"I32", -1},
    [27] = {"I64", -1},
    [28] = {"F64", -1},
    [29] = {"IQ1_M", -1},
    [30] = {"BF16", HR_BF16},
    [31] = {"Q4_0_4_4, removed", -1},
    [32] = {"Q4_0_4_8, removed", -1},
    [33] = {"Q4_0_8_8, removed", -1},
    [34] = {"TQ1_0", -1},
    [35] = {"TQ2_0", -1},
    [36] = {"IQ4_NL_4_4, removed", -1},
    [37] = {"IQ4_NL_4_8, removed", -1},
    [38] = {"IQ4_NL_8_8, removed", -1},
    [39] = {"MXFP4", -1},
};

static headrace_status set_type(const reader *in, hr_tensor *tensor, uint32_t type)
{
    bool is_known = type < sizeof ggml_types / sizeof *ggml_types && ggml_types[type].name;

    if (!is_known || ggml_types[type].dtype < 0)
        return hr_fail(
            in->err, HEADRACE_E_MODEL,
            "%s: byte %zu: tensor '%s': type %u (%s) is not supported (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, "
            "Q4_K, Q5_K and Q6_K are)",
            in->path, in->at - 4, tensor->name, type, is_known ? ggml_types[type].name : "unknown");
    tensor->dtype = (hr_dtype)ggml_types[type].dtype;
    return HEADRACE_OK;
}

static headrace_status read_tensor(reader *in, hr_gguf *out, hr_tensor_list *list, uint32_t shard)
{
    hr_gguf_string name;
    hr_tensor *tensor;
    uint32_t type;

    HR_PASS(take_string(in, &name, "a tensor's name"));
    if (name.len == 0 || name.len >= HR_TENSOR_NAME_MAX || memchr(name.at, '\0', (size_t)name.len))
        return hr_fail(in->err, HEADRACE_E_MODEL,
                       "%s: byte %zu: a tensor's name of %llu bytes (1 to %d, none of them 0)", in->path, in->at,
                       (unsigned long long)name.len, HR_TENSOR_NAME_MAX - 1);
    HR_PASS(hr_tensor_list_add(list, &out->file, shard, name.at, (size_t)name.len, &tensor, in->err));
    HR_PASS(take(in, 4, &tensor->rank, "a tensor's entry"));
    if (tensor->rank == 0 || tensor->rank > HR_RANK_MAX)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: byte %zu: tensor '%s': %u dimensions (1 to %d are allowed)",
                       in->path, in->at - 4, label_of(name).text, tensor->rank, HR_RANK_MAX);
    for (uint32_t i = tensor->rank; i-- > 0;) /* the file lists the fastest dimension first */
        HR_PASS(take(in, 8, &tensor->shape[i], "a tensor's entry"));
    HR_PASS(take(in, 4, &type, "a tensor's entry"));
    HR_PASS(set_type(in, tensor, type));
    HR_PASS(take(in, 8, &tensor->file_offset, "a tensor's entry")); /* from the start of the data; see place_tensors */
    return hr_tensor_size(tensor, in->path, in->err);
}

static headrace_status place_tensors(reader *in, hr_tensor_list *list, uint32_t first, uint64_t data_at,
                                     uint32_t alignment)
{
    uint64_t n_left = data_at < in->len ? in->len - data_at : 0;

    for (uint32_t i = first; i < list->n; i++) {
        hr_tensor *tensor = &list->at[i];
        unsigned long long offset = tensor->file_offset, n_bytes = tensor->n_bytes;

        if (offset % alignment != 0)
            return hr_fail(in->err, HEADRACE_E_MODEL, "%s: tensor '%s': offset %llu is no multiple of the alignment %u",
                           in->path, tensor->name, offset, alignment);
        if (offset > n_left || n_bytes > n_left - offset)
            return hr_fail(in->err, HEADRACE_E_MODEL,
                           "%s: tensor '%s': %llu bytes at byte %llu, but the file has %zu bytes (truncated?)",
                           in->path, tensor->name, n_bytes, data_at + offset, in->len);
        tensor->file_offset = data_at + offset;
        tensor->data = in->bytes + tensor->file_offset;
    }
    return hr_tensor_list_check_layout(list, first, data_at, in->len, false, in->path, in->err);
}

/* ---------------------------------------------------------------- one file */

static headrace_status read_version(reader *in, uint32_t *version)
{
    char magic[4];

    if (in->len < 24 && in->len >= 4 && memcmp(in->bytes, "GGUF", 4) == 0)
        return truncated(in, "the header");
    HR_PASS(take(in, 4, magic, "the magic number"));
    if (memcmp(magic, "GGUF", 4) != 0)
        return hr_fail(in->err, HEADRACE_E_MODEL,
                       "%s: byte 0: not a GGUF file (it begins with %02x %02x %02x %02x); a Hugging Face checkpoint is "
                       "given by its folder",
                       in->path, (unsigned char)magic[0], (unsigned char)magic[1], (unsigned char)magic[2],
                       (unsigned char)magic[3]);
    HR_PASS(take(in, 4, version, "the version"));
    if (*version != 0 && (*version & 0xFFFF) == 0)
        return hr_fail(in->err, HEADRACE_E_MODEL,
                       "%s: byte 4: a big-endian GGUF file; only little-endian ones are read", in->path);
    if (*version != 2 && *version != 3)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: byte 4: GGUF version %u is not supported (2 and 3 are)",
                       in->path, *version);
    return HEADRACE_OK;
}

static headrace_status read_alignment(const hr_gguf *gguf, const reader *in, uint32_t *out)
{
    *out = ALIGNMENT_DEFAULT;
    if (!hr_gguf_find(gguf, "general.alignment"))
        return HEADRACE_OK;
    HR_PASS(hr_gguf_u32(gguf, "general.alignment", out, in->err));
    if (*out == 0 || (*out & (*out - 1)) != 0)
        return hr_fail(in->err, HEADRACE_E_MODEL, "%s: key 'general.alignment' is %u, not a power of two", in->path,
                       *out);
    return HEADRACE_OK;
}

/* Metadata into gguf->entries (replacing what is there), tensors into the list. */
static headrace_status read_file(hr_gguf *gguf, hr_tensor_list *list, uint32_t shard, const unsigned char *bytes,
                                 size_t len, headrace_error *err)
{
    reader in = {.bytes = bytes, .len = len, .path = gguf->file.paths[shard], .err = err};
    uint64_t n_tensors, n_keys;
    uint32_t alignment, first = list->n;

    HR_PASS(read_version(&in, &gguf->version));
    HR_PASS(take(&in, 8, &n_tensors, "the header"));
    HR_PASS(take(&in, 8, &n_keys, "the header"));
    HR_PASS(read_entries(&in, gguf, n_keys));
    HR_PASS(read_alignment(gguf, &in, &alignment));
    /* The smallest tensor entry: name 8 + 1, rank 4, one dimension 8, type 4, offset 8. */
    if (n_tensors > HR_TENSORS_MAX || n_tensors > (in.len - in.at) / 33)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: byte 8: %llu tensors in a file of %zu bytes (at most %d are read)",
                       in.path, (unsigned long long)n_tensors, len, HR_TENSORS_MAX);
    for (uint64_t i = 0; i < n_tensors; i++)
        HR_TRY(read_tensor(&in, gguf, list, shard), "tensor %llu", (unsigned long long)i);
    return place_tensors(&in, list, first, ((uint64_t)in.at + alignment - 1) / alignment * alignment, alignment);
}

headrace_status hr_gguf_parse(const unsigned char *bytes, size_t len, const char *path, hr_gguf *out,
                              headrace_error *err)
{
    headrace_status status;
    hr_tensor_list list = {0};

    *out = (hr_gguf){0};
    HR_TRY_GOTO(done, hr_tensor_file_init(&out->file, 1, err));
    HR_TRY_GOTO(done, hr_tensor_file_set_path(&out->file, 0, path, err));
    HR_TRY_GOTO(done, read_file(out, &list, 0, bytes, len, err));
    HR_TRY_GOTO(done, hr_tensor_list_seal(&list, &out->file, err));
done:
    hr_tensor_list_deinit(&list);
    if (status != HEADRACE_OK)
        hr_gguf_close(out);
    return status;
}

/* ---------------------------------------------------------------- split files */

/* "...-00002-of-00003.gguf": where the suffix begins and its numbers; false when the name has no such end. */
static bool parse_suffix(const char *path, size_t *begin, uint32_t *number, uint32_t *count)
{
    size_t len = strlen(path);
    int end = 0;

    if (len < SHARD_SUFFIX_BYTES)
        return false;
    *begin = len - SHARD_SUFFIX_BYTES;
    /* NOLINTNEXTLINE(cert-err34-c): five digits always fit */
    return sscanf(path + *begin, "-%5u-of-%5u.gguf%n", number, count, &end) == 2 && end == SHARD_SUFFIX_BYTES &&
           *number >= 1 && *number <= *count;
}

static headrace_status map_shard(hr_gguf *gguf, hr_tensor_list *list, uint32_t shard, headrace_error *err)
{
    hr_mapped *mapped = &gguf->file.mappings[shard];

    HR_PASS(hr_file_map(gguf->file.paths[shard], mapped, err));
    return read_file(gguf, list, shard, mapped->at, mapped->len, err);
}

static headrace_status check_split_keys(const hr_gguf *gguf, uint32_t shard, uint32_t count, headrace_error *err)
{
    uint32_t number = shard, found = count;

    HR_PASS(hr_gguf_u32(gguf, "split.no", &number, err));
    HR_PASS(hr_gguf_u32(gguf, "split.count", &found, err));
    if (number != shard || found != count)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: its keys say part %u of %u, its name part %u of %u",
                       gguf->file.paths[shard], number + 1, found, shard + 1, count);
    return HEADRACE_OK;
}

static headrace_status open_split(const char *path, size_t prefix_len, uint32_t count, hr_gguf *out,
                                  hr_tensor_list *list, headrace_error *err)
{
    char shard_path[PATH_MAX];
    uint32_t n_tensors = 0, n_entries = 0, version = 0;
    hr_gguf_entry *entries = NULL;

    if (count > HR_SHARDS_MAX)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: split into %u files, more than the %d allowed", path, count,
                       HR_SHARDS_MAX);
    HR_PASS(hr_tensor_file_init(&out->file, count, err));
    for (uint32_t i = 0; i < count; i++) {
        (void)snprintf(shard_path, sizeof shard_path, "%.*s-%05u-of-%05u.gguf", (int)prefix_len, path, i + 1, count);
        HR_PASS(hr_tensor_file_set_path(&out->file, i, shard_path, err));
        if (!hr_file_exists(shard_path))
            return hr_fail(err, HEADRACE_E_MODEL, "%s: part %u of %u is missing: %s", path, i + 1, count, shard_path);
    }
    for (uint32_t i = 0; i < count; i++) {
        HR_PASS(map_shard(out, list, i, err));
        HR_PASS(check_split_keys(out, i, count, err));
        if (i > 0)
            continue;
        entries = out->entries;
        n_entries = out->n_entries;
        version = out->version;
        if (hr_gguf_find(out, "split.tensors.count"))
            HR_PASS(hr_gguf_u32(out, "split.tensors.count", &n_tensors, err));
    }
    out->entries = entries;
    out->n_entries = n_entries;
    out->version = version;
    if (n_tensors != 0 && n_tensors != list->n)
        return hr_fail(err, HEADRACE_E_MODEL, "%s: key 'split.tensors.count' is %u, but the %u files hold %u tensors",
                       out->file.paths[0], n_tensors, count, list->n);
    return HEADRACE_OK;
}

static headrace_status open_single(const char *path, hr_gguf *out, hr_tensor_list *list, headrace_error *err)
{
    uint32_t count;

    HR_PASS(hr_tensor_file_init(&out->file, 1, err));
    HR_PASS(hr_tensor_file_set_path(&out->file, 0, path, err));
    HR_PASS(map_shard(out, list, 0, err));
    if (!hr_gguf_find(out, "split.count"))
        return HEADRACE_OK;
    HR_PASS(hr_gguf_u32(out, "split.count", &count, err));
    return count <= 1 ? HEADRACE_OK
                      : hr_fail(err, HEADRACE_E_MODEL,
                                "%s: one of %u parts of a split file, but not named like one: expected "
                                "NAME-00001-of-%05u.gguf",
                                path, count, count);
}

headrace_status hr_gguf_open(const char *path, hr_gguf *out, headrace_error *err)
{
    headrace_status status;
    hr_tensor_list list = {0};
    size_t prefix_len;
    uint32_t number, count;

    *out = (hr_gguf){0};
    if (strlen(path) >= PATH_MAX)
        return hr_fail(err, HEADRACE_E_IO, "the path is too long: %s", path);
    if (hr_file_exists(path) && parse_suffix(path, &prefix_len, &number, &count) && count > 1)
        HR_TRY_GOTO(done, open_split(path, prefix_len, count, out, &list, err));
    else
        HR_TRY_GOTO(done, open_single(path, out, &list, err));
    HR_TRY_GOTO(done, hr_tensor_list_seal(&list, &out->file, err));
done:
    hr_tensor_list_deinit(&list);
    if (status != HEADRACE_OK)
        hr_gguf_close(out);
    return status;
}

void hr_gguf_close(hr_gguf *gguf)
{
    hr_tensor_file_close(&gguf->file);
    *gguf = (hr_gguf){0};
}

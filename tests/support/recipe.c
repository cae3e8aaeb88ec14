/* See recipe.h. */
#include "support/recipe.h"

#include "base/numeric.h"
#include "base/rng.h"
#include "base/buffer.h"

#include <jansson.h>

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static uint64_t fnv1a64(const char *text)
{
    uint64_t hash = 0xCBF29CE484222325u;

    for (; *text; text++)
        hash = (hash ^ (unsigned char)*text) * 0x100000001B3u;
    return hash;
}

typedef struct item {
    const char *name;
    const json_t *shape;
    double scale, offset;
    size_t n; /* values */
    bool is_bf16;
} item;

static size_t item_bytes(const item *tensor)
{
    return tensor->n * (tensor->is_bf16 ? 2 : 4);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const item *)a)->name, ((const item *)b)->name);
}

static item read_item(const json_t *entry)
{
    item out = {.name = json_string_value(json_object_get(entry, "name")),
                .shape = json_object_get(entry, "shape"),
                .scale = json_number_value(json_object_get(entry, "scale")),
                .offset = json_number_value(json_object_get(entry, "offset")),
                .n = 1};

    for (size_t i = 0; i < json_array_size(out.shape); i++)
        out.n *= (size_t)json_integer_value(json_array_get(out.shape, i));
    out.is_bf16 = strcmp(json_string_value(json_object_get(entry, "dtype")), "BF16") == 0;
    return out;
}

/* The canonical header: sorted names, no blanks, {"format":"pt"} in front, padded to a multiple of 8. */
static void make_header(hr_buffer *out, const item *items, size_t n)
{
    uint64_t length = 0, at = 0;

    hr_buffer_add(out, &length, sizeof length);
    hr_buffer_add_text(out, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < n; i++) {
        hr_buffer_printf(out, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", items[i].name,
                         items[i].is_bf16 ? "BF16" : "F32");
        for (size_t j = 0; j < json_array_size(items[i].shape); j++)
            hr_buffer_printf(out, "%s%lld", j ? "," : "",
                             (long long)json_integer_value(json_array_get(items[i].shape, j)));
        hr_buffer_printf(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                         (unsigned long long)(at + item_bytes(&items[i])));
        at += item_bytes(&items[i]);
    }
    hr_buffer_add_char(out, '}');
    while (out->len % 8 != 0)
        hr_buffer_add_char(out, ' ');
    length = out->len - 8;
    memcpy(out->at, &length, sizeof length);
}

static float value_at(uint64_t key, uint64_t i, const item *tensor)
{
    double unit = (2.0 * (double)(hr_rng_at(key, i) >> 40) + 1.0 - 16777216.0) / 16777216.0;

    return (float)(tensor->offset + tensor->scale * unit);
}

static bool write_values(FILE *file, const item *tensor, uint64_t seed)
{
    enum { PIECE = 8192 };
    static _Thread_local float wide[PIECE];
    static _Thread_local uint16_t narrow[PIECE];
    uint64_t key = hr_mix64(seed ^ fnv1a64(tensor->name));

    for (size_t done = 0; done < tensor->n; done += PIECE) {
        size_t n = tensor->n - done < PIECE ? tensor->n - done : PIECE;

        for (size_t i = 0; i < n; i++) {
            wide[i] = value_at(key, done + i, tensor);
            narrow[i] = hr_f32_to_bf16(wide[i]);
        }
        if (fwrite(tensor->is_bf16 ? (const void *)narrow : (const void *)wide, tensor->is_bf16 ? 2 : 4, n, file) != n)
            return false;
    }
    return true;
}

static bool write_checkpoint(const json_t *recipe, const char *path)
{
    const json_t *tensors = json_object_get(recipe, "tensors");
    uint64_t seed = (uint64_t)json_integer_value(json_object_get(recipe, "seed"));
    size_t n = json_array_size(tensors);
    item *items = calloc(n, sizeof *items);
    hr_buffer header = {0};
    FILE *file = fopen(path, "wb");
    bool ok = items && file;

    for (size_t i = 0; i < n && ok; i++)
        items[i] = read_item(json_array_get(tensors, i));
    if (ok) {
        qsort(items, n, sizeof *items, by_name);
        make_header(&header, items, n);
        ok = !header.failed && fwrite(header.at, 1, header.len, file) == header.len;
    }
    for (size_t i = 0; i < n && ok; i++)
        ok = write_values(file, &items[i], seed);
    if (file)
        ok = fclose(file) == 0 && ok;
    hr_buffer_deinit(&header);
    free(items);
    return ok;
}

bool hr_test_materialize(const char *case_folder, const char *out_folder)
{
    char path[PATH_MAX];
    size_t len;
    char *config;
    json_t *recipe;
    bool ok;

    (void)snprintf(path, sizeof path, "%s/recipe.json", case_folder);
    recipe = json_load_file(path, 0, NULL);
    if (!recipe) {
        (void)fprintf(stderr, "%s: cannot be read\n", path);
        return false;
    }
    (void)mkdir(out_folder, 0777);
    (void)snprintf(path, sizeof path, "%s/config.json", case_folder);
    config = hr_test_read_file(path, &len);
    hr_test_write_file(out_folder, "config.json", config, len);
    free(config);
    (void)snprintf(path, sizeof path, "%s/model.safetensors", out_folder);
    ok = write_checkpoint(recipe, path);
    if (!ok)
        (void)fprintf(stderr, "%s: cannot be written\n", path);
    json_decref(recipe);
    return ok;
}

/* ---------------------------------------------------------------- files */

static _Noreturn void give_up(const char *what, const char *path)
{
    (void)fprintf(stderr, "test support: %s %s failed\n", what, path);
    abort();
}

void hr_test_make_folder(char *path, size_t capacity)
{
    const char *base = getenv("TMPDIR");

    (void)snprintf(path, capacity, "%s/headrace-test-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(path))
        give_up("making", path);
}

void hr_test_remove_folder(const char *path)
{
    DIR *dir = opendir(path);
    struct dirent *entry;
    char name[PATH_MAX];

    while (dir && (entry = readdir(dir)) != NULL) {
        (void)snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        (void)unlink(name);
    }
    if (dir)
        (void)closedir(dir);
    (void)rmdir(path);
}

void hr_test_write_file(const char *folder, const char *name, const void *bytes, size_t len)
{
    char path[PATH_MAX];
    FILE *file;

    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, len, file) != len || fclose(file) != 0)
        give_up("writing", path);
}

char *hr_test_read_file(const char *path, size_t *len)
{
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    long size;

    if (!file || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) < 0 || fseek(file, 0, SEEK_SET) != 0)
        give_up("reading", path);
    else
        text = malloc((size_t)size + 1);
    if (!text || fread(text, 1, (size_t)size, file) != (size_t)size)
        give_up("reading", path);
    text[size] = '\0';
    *len = (size_t)size;
    (void)fclose(file);
    return text;
}

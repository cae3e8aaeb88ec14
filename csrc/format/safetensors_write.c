/* Writing float32 tensors. The file is made beside its place and renamed: a reader sees the old one, or all of the new
 * one. */
#include "format/safetensors.h"

#include "base/buffer.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

static headrace_status item_bytes(const hr_safetensors_item *item, uint64_t *out, headrace_error *err)
{
    *out = sizeof(float);
    if (item->rank > HR_RANK_MAX)
        return hr_fail(err, HEADRACE_E_ARGUMENT, "tensor '%s': %u dimensions, at most %d are written", item->name,
                       item->rank, HR_RANK_MAX);
    for (uint32_t i = 0; i < item->rank; i++)
        if (__builtin_mul_overflow(*out, item->shape[i], out))
            return hr_fail(err, HEADRACE_E_ARGUMENT, "tensor '%s': its shape has more than 2^64 bytes", item->name);
    return HEADRACE_OK;
}

/* The length word and the header, padded with blanks so that the data begin at a multiple of 8. */
static headrace_status make_header(hr_buffer *buffer, const hr_safetensors_item *items, size_t n_items,
                                   headrace_error *err)
{
    uint64_t at = 0, n_bytes, length = 0;

    hr_buffer_add(buffer, &length, sizeof length);
    hr_buffer_add_char(buffer, '{');
    for (size_t i = 0; i < n_items; i++) {
        HR_PASS(item_bytes(&items[i], &n_bytes, err));
        if (i > 0)
            hr_buffer_add_char(buffer, ',');
        hr_json_string(buffer, items[i].name, strlen(items[i].name));
        hr_buffer_add_text(buffer, ":{\"dtype\":\"F32\",\"shape\":[");
        for (uint32_t j = 0; j < items[i].rank; j++)
            hr_buffer_printf(buffer, "%s%llu", j ? "," : "", (unsigned long long)items[i].shape[j]);
        hr_buffer_printf(buffer, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                         (unsigned long long)(at + n_bytes));
        at += n_bytes;
    }
    hr_buffer_add_char(buffer, '}');
    while (buffer->len % 8 != 0 && !buffer->failed)
        hr_buffer_add_char(buffer, ' ');
    if (buffer->failed)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the header of %zu tensors", n_items);
    length = buffer->len - sizeof length;
    memcpy(buffer->at, &length, sizeof length);
    return HEADRACE_OK;
}

static headrace_status write_items(FILE *file, const char *path, const hr_buffer *header,
                                   const hr_safetensors_item *items, size_t n_items, headrace_error *err)
{
    bool ok = fwrite(header->at, 1, header->len, file) == header->len;

    for (size_t i = 0; i < n_items && ok; i++) {
        uint64_t n_bytes;

        HR_PASS(item_bytes(&items[i], &n_bytes, err));
        ok = n_bytes == 0 || fwrite(items[i].data, 1, n_bytes, file) == n_bytes;
    }
    ok = ok && fflush(file) == 0;
    return ok ? HEADRACE_OK : hr_fail(err, HEADRACE_E_IO, "%s: writing: %s", path, strerror(errno));
}

headrace_status hr_safetensors_write(const char *path, const hr_safetensors_item *items, size_t n_items,
                                     headrace_error *err)
{
    char part[PATH_MAX];
    hr_buffer header = {0};
    FILE *file = NULL;
    headrace_status status;

    if ((size_t)snprintf(part, sizeof part, "%s.%ld.part", path, (long)getpid()) >= sizeof part)
        return hr_fail(err, HEADRACE_E_IO, "the path is too long: %s", path);
    HR_TRY_GOTO(done, make_header(&header, items, n_items, err));
    file = fopen(part, "wb");
    if (!file) {
        status = hr_fail(err, HEADRACE_E_IO, "%s: %s", part, strerror(errno));
        goto done;
    }
    status = write_items(file, path, &header, items, n_items, err);
    if (fclose(file) != 0 && status == HEADRACE_OK)
        status = hr_fail(err, HEADRACE_E_IO, "%s: writing: %s", path, strerror(errno));
    if (status == HEADRACE_OK && rename(part, path) != 0)
        status = hr_fail(err, HEADRACE_E_IO, "%s: renaming %s: %s", path, part, strerror(errno));
    if (status != HEADRACE_OK)
        (void)unlink(part);
done:
    hr_buffer_deinit(&header);
    return status;
}

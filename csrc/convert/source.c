/* See source.h. */
#include "convert/source.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

headrace_status hr_source_open(const hr_tensor_file *file, hr_source *out, headrace_error *err)
{
    *out = (hr_source){.file = file, .fds = malloc((file->n_shards + 1) * sizeof *out->fds)};
    if (!out->fds)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for %u files", file->n_shards);
    for (uint32_t i = 0; i < file->n_shards; i++)
        out->fds[i] = -1;
    for (uint32_t i = 0; i < file->n_shards; i++) {
        struct stat now;

        out->fds[i] = open(file->paths[i], O_RDONLY | O_CLOEXEC);
        if (out->fds[i] < 0 || fstat(out->fds[i], &now) != 0) {
            int reason = errno;

            hr_source_close(out);
            return hr_fail(err, HEADRACE_E_IO, "%s: %s", file->paths[i], strerror(reason));
        }
        if ((uint64_t)now.st_size != file->mappings[i].len) {
            hr_source_close(out);
            return hr_fail(err, HEADRACE_E_IO, "%s: has changed since it was opened", file->paths[i]);
        }
    }
    return HEADRACE_OK;
}

void hr_source_close(hr_source *source)
{
    for (uint32_t i = 0; source->fds && i < source->file->n_shards; i++)
        if (source->fds[i] >= 0)
            (void)close(source->fds[i]);
    free(source->fds);
    *source = (hr_source){0};
}

/* The shard in whose mapping n bytes at `at` lie; n_shards for other memory. */
static uint32_t shard_of(const hr_tensor_file *file, const void *at, size_t n)
{
    uint32_t i = 0;

    for (; i < file->n_shards; i++) {
        uintptr_t begin = (uintptr_t)file->mappings[i].at;

        if ((uintptr_t)at >= begin && (uintptr_t)at + n <= begin + file->mappings[i].len)
            break;
    }
    return i;
}

headrace_status hr_source_read(const hr_source *source, const void *at, size_t n, void *out, headrace_error *err)
{
    uint32_t shard = shard_of(source->file, at, n);
    char *to = out;
    uint64_t from;

    if (shard == source->file->n_shards) {
        memcpy(out, at, n);
        return HEADRACE_OK;
    }
    from = (uintptr_t)at - (uintptr_t)source->file->mappings[shard].at;
    while (n > 0) {
        ssize_t got = pread(source->fds[shard], to, n, (off_t)from);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return hr_fail(err, HEADRACE_E_IO, "%s: reading %zu bytes at byte %llu: %s", source->file->paths[shard], n,
                           (unsigned long long)from, got < 0 ? strerror(errno) : "the file ends; it was longer before");
        to += got;
        from += (uint64_t)got;
        n -= (size_t)got;
    }
    return HEADRACE_OK;
}

/* See file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static headrace_status open_regular(const char *path, int *fd, size_t *len, headrace_error *err)
{
    struct stat st;

    /* O_NONBLOCK: a named pipe must be refused below, not waited for. */
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return hr_fail(err, HEADRACE_E_IO, "%s: %s", path, strerror(errno));
    if (fstat(*fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        (void)close(*fd);
        return hr_fail(err, HEADRACE_E_IO, "%s: not a regular file", path);
    }
    *len = (size_t)st.st_size;
    return HEADRACE_OK;
}

headrace_status hr_file_map(const char *path, hr_mapped *out, headrace_error *err)
{
    int fd;
    size_t len;
    void *at = NULL;

    *out = (hr_mapped){0};
    HR_PASS(open_regular(path, &fd, &len, err));
    if (len > 0) {
        at = mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, 0);
        if (at == MAP_FAILED) {
            int reason = errno;

            (void)close(fd);
            return hr_fail(err, HEADRACE_E_IO, "%s: mapping %zu bytes: %s", path, len, strerror(reason));
        }
    }
    (void)close(fd);
    *out = (hr_mapped){.at = at, .len = len};
    return HEADRACE_OK;
}

void hr_file_unmap(hr_mapped *mapped)
{
    if (mapped->at)
        (void)munmap((void *)(uintptr_t)mapped->at, mapped->len);
    *mapped = (hr_mapped){0};
}

headrace_status hr_file_read(const char *path, size_t max_bytes, char **text, size_t *len, headrace_error *err)
{
    int fd;
    size_t size, done = 0;
    char *buffer;

    *text = NULL;
    *len = 0;
    HR_PASS(open_regular(path, &fd, &size, err));
    if (size > max_bytes) {
        (void)close(fd);
        return hr_fail(err, HEADRACE_E_MODEL, "%s: %zu bytes, more than the %zu allowed", path, size, max_bytes);
    }
    buffer = malloc(size + 1);
    if (!buffer) {
        (void)close(fd);
        return hr_fail(err, HEADRACE_E_MEMORY, "%s: no memory for %zu bytes", path, size);
    }
    while (done < size) {
        ssize_t n = read(fd, buffer + done, size - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int reason = n < 0 ? errno : EIO;

            free(buffer);
            (void)close(fd);
            return hr_fail(err, HEADRACE_E_IO, "%s: reading at byte %zu: %s", path, done, strerror(reason));
        }
        done += (size_t)n;
    }
    (void)close(fd);
    buffer[size] = '\0';
    *text = buffer;
    *len = size;
    return HEADRACE_OK;
}

bool hr_file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

bool hr_file_is_directory(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

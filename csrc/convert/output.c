/* See output.h. */
#include "convert/output.h"

#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static headrace_status system_failure(const char *path, const char *doing, int reason, headrace_error *err)
{
    return hr_fail(err, HEADRACE_E_IO, "%s: %s: %s", path, doing, strerror(reason));
}

/* ---------------------------------------------------------------- may it be written */

static headrace_status refuse_source(const char *path, const struct stat *there, const hr_tensor_file *source,
                                     headrace_error *err)
{
    struct stat shard;

    for (uint32_t i = 0; i < source->n_shards; i++)
        if (stat(source->paths[i], &shard) == 0 && shard.st_dev == there->st_dev && shard.st_ino == there->st_ino)
            return hr_fail_param(err, HEADRACE_E_ARGUMENT, "out",
                                 "%s: is the model's own file %s, which is read and never replaced", path,
                                 source->paths[i]);
    return HEADRACE_OK;
}

headrace_status hr_output_check(const char *path, const hr_tensor_file *source, bool may_replace, headrace_error *err)
{
    struct stat there;

    if (stat(path, &there) == 0) {
        HR_PASS(refuse_source(path, &there, source, err));
        if (!S_ISREG(there.st_mode))
            return hr_fail(err, HEADRACE_E_IO, "%s: is there and is not an ordinary file", path);
    }
    if (lstat(path, &there) != 0)
        return errno == ENOENT ? HEADRACE_OK : system_failure(path, "cannot be written", errno, err);
    return may_replace
               ? HEADRACE_OK
               : hr_fail(err, HEADRACE_E_IO, "%s: is there already; it is replaced only on demand (--force)", path);
}

/* ---------------------------------------------------------------- the partial file */

/* Opens and locks. A run that just finished may have renamed the file between the two: then the name is another file's
 * or nobody's, and it is tried again. */
static headrace_status open_locked(hr_output *out, headrace_error *err)
{
    struct stat mine, named;

    for (;;) {
        out->fd = open(out->partial, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
        if (out->fd < 0)
            return system_failure(out->partial, "cannot be made", errno, err);
        if (fstat(out->fd, &mine) != 0 || !S_ISREG(mine.st_mode)) {
            (void)close(out->fd);
            out->fd = -1;
            return hr_fail(err, HEADRACE_E_IO, "%s: is there and is not an ordinary file", out->partial);
        }
        if (flock(out->fd, LOCK_EX | LOCK_NB) != 0) {
            int reason = errno;

            (void)close(out->fd);
            out->fd = -1;
            return reason == EWOULDBLOCK
                       ? hr_fail(err, HEADRACE_E_IO, "%s: another conversion is writing it", out->partial)
                       : system_failure(out->partial, "locking", reason, err);
        }
        if (lstat(out->partial, &named) == 0 && named.st_dev == mine.st_dev && named.st_ino == mine.st_ino)
            return HEADRACE_OK;
        (void)close(out->fd);
    }
}

/* The limit of this process first: going over it is a signal, not an error. */
static headrace_status check_space(const hr_output *out, uint64_t n_bytes, headrace_error *err)
{
    struct rlimit limit;
    struct statvfs disk;

    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && n_bytes > limit.rlim_cur)
        return hr_fail(err, HEADRACE_E_IO, "%s: needs %llu bytes; this process may write files of %llu (ulimit -f)",
                       out->path, (unsigned long long)n_bytes, (unsigned long long)limit.rlim_cur);
    if (fstatvfs(out->fd, &disk) == 0 && disk.f_blocks > 0 && (uint64_t)disk.f_bavail * disk.f_frsize < n_bytes)
        return hr_fail(err, HEADRACE_E_IO, "%s: needs %llu bytes; the disk has %llu free", out->path,
                       (unsigned long long)n_bytes, (unsigned long long)disk.f_bavail * disk.f_frsize);
    return HEADRACE_OK;
}

/* In pieces: a file system in memory (tmpfs) gives up and takes back what one call got when any signal comes, so a call
 * has to be short enough to end between two of them. */
static int allocate(int fd, uint64_t n_bytes)
{
    const uint64_t most = (uint64_t)16 << 20;
    int reason = 0;

    for (uint64_t at = 0; at < n_bytes && reason == 0; at += most)
        do
            reason = posix_fallocate(fd, (off_t)at, (off_t)(n_bytes - at < most ? n_bytes - at : most));
        while (reason == EINTR);
    return reason;
}

static headrace_status reserve(const hr_output *out, const hr_tensor_file *source, uint64_t n_bytes,
                               headrace_error *err)
{
    struct stat mine;
    int reason;

    if (fstat(out->fd, &mine) != 0)
        return system_failure(out->partial, "cannot be read", errno, err);
    HR_PASS(refuse_source(out->partial, &mine, source, err));
    if (ftruncate(out->fd, 0) != 0) /* what a killed run left */
        return system_failure(out->partial, "emptying", errno, err);
    HR_PASS(check_space(out, n_bytes, err));
    reason = allocate(out->fd, n_bytes);
    if (reason != 0)
        return hr_fail(err, HEADRACE_E_IO, "%s: reserving %llu bytes: %s", out->partial, (unsigned long long)n_bytes,
                       strerror(reason));
    return HEADRACE_OK;
}

headrace_status hr_output_open(const char *path, const hr_tensor_file *source, uint64_t n_bytes, bool may_replace,
                               hr_output *out, headrace_error *err)
{
    headrace_status status;

    *out = (hr_output){.fd = -1, .may_replace = may_replace};
    HR_PASS(hr_output_check(path, source, may_replace, err));
    out->path = strdup(path);
    if (!out->path || asprintf(&out->partial, "%s.partial", path) < 0) {
        free(out->path);
        *out = (hr_output){.fd = -1};
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a path");
    }
    status = open_locked(out, err);
    if (status == HEADRACE_OK) {
        status = reserve(out, source, n_bytes, err);
        if (status == HEADRACE_E_ARGUMENT) { /* a source's own file: it stays */
            (void)close(out->fd);
            out->fd = -1;
        }
    }
    if (status != HEADRACE_OK)
        hr_output_close(out);
    return status;
}

headrace_status hr_output_write(const hr_output *output, const void *bytes, size_t len, uint64_t at,
                                headrace_error *err)
{
    const char *from = bytes;

    while (len > 0) {
        ssize_t n = pwrite(output->fd, from, len, (off_t)at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return hr_fail(err, HEADRACE_E_IO, "%s: writing %zu bytes at byte %llu: %s", output->partial, len,
                           (unsigned long long)at, n < 0 ? strerror(errno) : "the system takes no more");
        from += n;
        len -= (size_t)n;
        at += (uint64_t)n;
    }
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- the end */

/* Without may_replace a file that came into being meanwhile stays. A file system that cannot promise that is asked
 * first. */
static headrace_status take_name(const hr_output *output, headrace_error *err)
{
    struct stat there;
    int reason = 0;

    if (output->may_replace) {
        if (rename(output->partial, output->path) != 0)
            reason = errno;
    } else if (renameat2(AT_FDCWD, output->partial, AT_FDCWD, output->path, RENAME_NOREPLACE) != 0) {
        reason = errno;
        if (reason == EINVAL || reason == ENOSYS)
            reason = lstat(output->path, &there) == 0 ? EEXIST : rename(output->partial, output->path) == 0 ? 0 : errno;
    }
    return reason == 0 ? HEADRACE_OK : system_failure(output->path, "renaming the finished file", reason, err);
}

/* The name itself is on disk only when the folder is. That it may not be is no failure: the file is there and whole,
 * and a failure would say that nothing is. A file system that cannot sync folders (EINVAL) has no such step.
 */
static void sync_folder(const hr_output *output)
{
    const char *slash = strrchr(output->path, '/');
    char *folder = slash ? strndup(output->path, slash == output->path ? 1 : (size_t)(slash - output->path)) : NULL;
    int fd = open(folder ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int reason = fd < 0 || fsync(fd) != 0 ? errno : 0;

    if (fd >= 0)
        (void)close(fd);
    free(folder);
    if (reason != 0 && reason != EINVAL && reason != EACCES)
        hr_log(HEADRACE_LOG_WARNING, "%s: is written, but its folder not to disk: %s", output->path, strerror(reason));
}

headrace_status hr_output_finish(hr_output *output, const void *header, size_t len, headrace_error *err)
{
    if (fdatasync(output->fd) != 0)
        return system_failure(output->partial, "writing to disk", errno, err);
    HR_PASS(hr_output_write(output, header, len, 0, err));
    if (fsync(output->fd) != 0)
        return system_failure(output->partial, "writing to disk", errno, err);
    HR_PASS(take_name(output, err));
    (void)close(output->fd); /* synced: nothing is left that could fail */
    output->fd = -1;
    sync_folder(output);
    return HEADRACE_OK;
}

void hr_output_close(hr_output *output)
{
    if (output->fd >= 0) {
        (void)unlink(output->partial); /* while it is locked: nobody else's */
        (void)close(output->fd);
    }
    free(output->path);
    free(output->partial);
    *output = (hr_output){.fd = -1};
}

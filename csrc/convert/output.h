/* The file that a conversion writes: complete under its name, or not there at all.
 *
 * Everything goes to OUT.partial in the same folder, which is locked (two conversions to one name do not mix), has its
 * final size from the start (a full disk is found out before the work, not after it) and begins with zeros until the
 * header is written, after the data is on disk: what a killed run leaves behind is no model to any reader, and the next
 * run takes its place. The rename is the last step. Single owner, except that hr_output_write may be called from many
 * threads.
 */
#ifndef HR_CONVERT_OUTPUT_H
#define HR_CONVERT_OUTPUT_H

#include "format/tensor_file.h"

typedef struct hr_output {
    char *path, *partial; /* heap */
    int fd;               /* -1: closed */
    bool may_replace;
} hr_output;

/* Whether `path` may be written at all: asked before the long work, and again at the end. Errors: E_IO (it exists and
 * may_replace is not set, it is no regular file, the folder is missing), E_ARGUMENT (it is one of the files of
 * `source`, by whatever name or link). */
headrace_status hr_output_check(const char *path, const hr_tensor_file *source, bool may_replace, headrace_error *err);
/* Makes and locks the partial file with n_bytes zeros. Errors: as hr_output_check; E_IO when another conversion holds
 * it, or with needed and free bytes when they do not fit. */
headrace_status hr_output_open(const char *path, const hr_tensor_file *source, uint64_t n_bytes, bool may_replace,
                               hr_output *out, headrace_error *err);
/* Any thread. Errors: E_IO. */
headrace_status hr_output_write(const hr_output *output, const void *bytes, size_t len, uint64_t at,
                                headrace_error *err);
/* Data to disk, then the header, then the name. The file is closed. */
headrace_status hr_output_finish(hr_output *output, const void *header, size_t len, headrace_error *err);
/* Removes what was not finished, and frees; accepts a zeroed one with fd -1. */
void hr_output_close(hr_output *output);

#endif

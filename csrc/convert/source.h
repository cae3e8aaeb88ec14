/* Reading a model's bytes without its mapping.
 *
 * A mapping would be shorter to write, but its pages count as this process's memory, the kernel brings many around each
 * one that is touched (2 MiB at a time), and a file that shrinks meanwhile ends the process. Reading into a buffer
 * keeps memory to that buffer and makes such a file an error.
 */
#ifndef HR_CONVERT_SOURCE_H
#define HR_CONVERT_SOURCE_H

#include "format/tensor_file.h"

typedef struct hr_source {
    const hr_tensor_file *file;
    int *fds; /* [n_shards]; -1: not open */
} hr_source;

/* Opens the files of an open table again. Errors: E_IO (also when one has another length by now), E_MEMORY. */
headrace_status hr_source_open(const hr_tensor_file *file, hr_source *out, headrace_error *err);
void hr_source_close(hr_source *source); /* accepts a zeroed one */
/* n bytes that lie at `at` in one of the table's mappings, read from the file; any other memory is copied. Any thread.
 * Errors: E_IO. */
headrace_status hr_source_read(const hr_source *source, const void *at, size_t n, void *out, headrace_error *err);

#endif

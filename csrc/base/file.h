/* Files as read-only memory. Weights are used where the kernel maps them: nothing is read twice or held twice. */
#ifndef HR_BASE_FILE_H
#define HR_BASE_FILE_H

#include "base/status.h"

typedef struct hr_mapped {
    const unsigned char *at; /* NULL for an empty file */
    size_t len;
} hr_mapped;

/* Maps a regular file (private, read-only). Errors: E_IO with the path and the system's reason. */
headrace_status hr_file_map(const char *path, hr_mapped *out, headrace_error *err);
void hr_file_unmap(hr_mapped *mapped); /* accepts an empty one */
/* Reads a small file into heap memory, terminated; refuses more than max_bytes. *text is freed with free(). */
headrace_status hr_file_read(const char *path, size_t max_bytes, char **text, size_t *len, headrace_error *err);
bool hr_file_exists(const char *path);
bool hr_file_is_directory(const char *path);

#endif

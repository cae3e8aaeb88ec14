/* A weight file, whatever its container: a table of named tensors over one mapping.
 *
 * safetensors.h and gguf.h fill it; the model room reads it. Everything in the table was checked when the file was
 * opened: a tensor's bytes lie inside the mapping and their number equals the shape's. shape is row-major, slowest
 * dimension first, in both containers (GGUF's order is reversed on reading), and data is where the kernel mapped it: no
 * copy.
 */
#ifndef HR_FORMAT_TENSOR_FILE_H
#define HR_FORMAT_TENSOR_FILE_H

#include "base/arena.h"
#include "base/file.h"
#include "base/status.h"
#include "format/dtype.h"

enum { HR_RANK_MAX = 4, HR_TENSOR_NAME_MAX = 256, HR_SHARDS_MAX = 1000, HR_TENSORS_MAX = 65536 };

typedef struct hr_tensor {
    const char *name; /* terminated; borrowed from the file's arena */
    hr_dtype dtype;
    uint32_t rank; /* 1 .. HR_RANK_MAX (0-dimensional tensors are stored as rank 1, one element) */
    uint64_t shape[HR_RANK_MAX];
    const void *data; /* borrowed from the mapping */
    uint64_t n_bytes;
    uint64_t file_offset; /* of data in its file, for messages */
    uint32_t shard;       /* index into hr_tensor_file.paths */
} hr_tensor;

typedef struct hr_tensor_file {
    hr_tensor *tensors; /* sorted by name; arena */
    uint32_t n_tensors;
    uint32_t n_shards;
    hr_mapped *mappings;   /* [n_shards]; arena, unmapped by close */
    const char **paths;    /* [n_shards]; arena */
    uint64_t weight_bytes; /* sum over tensors */
    hr_arena arena;
} hr_tensor_file;

/* Binary search; NULL when absent. */
const hr_tensor *hr_tensor_file_find(const hr_tensor_file *file, const char *name);
/* The tensor whose bytes `data` points into; NULL when none has it. */
const hr_tensor *hr_tensor_file_at(const hr_tensor_file *file, const void *data);
/* Unmaps and frees; accepts a zeroed one. */
void hr_tensor_file_close(hr_tensor_file *file);

#endif

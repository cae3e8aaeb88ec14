/* Reads what the golden folders hold beside the checkpoint: expected.safetensors (fp32 and int32 tensors) and
 * expected.json. It is a reader of its own, so that a mistake in ours cannot hide itself. Any failure ends the test
 * program. */
#ifndef HR_TESTS_BACKEND_GOLDEN_FILE_H
#define HR_TESTS_BACKEND_GOLDEN_FILE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct golden_file {
    json_t *header;
    char *bytes; /* the whole file */
    size_t data; /* offset of the first tensor */
} golden_file;

typedef struct golden_tensor {
    const float *f32; /* one of the two, or both NULL when the tensor is absent */
    const int32_t *i32;
    uint32_t rank, shape[4];
    size_t n;
} golden_tensor;

void golden_open(golden_file *file, const char *path);
void golden_close(golden_file *file);
golden_tensor golden_get(const golden_file *file, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A number of a JSON file by its path, "tolerance/f32_compute_max_abs". */
double golden_number(const json_t *json, const char *path);

#endif

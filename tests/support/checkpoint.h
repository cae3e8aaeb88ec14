/* Small checkpoints made in memory, so that a test can break exactly one thing.
 *
 * The small model: hidden size 32, layer 0 a convolution of 3 taps, layer 1 attention with 4 query and 2 key-value
 * heads of 8, feed-forward width 64, vocabulary 16; as an expert model layer 1 has 4 experts of width 32, 2 a token.
 * All weights are zero.
 */
#ifndef HR_TESTS_SUPPORT_CHECKPOINT_H
#define HR_TESTS_SUPPORT_CHECKPOINT_H

#include "base/buffer.h"

enum { HR_TEST_TENSORS_MAX = 64 };

typedef struct hr_test_tensor {
    char name[80];
    const char *dtype; /* "F32", "F16" or "BF16" */
    uint32_t rank;
    uint64_t shape[4]; /* row-major */
    const void *data;  /* NULL: zeros */
} hr_test_tensor;

/* The tensors of the small model under the names of either container; returns their number. */
size_t hr_test_small_tensors(bool is_gguf, bool is_moe, hr_test_tensor out[HR_TEST_TENSORS_MAX]);
/* Its config.json. */
const char *hr_test_small_config(bool is_moe);

/* A safetensors file. */
void hr_test_safetensors(hr_buffer *out, const hr_test_tensor *tensors, size_t n);

/* A GGUF file, put together key by key. Zero it first; finish frees it. */
typedef struct hr_test_gguf {
    hr_buffer keys, tensors, data;
    uint64_t n_keys, n_tensors;
    uint32_t alignment; /* of the data; 0 means 32. Not written as a key */
} hr_test_gguf;

void hr_test_gguf_raw(hr_test_gguf *gguf, const char *key, uint32_t type, const void *value, size_t len);
void hr_test_gguf_u32(hr_test_gguf *gguf, const char *key, uint32_t value);
void hr_test_gguf_f32(hr_test_gguf *gguf, const char *key, float value);
void hr_test_gguf_str(hr_test_gguf *gguf, const char *key, const char *value);
void hr_test_gguf_u32s(hr_test_gguf *gguf, const char *key, const uint32_t *values, uint64_t n);
void hr_test_gguf_tensor(hr_test_gguf *gguf, const hr_test_tensor *tensor);
/* The metadata of the small model. Keys in `without` (a NULL-terminated list, or NULL) are left out. */
void hr_test_gguf_small_keys(hr_test_gguf *gguf, bool is_moe, const char *const *without);
void hr_test_gguf_finish(hr_test_gguf *gguf, hr_buffer *out);

#endif

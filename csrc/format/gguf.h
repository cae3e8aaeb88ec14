/* GGUF version 3 (and 2, which has the same layout): metadata, tensor table, data (docs/formats.md). */
#ifndef HR_FORMAT_GGUF_H
#define HR_FORMAT_GGUF_H

#include "format/tensor_file.h"

typedef enum hr_gguf_type {
    HR_GGUF_U8 = 0,
    HR_GGUF_I8 = 1,
    HR_GGUF_U16 = 2,
    HR_GGUF_I16 = 3,
    HR_GGUF_U32 = 4,
    HR_GGUF_I32 = 5,
    HR_GGUF_F32 = 6,
    HR_GGUF_BOOL = 7,
    HR_GGUF_STRING = 8,
    HR_GGUF_ARRAY = 9,
    HR_GGUF_U64 = 10,
    HR_GGUF_I64 = 11,
    HR_GGUF_F64 = 12,
} hr_gguf_type;

typedef struct hr_gguf_string {
    const char *at; /* not terminated; borrowed from the mapping; may hold any bytes */
    uint64_t len;
} hr_gguf_string;

typedef struct hr_gguf_value {
    hr_gguf_type type;
    hr_gguf_type element_type; /* of an array */
    uint64_t n_elements;       /* of an array */
    const unsigned char *at;   /* first byte of the value (of the elements, for an array); unaligned little endian */
    uint64_t offset;           /* of `at` in the file, for messages */
} hr_gguf_value;

typedef struct hr_gguf_entry {
    hr_gguf_string key;
    hr_gguf_value value;
} hr_gguf_entry;

typedef struct hr_gguf {
    hr_tensor_file file;    /* tensors of all shards; its arena owns everything here */
    hr_gguf_entry *entries; /* of the first shard, in file order */
    uint32_t n_entries;
    uint32_t version;
} hr_gguf;

/* Opens a file, and its siblings when it is split (any shard's path is accepted). Errors as hr_safetensors_open_folder.
 */
headrace_status hr_gguf_open(const char *path, hr_gguf *out, headrace_error *err);
/* Parses one file already in memory, for the fuzzer. */
headrace_status hr_gguf_parse(const unsigned char *bytes, size_t len, const char *path, hr_gguf *out,
                              headrace_error *err);
void hr_gguf_close(hr_gguf *gguf);

/* NULL when the key is absent. */
const hr_gguf_value *hr_gguf_find(const hr_gguf *gguf, const char *key);
/* Reads a scalar; E_MODEL with the key and byte offset when absent or of another kind. Any integer type whose value
 * fits. */
headrace_status hr_gguf_u32(const hr_gguf *gguf, const char *key, uint32_t *out, headrace_error *err);
headrace_status hr_gguf_f32(const hr_gguf *gguf, const char *key, float *out, headrace_error *err);
headrace_status hr_gguf_bool(const hr_gguf *gguf, const char *key, bool *out, headrace_error *err);
headrace_status hr_gguf_str(const hr_gguf *gguf, const char *key, hr_gguf_string *out, headrace_error *err);
/* Element i of an array of integers / floats; i < n_elements and the element type are the caller's to check first. */
int64_t hr_gguf_int_at(const hr_gguf_value *array, uint64_t i);
/* Walks an array of strings: *cursor starts at array->at. Elements were bounds-checked at open. */
hr_gguf_string hr_gguf_next_string(const unsigned char **cursor);

#endif

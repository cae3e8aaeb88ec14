/* Hugging Face safetensors: an 8-byte length, a JSON header, raw little-endian data (docs/formats.md). */
#ifndef HR_FORMAT_SAFETENSORS_H
#define HR_FORMAT_SAFETENSORS_H

#include "format/tensor_file.h"

/* Opens folder/model.safetensors.index.json and its shards if there is an index, else folder/model.safetensors, else
 * the only *.safetensors file of the folder. Errors: E_IO, E_MODEL (file, tensor, byte offset, what would be right),
 * E_MEMORY. */
headrace_status hr_safetensors_open_folder(const char *folder, hr_tensor_file *out, headrace_error *err);
/* Parses a header already in memory, for the fuzzer: bytes is the whole file. Tensors point into bytes. */
headrace_status hr_safetensors_parse(const unsigned char *bytes, size_t len, const char *path, hr_tensor_file *out,
                                     headrace_error *err);

/* Writes float32 tensors to a new safetensors file (written beside and renamed, so that a reader never sees half of
 * it). */
typedef struct hr_safetensors_item {
    const char *name;
    const float *data;
    uint32_t rank;
    uint64_t shape[HR_RANK_MAX];
} hr_safetensors_item;
headrace_status hr_safetensors_write(const char *path, const hr_safetensors_item *items, size_t n_items,
                                     headrace_error *err);

#endif

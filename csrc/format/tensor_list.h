/* Filling a tensor table: what both containers share between reading a header and handing out hr_tensor_file. */
#ifndef HR_FORMAT_TENSOR_LIST_H
#define HR_FORMAT_TENSOR_LIST_H

#include "format/tensor_file.h"

/* Grows while headers are read; heap, freed by hr_tensor_list_deinit. */
typedef struct hr_tensor_list {
    hr_tensor *at;
    uint32_t n, capacity;
} hr_tensor_list;

/* Room for the mappings and paths of n_shards files. */
headrace_status hr_tensor_file_init(hr_tensor_file *file, uint32_t n_shards, headrace_error *err);
/* Copies path for messages. */
headrace_status hr_tensor_file_set_path(hr_tensor_file *file, uint32_t shard, const char *path, headrace_error *err);
/* Appends a zeroed tensor with a copy of its name. */
headrace_status hr_tensor_list_add(hr_tensor_list *list, hr_tensor_file *file, uint32_t shard, const char *name,
                                   size_t name_len, hr_tensor **out, headrace_error *err);
/* Fills in n_bytes from dtype and shape; E_MODEL if it overflows or a row is no whole number of blocks. */
headrace_status hr_tensor_size(hr_tensor *tensor, const char *path, headrace_error *err);
/* Orders tensors [first, n) by place in their file and refuses overlaps; begin is the file offset of the data, end its
 * end. is_packed: also refuses gaps between them and bytes behind the last. */
headrace_status hr_tensor_list_check_layout(hr_tensor_list *list, uint32_t first, uint64_t begin, uint64_t end,
                                            bool is_packed, const char *path, headrace_error *err);
/* Moves the list into the file, sorted by name; refuses a name that occurs twice. */
headrace_status hr_tensor_list_seal(hr_tensor_list *list, hr_tensor_file *file, headrace_error *err);
void hr_tensor_list_deinit(hr_tensor_list *list);

#endif

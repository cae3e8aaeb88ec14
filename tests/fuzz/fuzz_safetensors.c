/* safetensors headers: any bytes are read or refused, within their bounds. */
#include "format/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    hr_tensor_file file;
    headrace_error err;
    float ends[2];

    if (hr_safetensors_parse(bytes, len, "fuzz", &file, &err) != HEADRACE_OK)
        return 0;
    for (uint32_t i = 0; i < file.n_tensors; i++) /* touch the ends of what was promised */
        if (file.tensors[i].n_bytes > 0) {
            const unsigned char *data = file.tensors[i].data;

            HR_ASSERT(data + file.tensors[i].n_bytes <= bytes + len);
            hr_dequantize(file.tensors[i].dtype, data, ends, 1);
            hr_dequantize(file.tensors[i].dtype,
                          data + file.tensors[i].n_bytes - hr_dtypes[file.tensors[i].dtype].block_bytes, ends + 1, 1);
            HR_ASSERT(hr_tensor_file_find(&file, file.tensors[i].name) == &file.tensors[i]);
        }
    hr_tensor_file_close(&file);
    return 0;
}

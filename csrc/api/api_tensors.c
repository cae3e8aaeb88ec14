/* headrace_save_tensors: the one door through which results leave as files. */
#include "base/status.h"
#include "format/safetensors.h"

headrace_status headrace_save_tensors(const char *path, const headrace_named_tensor *tensors, size_t n_tensors,
                                      headrace_error *err)
{
    hr_safetensors_item *items = calloc(n_tensors ? n_tensors : 1, sizeof *items);
    headrace_status status = HEADRACE_OK;

    if (!items)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for %zu tensors", n_tensors);
    for (size_t i = 0; i < n_tensors && status == HEADRACE_OK; i++) {
        if (!tensors[i].name || tensors[i].rank < 1 || tensors[i].rank > HR_RANK_MAX)
            status = hr_fail_param(err, HEADRACE_E_ARGUMENT, "tensors", "tensor %zu needs a name and a rank of 1 to %d",
                                   i, HR_RANK_MAX);
        items[i] = (hr_safetensors_item){.name = tensors[i].name, .data = tensors[i].data, .rank = tensors[i].rank};
        for (uint32_t d = 0; d < HR_RANK_MAX; d++)
            items[i].shape[d] = tensors[i].shape[d];
    }
    if (status == HEADRACE_OK)
        status = hr_safetensors_write(path, items, n_tensors, err);
    free(items);
    return status;
}

/* Importance matrices of either form: any bytes are read or refused; what is read holds numbers a quantiser can use. */
#include "convert/imatrix.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    hr_imatrix imatrix;
    headrace_error err;

    if (hr_imatrix_parse(bytes, len, "fuzz", &imatrix, &err) != HEADRACE_OK)
        return 0;
    for (uint32_t i = 0; i < imatrix.n_entries; i++) {
        const hr_imatrix_entry *entry = &imatrix.entries[i];
        const float *found;

        if (hr_imatrix_find(&imatrix, entry->name, entry->n_experts, entry->n_columns, &found, &err) != HEADRACE_OK)
            __builtin_trap();
        for (size_t j = 0; j < (size_t)entry->n_experts * entry->n_columns; j++)
            if (!isfinite(found[j]) || found[j] < 0.0F)
                __builtin_trap();
    }
    hr_imatrix_close(&imatrix);
    return 0;
}

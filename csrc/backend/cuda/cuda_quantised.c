/* Which matrices stay quantised on the device, and what is asked of a quantised file.
 *
 * The wgmma kernels multiply with five of GGUF's formats as they are (hrk.h); the results are those of the values
 * rounded to bf16, to the bit, so what stays quantised is a matter of memory and speed alone: everything that one of
 * these kernels multiplies with, where what lies together in memory has one format. The rest is decoded to bf16 as it
 * is loaded: products with biases, other devices' weights, the router, other formats, and the embedding's rows for
 * look-ups (a tied head is a second copy in any case, and stays quantised).
 */
#include "backend/cuda/cuda.h"

hrk_layout hr_cuda_layout(const hr_cuda *cuda, const hr_matrix *matrix)
{
    static const hrk_layout quantised[HR_DTYPE_COUNT] = {[HR_Q4_0] = HRK_TILED_Q4_0,
                                                         [HR_Q8_0] = HRK_TILED_Q8_0,
                                                         [HR_Q4_K] = HRK_TILED_Q4_K,
                                                         [HR_Q5_K] = HRK_TILED_Q5_K,
                                                         [HR_Q6_K] = HRK_TILED_Q6_K};

    if (!cuda->is_tiled)
        return HRK_ROW_MAJOR;
    return cuda->keeps_quantised && quantised[matrix->dtype] ? quantised[matrix->dtype] : HRK_TILED;
}

headrace_status hr_cuda_check_scales(const hr_model *model, const hr_matrix *from, uint32_t row, headrace_error *err)
{
    const size_t offset = row * from->row_bytes;
    size_t block = hr_dtype_bad_block(from->dtype, (const unsigned char *)from->data + offset, from->cols);
    const unsigned char *at = from->in_file ? (const unsigned char *)from->in_file + offset : NULL;
    const hr_tensor *tensor;

    if (block == from->cols / hr_dtypes[from->dtype].block_values)
        return HEADRACE_OK;
    tensor = model->file && at ? hr_tensor_file_at(model->file, at) : NULL;
    (void)hr_fail(err, HEADRACE_E_MODEL, "row %zu, block %zu: its scale or minimum is not finite",
                  tensor ? (size_t)(at - (const unsigned char *)tensor->data) / from->row_bytes : row, block);
    return tensor ? hr_prefix(err, HEADRACE_E_MODEL, "%s: tensor '%s'", model->file->paths[tensor->shard], tensor->name)
                  : HEADRACE_E_MODEL;
}

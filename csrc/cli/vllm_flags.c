/* Flags that scripts written for vLLM pass. What they ask for is either how things are here, and then they are
 * accepted; or it has no counterpart here, and then the answer says what to use instead. Nothing is ignored in
 * silence.
 */
#include "cli/program.h"

#include <stdio.h>
#include <string.h>

int hr_check_vllm_flags(const hr_options *options)
{
    uint32_t n_devices = hr_option_u32(options, "tensor-parallel-size");
    double utilization = hr_option_real(options, "gpu-memory-utilization");

    if (n_devices != 1) {
        (void)fprintf(stderr,
                      "headrace: --tensor-parallel-size %u: one device runs the whole model, so that only 1 is right "
                      "here; on the CPU --threads sets how many cores it uses\n",
                      n_devices);
        return HR_EXIT_USAGE;
    }
    if (!(utilization > 0 && utilization <= 1)) {
        (void)fprintf(stderr, "headrace: --gpu-memory-utilization: %g is not above 0 and up to 1\n", utilization);
        return HR_EXIT_USAGE;
    }
    return HR_EXIT_OK;
}

void hr_warn_vllm_flags(const hr_options *options, const headrace_engine *engine)
{
    headrace_engine_info info;

    headrace_engine_get_info(engine, &info);
    if (strcmp(info.device, "cpu") == 0 && hr_option_given(options, "gpu-memory-utilization") &&
        hr_log_level(options) >= HEADRACE_LOG_WARNING)
        (void)fputs("headrace: warning: --gpu-memory-utilization has no effect on the CPU; --kv-cache-memory SIZE sets "
                    "the memory for keys and values\n",
                    stderr);
}

/* Most of the weights' bytes: weight_dtypes begins with the dtype that has the largest share. */
static bool is_mostly(const headrace_model_info *info, const char *dtype)
{
    size_t len = strlen(dtype);

    return strncmp(info->weight_dtypes, dtype, len) == 0 && strchr(" ", info->weight_dtypes[len]) != NULL;
}

int hr_check_dtype(const hr_options *options, const headrace_model *model)
{
    const char *dtype = hr_option_text(options, "dtype"), *quantization = hr_option_text(options, "quantization");
    bool is_exact = hr_option_bool(options, "exact");
    headrace_model_info info;

    headrace_model_get_info(model, &info);
    bool is_right = strcmp(dtype, "auto") == 0 || (strcmp(dtype, "bfloat16") == 0 && is_mostly(&info, "BF16")) ||
                    (strcmp(dtype, "float16") == 0 && is_mostly(&info, "F16")) ||
                    (strcmp(dtype, "float32") == 0 && (is_exact || is_mostly(&info, "F32")));
    if (!is_right) {
        (void)fprintf(stderr, "headrace: --dtype %s: weights run in the file's own dtype (%s)%s\n", dtype,
                      info.weight_dtypes,
                      strcmp(dtype, "float32") == 0 ? "; --exact computes in float32" : "; leave --dtype auto");
        return HR_EXIT_USAGE;
    }
    if (strcmp(quantization, "gguf") == 0 && strcmp(info.format, "gguf") != 0) {
        (void)fprintf(stderr, "headrace: --quantization gguf: the model is %s; name a .gguf file\n", info.format);
        return HR_EXIT_USAGE;
    }
    return HR_EXIT_OK;
}

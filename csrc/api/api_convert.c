/* headrace_convert: the public face of the convert room. It needs no headrace_model: a conversion opens the file
 * itself, reads every weight once and keeps none. */
#include "api/api.h"

#include "base/file.h"
#include "convert/convert.h"

#include <string.h>

void headrace_convert_options_init(headrace_convert_options *options)
{
    *options = (headrace_convert_options){.struct_size = sizeof *options};
}

const char *headrace_convert_types(void)
{
    return hr_mix_names;
}

headrace_status headrace_convert(const headrace_convert_options *options, headrace_convert_info *out,
                                 headrace_error *err)
{
    headrace_convert_options own;
    hr_convert_options how = {0};
    hr_convert_result result;
    const char *path;

    *out = (headrace_convert_info){0};
    headrace_convert_options_init(&own);
    HR_PASS(hr_options_read(&own, sizeof own, options, "convert options", err));
    how.mix = own.type ? hr_mix_find(own.type) : NULL;
    if (!how.mix)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "type", "type: '%s' is not one of %s", own.type ? own.type : "",
                             hr_mix_names);
    if (own.out && !own.out[0])
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "out", "out: is empty");
    HR_PASS(hr_model_find(own.path, &path, err));
    how.out = own.out;
    how.folder = path == own.path ? NULL : "."; /* the embedded model's folder is the program's, not the user's */
    how.imatrix = own.imatrix;
    how.n_threads = own.n_threads;
    how.may_replace = own.replace;
    how.may_requantise = own.allow_requantize;
    how.progress = own.progress;
    how.progress_user = own.progress_user;
    HR_PASS(hr_convert(path, &how, &result, err));
    *out = (headrace_convert_info){.path = result.path,
                                   .type = how.mix->name,
                                   .n_bytes = result.n_bytes,
                                   .n_parameters = result.n_parameters,
                                   .n_tensors = result.n_tensors};
    return HEADRACE_OK;
}

/* Graphs: the launches of a step, recorded once for each class of steps and sent to the device in one call.
 *
 * All counts of a step are read on the device, so a graph of a class fits every step within its bounds. A class is a
 * number of rows rounded up to a power of two, whether there are prompt rows, and whether there are outputs. All
 * classes that an engine's steps fall into are recorded at open, because recording allocates: decode steps up to
 * max_spans rows, mixed steps from 64 rows on. What is in no class (generated rows computed again, attention in several
 * rounds) is launched kernel by kernel, as are steps with taps. HEADRACE_CUDA_GRAPHS=0 in the environment records none.
 *
 * The runtime loads a kernel when it is first asked for, which may wait for the device: every kernel of a class is
 * loaded before its recording begins. The relaxed mode would allow loading in between; nothing here or in the kernels'
 * host code does what the other modes forbid. A graph is sent to the device at once, so that the first step of its
 * class neither takes longer nor finds memory gone.
 */
#include "backend/cuda/cuda.h"

#include <string.h>

enum { MIXED_ROWS_MIN = 64 };

/* The smallest c with 2^c >= n. */
static uint32_t class_of(uint32_t n)
{
    return n <= 1 ? 0 : 32 - (uint32_t)__builtin_clz(n - 1);
}

static uint32_t smallest(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static hr_cuda_shape shape_of(const hr_cuda *cuda, uint32_t class, bool has_prompt, bool has_head)
{
    const hr_backend_options *o = &cuda->options;
    uint32_t rows = smallest(1u << class, o->max_rows);

    return (hr_cuda_shape){.max_rows = rows,
                           .max_outputs = smallest(rows, o->max_outputs),
                           .max_decode_items = rows,
                           .max_chunk_items = cuda->max_chunk_items,
                           .max_prefill_tiles = has_prompt ? smallest(rows, cuda->max_prefill_tiles) : 0,
                           .n_rounds = 1,
                           .has_head = has_head};
}

static headrace_status capture(hr_cuda *cuda, const hr_cuda_shape *shape, cudaGraphExec_t *out, headrace_error *err)
{
    cudaGraph_t graph = NULL;
    headrace_error ignored = {0};
    headrace_status status, ended;

    HR_PASS(hr_cuda_load_kernels(cuda, shape, err));
    HR_CUDA_TRY(cuda, cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeRelaxed));
    status = hr_cuda_walk(cuda, shape, NULL, err);
    /* Also after a failure: the stream must not stay in capture. */
    ended = hr_cuda_check(cuda, (int)cudaStreamEndCapture(cuda->stream, &graph), "cudaStreamEndCapture",
                          status == HEADRACE_OK ? err : &ignored);
    status = status == HEADRACE_OK ? ended : status;
    if (status == HEADRACE_OK)
        status = hr_cuda_check(cuda, (int)cudaGraphInstantiate(out, graph, 0), "cudaGraphInstantiate", err);
    if (status == HEADRACE_OK)
        status = hr_cuda_check(cuda, (int)cudaGraphUpload(*out, cuda->stream), "cudaGraphUpload", err);
    if (graph)
        (void)cudaGraphDestroy(graph);
    return status;
}

static headrace_status capture_class(hr_cuda *cuda, uint32_t class, bool has_prompt, bool has_head, headrace_error *err)
{
    hr_cuda_shape shape = shape_of(cuda, class, has_prompt, has_head);

    return capture(cuda, &shape, &cuda->graphs[class][has_prompt][has_head], err);
}

headrace_status hr_cuda_capture_graphs(hr_cuda *cuda, headrace_error *err)
{
    const char *wish = getenv("HEADRACE_CUDA_GRAPHS");
    uint32_t decode_end = class_of(smallest(cuda->options.max_spans, cuda->options.max_rows));
    uint32_t mixed_end = class_of(cuda->options.max_rows);

    if (hr_cuda_has_taps(cuda) || (wish && strcmp(wish, "0") == 0))
        return HEADRACE_OK;
    for (uint32_t class = 0; class <= decode_end; class ++)
        HR_PASS(capture_class(cuda, class, false, true, err));
    for (uint32_t class = smallest(class_of(MIXED_ROWS_MIN), mixed_end); class <= mixed_end; class ++) {
        HR_PASS(capture_class(cuda, class, true, false, err));
        HR_PASS(capture_class(cuda, class, true, true, err));
    }
    return HEADRACE_OK;
}

void hr_cuda_destroy_graphs(hr_cuda *cuda)
{
    for (uint32_t i = 0; i < HR_CUDA_ROW_CLASSES * 4; i++) {
        cudaGraphExec_t *graph = &cuda->graphs[i / 4][i / 2 % 2][i % 2];

        if (*graph)
            (void)cudaGraphExecDestroy(*graph);
        *graph = NULL;
    }
}

static cudaGraphExec_t find_graph(const hr_cuda *cuda, const hr_cuda_shape *shape)
{
    bool has_prompt = shape->max_prefill_tiles > 0;
    uint32_t n_rows = has_prompt && shape->max_rows < MIXED_ROWS_MIN ? MIXED_ROWS_MIN : shape->max_rows;
    uint32_t class = class_of(smallest(n_rows, cuda->options.max_rows));
    hr_cuda_shape bounds = shape_of(cuda, class, has_prompt, shape->has_head);

    if (shape->n_rounds > 1 || shape->max_outputs > bounds.max_outputs ||
        shape->max_prefill_tiles > bounds.max_prefill_tiles)
        return NULL;
    return cuda->graphs[class][has_prompt][shape->has_head];
}

headrace_status hr_cuda_run(hr_cuda *cuda, const hr_cuda_shape *shape, const hr_batch *batch, headrace_error *err)
{
    cudaGraphExec_t graph = find_graph(cuda, shape);

    if (!graph)
        return hr_cuda_walk(cuda, shape, batch, err);
    HR_CUDA_TRY(cuda, cudaGraphLaunch(graph, cuda->stream));
    return HEADRACE_OK;
}

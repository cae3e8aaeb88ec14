/* An instance of the CUDA backend: its life, its steps, and the doors that tests look through. What is chosen and taken
 * at open is in cuda_memory.c, what a step enqueues in cuda_upload.c, cuda_graph.c and cuda_step.c.
 */
#include "backend/cuda/cuda.h"
#include "backend/cuda/cuda_trace.h"

#include "base/numeric.h"

#include <string.h>

/* ---------------------------------------------------------------- life */

static headrace_status device_memory(uint32_t index, hr_device_memory *out, headrace_error *err)
{
    hr_cuda_device device;

    HR_PASS(hr_cuda_probe(index, &device, err));
    *out = (hr_device_memory){.free_bytes = device.free_bytes, .total_bytes = device.total_bytes};
    return HEADRACE_OK;
}

static headrace_status sizes(const hr_model *model, const hr_backend_options *options, hr_backend_sizes *out,
                             headrace_error *err)
{
    hr_cuda *cuda = calloc(1, sizeof *cuda);
    headrace_status status;

    if (!cuda)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a backend");
    status = hr_cuda_plan(cuda, model, options, err);
    if (status == HEADRACE_OK)
        *out = (hr_backend_sizes){.page_bytes = cuda->page_bytes,
                                  .slot_bytes = cuda->slot_bytes,
                                  .scratch_bytes = cuda->weight_bytes + cuda->scratch_bytes};
    free(cuda->layers);
    free(cuda);
    return status;
}

/* The device of this thread: the engine's is not the one that opened the instance. */
static headrace_status enter(hr_cuda *cuda, headrace_error *err)
{
    HR_PASS(hr_cuda_check_whole(cuda, err));
    HR_CUDA_TRY(cuda, cudaSetDevice((int)cuda->device.index));
    return HEADRACE_OK;
}

static void close_instance(hr_backend *backend)
{
    hr_cuda *cuda = (hr_cuda *)backend;

    if (!cuda)
        return;
    (void)cudaSetDevice((int)cuda->device.index);
    if (cuda->stream)
        (void)cudaStreamSynchronize(cuda->stream); /* steps in flight write into pinned memory */
    hr_cuda_destroy_graphs(cuda);
    hr_cuda_give_memory(cuda);
    (void)cudaGetLastError();
    free(cuda);
}

static headrace_status open_parts(hr_cuda *cuda, const hr_model *model, const hr_backend_options *options,
                                  headrace_error *err)
{
    HR_PASS(hr_cuda_plan(cuda, model, options, err));
    HR_PASS(hr_cuda_take_memory(cuda, err));
    HR_PASS(hr_cuda_load_weights(cuda, err));
    return hr_cuda_capture_graphs(cuda, err);
}

static headrace_status open_instance(const hr_model *model, const hr_backend_options *options, uint32_t n_pages,
                                     uint32_t n_slots, hr_backend **out, headrace_error *err)
{
    hr_cuda *cuda = calloc(1, sizeof *cuda);
    headrace_status status;

    *out = NULL;
    if (!cuda)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a backend");
    cuda->n_pages = n_pages;
    cuda->n_slots = n_slots;
    status = open_parts(cuda, model, options, err);
    if (status != HEADRACE_OK) {
        close_instance(&cuda->base);
        return status;
    }
    *out = &cuda->base;
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- steps */

static hr_batch *batch(hr_backend *backend, uint32_t i)
{
    HR_ASSERT(i < HR_CUDA_IN_FLIGHT);
    return &((hr_cuda *)backend)->batches[i];
}

static headrace_status begin(hr_cuda *cuda, hr_cuda_flight *flight, headrace_error *err)
{
    hr_cuda_shape shape;

    HR_CUDA_TRY(cuda, cudaEventRecord(flight->begun, cuda->stream));
    HR_PASS(hr_cuda_upload(cuda, flight, &shape, err));
    HR_PASS(hr_cuda_run(cuda, &shape, flight->batch, err));
    return hr_cuda_fetch_results(cuda, flight, err);
}

static headrace_status step_begin(hr_backend *backend, hr_batch *step, headrace_error *err)
{
    hr_cuda *cuda = (hr_cuda *)backend;
    hr_cuda_flight *flight = &cuda->flights[(cuda->first_flight + cuda->n_flights) % HR_CUDA_IN_FLIGHT];
    headrace_status status;

    HR_PASS(enter(cuda, err));
    if (cuda->n_flights == HR_CUDA_IN_FLIGHT)
        return hr_fail(err, HEADRACE_E_ENGINE, "%d steps were begun and not waited for", HR_CUDA_IN_FLIGHT);
    cuda->n_steps++;
    flight->batch = step;
    hr_cuda_range_push("headrace step");
    status = begin(cuda, flight, err);
    hr_cuda_range_pop();
    HR_PASS(status);
    cuda->n_flights++;
    return HEADRACE_OK;
}

static headrace_status step_wait(hr_backend *backend, headrace_error *err)
{
    hr_cuda *cuda = (hr_cuda *)backend;
    hr_cuda_flight *flight = &cuda->flights[cuda->first_flight];

    HR_PASS(enter(cuda, err));
    if (cuda->n_flights == 0)
        return hr_fail(err, HEADRACE_E_ENGINE, "no step was begun");
    HR_PASS(hr_cuda_wait_results(cuda, flight, err));
    cuda->first_flight = (cuda->first_flight + 1) % HR_CUDA_IN_FLIGHT;
    cuda->n_flights--;
    return HEADRACE_OK;
}

static uint64_t step_time_us(const hr_backend *backend)
{
    return ((const hr_cuda *)backend)->last_step_us;
}

/* ---------------------------------------------------------------- doors */

/* The functions below have no way to tell of a failure; it is kept, and the next step tells. */
static void copy_on_device(hr_cuda *cuda, void *to, const void *from, size_t n)
{
    headrace_error ignored = {0};

    if (n > 0)
        (void)hr_cuda_check(cuda, (int)cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice, cuda->stream),
                            "cudaMemcpyAsync", &ignored);
}

static hrk_bf16 *current_state(const hr_cuda *cuda, uint32_t slot)
{
    return cuda->state + (2 * (size_t)slot + cuda->slots[slot].parity) * cuda->state_values;
}

static void copy_slot(hr_backend *backend, uint32_t from, uint32_t to)
{
    hr_cuda *cuda = (hr_cuda *)backend;
    headrace_error ignored = {0};

    HR_ASSERT(from < cuda->n_slots && to < cuda->n_slots);
    if (from == to || enter(cuda, &ignored) != HEADRACE_OK)
        return;
    copy_on_device(cuda, current_state(cuda, to), current_state(cuda, from), cuda->state_values * sizeof(hrk_bf16));
    copy_on_device(cuda, cuda->tables.next_token + to, cuda->tables.next_token + from, sizeof(int32_t));
    cuda->slot_token[to] = cuda->slot_token[from];
}

static void copy_page(hr_backend *backend, uint32_t from, uint32_t to)
{
    hr_cuda *cuda = (hr_cuda *)backend;
    headrace_error ignored = {0};
    unsigned char *pages = (unsigned char *)cuda->kv;

    HR_ASSERT(from < cuda->n_pages && to < cuda->n_pages);
    if (from != to && enter(cuda, &ignored) == HEADRACE_OK)
        copy_on_device(cuda, pages + to * cuda->page_bytes, pages + from * cuda->page_bytes, cuda->page_bytes);
}

static const char *compute_name(const hr_backend *backend)
{
    return ((const hr_cuda *)backend)->compute_name;
}

static uint32_t n_threads(const hr_backend *backend)
{
    (void)backend;
    return 1; /* the caller's */
}

/* Values of device memory as fp32, one at a time: for tests. NAN where they cannot be read. */
static void read_bf16(const hr_backend *backend, const hrk_bf16 *from, size_t n, float *to)
{
    hr_cuda *cuda = (hr_cuda *)(uintptr_t)backend;
    uint16_t piece[512];
    headrace_error ignored = {0};

    for (size_t at = 0; at < n; at += sizeof piece / sizeof *piece) {
        size_t count = n - at < sizeof piece / sizeof *piece ? n - at : sizeof piece / sizeof *piece;
        bool is_read = enter(cuda, &ignored) == HEADRACE_OK &&
                       hr_cuda_read(cuda, from + at, piece, count * sizeof *piece, &ignored) == HEADRACE_OK;

        for (size_t i = 0; i < count; i++)
            to[at + i] = hr_bf16_to_f32(is_read ? piece[i] : 0x7FC0);
    }
}

static void read_slot(const hr_backend *backend, uint32_t slot, float *out)
{
    const hr_cuda *cuda = (const hr_cuda *)backend;
    size_t H = cuda->arch->hidden_size, columns = cuda->arch->conv_length - 1;
    float *column = malloc(H * sizeof *column);

    HR_ASSERT(slot < cuda->n_slots && column);
    for (size_t layer = 0; layer < cuda->arch->n_conv_layers; layer++) {
        for (size_t j = 0; j < columns; j++) {
            read_bf16(backend, current_state(cuda, slot) + (layer * columns + j) * H, H, column);
            for (size_t h = 0; h < H; h++)
                out[(layer * H + h) * columns + j] = column[h];
        }
    }
    free(column);
}

static void read_kv(const hr_backend *backend, uint32_t attention_layer, uint32_t page, uint32_t offset, int which,
                    float *out)
{
    const hr_cuda *cuda = (const hr_cuda *)backend;
    uint32_t D = cuda->arch->head_dim, P = cuda->options.page_tokens;
    const hrk_bf16 *at = cuda->kv + page * (cuda->page_bytes / sizeof(hrk_bf16));
    float row[HR_HEAD_DIM_MAX];

    for (uint32_t h = 0; h < cuda->arch->n_kv_heads; h++) {
        size_t head = ((size_t)attention_layer * cuda->arch->n_kv_heads + h) * 2 + (which != 0);

        read_bf16(backend, at + (head * P + offset) * D, D, row);
        for (uint32_t d = 0; d < D; d++) /* chunks of 8 values change places in swizzled pages (hrk_kv) */
            out[(size_t)h * D + d] = row[cuda->fuses_attention ? ((d / 8) ^ (offset & 7)) * 8 + d % 8 : d];
    }
}

const hr_backend_ops hr_backend_cuda = {
    .name = "cuda",
    .max_steps_in_flight = HR_CUDA_IN_FLIGHT,
    .wants_sampling_slots = true,
    .device_memory = device_memory,
    .sizes = sizes,
    .open = open_instance,
    .close = close_instance,
    .batch = batch,
    .step_begin = step_begin,
    .step_wait = step_wait,
    .step_time_us = step_time_us,
    .copy_slot = copy_slot,
    .copy_page = copy_page,
    .compute_name = compute_name,
    .n_threads = n_threads,
    .read_slot = read_slot,
    .read_kv = read_kv,
};

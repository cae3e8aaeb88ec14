/* An instance of the CPU backend: its memory, its life, and the doors that tests look through.
 *
 * All memory is taken at open in three pieces straight from the kernel: pages, states, scratch. Untouched parts cost
 * nothing, so a generous page pool is resident only as far as it is used. The scratch buffers are laid out by one
 * function that runs twice, first to count and then to place, so that what `sizes` promises is what `open` takes.
 */
#include "backend/cpu/cpu.h"
#include "base/carver.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>

enum {
    LOGITS_BYTES = 16 << 20, /* aimed at for the group of logits rows */
    LOGITS_ROWS_MIN = 16,
    PAGE_TOKENS_MAX = 1024,
    ROWS_MAX = 1 << 16,
    HUGE_PAGE_BYTES = 2 << 20,
};

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void lay_out_batch(const hr_backend_options *o, hr_batch *batch, hr_carver *c)
{
    batch->token_ids = hr_carve(c, o->max_rows, sizeof *batch->token_ids);
    batch->spans = hr_carve(c, o->max_spans, sizeof *batch->spans);
    batch->pages = hr_carve(c, o->max_page_refs, sizeof *batch->pages);
    batch->outputs = hr_carve(c, o->max_outputs, sizeof *batch->outputs);
    batch->samples = hr_carve(c, o->max_outputs, sizeof *batch->samples);
}

static void lay_out_worker(const hr_cpu *cpu, hr_cpu_worker *worker, size_t widest_cols, hr_carver *c)
{
    const hr_arch *arch = cpu->arch;

    worker->linear_scratch =
        hr_carve(c, 1, largest(cpu->kernels->linear_scratch_bytes((uint32_t)widest_cols), HR_CPU_PACKED_SCRATCH));
    worker->tile = hr_carve(c, (size_t)2 * cpu->options.max_rows * HR_CPU_TILE_MAX, sizeof(float));
    worker->attention = hr_carve(
        c, cpu->kernels->attention_scratch_floats(arch->n_heads / arch->n_kv_heads, arch->head_dim, cpu->max_context),
        sizeof(float));
    worker->head = hr_carve(c, arch->head_dim, sizeof(float));
    worker->router_row = hr_carve(c, arch->hidden_size, sizeof(float));
    worker->expert_scores = hr_carve(c, arch->n_experts, sizeof(float));
    worker->expert_taken = hr_carve(c, arch->n_experts, sizeof(bool));
}

static void lay_out_moe(hr_cpu *cpu, hr_carver *c)
{
    const hr_arch *arch = cpu->arch;
    size_t T = cpu->options.max_rows, E = arch->n_experts, K = arch->n_experts_used;

    cpu->router_logits = hr_carve(c, T * E, sizeof(float));
    cpu->router_ids = hr_carve(c, T * K, sizeof(uint32_t));
    cpu->router_weights = hr_carve(c, T * K, sizeof(float));
    cpu->expert_first = hr_carve(c, E + 1, sizeof(uint32_t));
    cpu->place = hr_carve(c, T * K, sizeof(uint32_t));
    cpu->gathered_row = hr_carve(c, T * K, sizeof(uint32_t));
    cpu->expert_out = hr_carve(c, T * K, (size_t)arch->hidden_size * sizeof(float));
    cpu->products = hr_carve(c, E, sizeof *cpu->products);
    if (cpu->options.tap)
        cpu->tap_act = hr_carve(c, T * K, (size_t)arch->expert_ffn_dim * sizeof(float));
}

/* Sets every pointer into the scratch block. The only list of buffers. */
static void lay_out(hr_cpu *cpu, hr_carver *c)
{
    const hr_arch *arch = cpu->arch;
    size_t T = cpu->options.max_rows, H = arch->hidden_size, D = arch->head_dim;
    size_t q_cols = arch->n_heads * D, kv_cols = arch->n_kv_heads * D;
    size_t mix_cols = largest(H, q_cols), F = hr_model_dense_width(cpu->model);
    size_t n_gathered = T * arch->n_experts_used, M = arch->expert_ffn_dim;
    hr_cpu_worker ignored = {0};

    for (uint32_t i = 0; i < 2; i++)
        lay_out_batch(&cpu->options, &cpu->batches[i], c);
    cpu->rope_rate = hr_carve(c, D / 2, sizeof(double));
    cpu->row_span = hr_carve(c, T, sizeof(uint32_t));
    cpu->rope_cos = hr_carve(c, T * (D / 2), sizeof(float));
    cpu->rope_sin = hr_carve(c, T * (D / 2), sizeof(float));
    cpu->x = hr_carve(c, T * H, sizeof(float));
    cpu->norm = hr_carve(c, T * H, sizeof(float));
    cpu->mix = hr_carve(c, T * mix_cols, sizeof(float));
    cpu->out = hr_carve(c, T * H, sizeof(float));
    cpu->wide = hr_carve(c, T * largest(3 * H, q_cols + 2 * kv_cols), sizeof(float));
    cpu->q = cpu->wide;
    cpu->k = cpu->wide ? cpu->q + T * q_cols : NULL;
    cpu->v = cpu->wide ? cpu->k + T * kv_cols : NULL;
    for (uint32_t kind = 0; kind < HR_CPU_ROWS_KINDS; kind++)
        cpu->prepared.rows[kind] = hr_carve(c, T, hr_cpu_row_bytes(cpu, (hr_cpu_rows)kind, (uint32_t)mix_cols));
    cpu->act = hr_carve(c, largest(T * F, n_gathered * M), sizeof(float));
    for (uint32_t kind = 0; kind < HR_CPU_ROWS_KINDS; kind++) {
        size_t dense = T * hr_cpu_row_bytes(cpu, (hr_cpu_rows)kind, (uint32_t)F);
        size_t gathered = n_gathered * hr_cpu_row_bytes(cpu, (hr_cpu_rows)kind, (uint32_t)largest(H, M));

        cpu->act_rows.rows[kind] = hr_carve(c, 1, largest(dense, gathered));
    }
    cpu->logits = hr_carve(c, (size_t)cpu->logit_rows * arch->vocab_size, sizeof(float));
    cpu->attention_rows = hr_carve(c, T + 1, sizeof(uint32_t));
    cpu->attention_states = hr_carve(c, (size_t)cpu->attention_split * hr_cpu_segments(cpu->max_context),
                                     cpu->attention_state_floats * sizeof(float));
    if (arch->n_experts > 0)
        lay_out_moe(cpu, c);
    cpu->workers = hr_carve(c, cpu->n_threads, sizeof *cpu->workers);
    for (uint32_t i = 0; i < cpu->n_threads; i++)
        lay_out_worker(cpu, cpu->workers ? &cpu->workers[i] : &ignored, largest(mix_cols, largest(F, M)), c);
}

/* What hr_sampler_create takes for a vocabulary, so that `sizes` need not create one. */
static size_t sampler_bytes(uint32_t vocab_size)
{
    return (size_t)vocab_size * 24;
}

static headrace_status check_options(const hr_model *model, const hr_backend_options *o, headrace_error *err)
{
    if (model->is_dummy)
        return hr_fail(err, HEADRACE_E_UNSUPPORTED,
                       "dummy weights are made on a CUDA device; the CPU needs a checkpoint with weights");
    if (model->layers == NULL || model->embedding.data == NULL)
        return hr_fail(err, HEADRACE_E_ARGUMENT, "the model was opened without weights");
    if (o->page_tokens == 0 || o->page_tokens > PAGE_TOKENS_MAX)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "page_tokens", "page_tokens is %u, must be 1 .. %d",
                             o->page_tokens, PAGE_TOKENS_MAX);
    if (o->n_threads > HR_CPU_THREADS_MAX)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "n_threads", "n_threads is %u, must be 0 .. %d", o->n_threads,
                             HR_CPU_THREADS_MAX);
    if (o->max_rows == 0 || o->max_rows > ROWS_MAX || o->max_spans == 0 || o->max_outputs == 0 || o->max_page_refs == 0)
        return hr_fail(
            err, HEADRACE_E_ARGUMENT,
            "capacities of %u rows, %u spans, %u outputs, %u pages; each must be at least 1, rows at most %d",
            o->max_rows, o->max_spans, o->max_outputs, o->max_page_refs, ROWS_MAX);
    if (o->n_valid_ids > model->arch.vocab_size)
        return hr_fail(err, HEADRACE_E_ARGUMENT, "%u valid ids of a vocabulary of %u", o->n_valid_ids,
                       model->arch.vocab_size);
    return HEADRACE_OK;
}

/* Everything that follows from model and options, without taking memory. */
static headrace_status plan(hr_cpu *cpu, const hr_model *model, const hr_backend_options *options, headrace_error *err)
{
    const hr_arch *arch = &model->arch;
    uint64_t covered = (uint64_t)options->max_page_refs * options->page_tokens;
    size_t rows = (size_t)LOGITS_BYTES / sizeof(float) / (arch->vocab_size > 0 ? arch->vocab_size : 1);
    hr_carver count = {.alignment = HR_CPU_ALIGNMENT};

    HR_PASS(check_options(model, options, err));
    *cpu = (hr_cpu){.base.ops = &hr_backend_cpu, .model = model, .arch = arch, .options = *options};
    cpu->kernels = options->exact ? &hr_cpu_kernels_plain : hr_cpu_kernels_select(false);
    cpu->n_threads = options->n_threads > 0 ? options->n_threads : hr_cpu_count_cores();
    cpu->n_valid_ids = options->n_valid_ids > 0 ? options->n_valid_ids : arch->vocab_size;
    cpu->max_context = covered < arch->max_positions ? (uint32_t)covered : arch->max_positions;
    cpu->logit_rows = (uint32_t)largest(LOGITS_ROWS_MIN, rows);
    if (cpu->logit_rows > options->max_outputs)
        cpu->logit_rows = options->max_outputs;
    if (cpu->logit_rows > options->max_rows)
        cpu->logit_rows = options->max_rows; /* groups use the row buffers */
    cpu->kv_dtype = options->kv_dtype;
    if (cpu->kv_dtype == HR_KV_AUTO)
        cpu->kv_dtype = options->exact ? HR_KV_F32 : HR_KV_BF16;
    cpu->kv_value_bytes = cpu->kv_dtype == HR_KV_F32 ? sizeof(float) : sizeof(uint16_t);
    cpu->kv_head_bytes = (size_t)options->page_tokens * arch->head_dim * cpu->kv_value_bytes;
    cpu->page_bytes =
        ((size_t)arch->n_attention_layers * arch->n_kv_heads * 2 * cpu->kv_head_bytes + HR_CPU_ALIGNMENT - 1) /
        HR_CPU_ALIGNMENT * HR_CPU_ALIGNMENT;
    cpu->slot_values = hr_arch_state_values(arch);
    cpu->attention_state_floats = hr_attention_state_floats(arch->n_heads / arch->n_kv_heads, arch->head_dim);
    if (cpu->kernels->attention_segment && arch->n_kv_heads < 2 * cpu->n_threads)
        cpu->attention_split = 2 * cpu->n_threads - 1;
    lay_out(cpu, &count);
    if (count.overflows || count.used > SIZE_MAX / 2)
        return hr_fail(err, HEADRACE_E_MEMORY, "scratch for %u rows exceeds the address space", options->max_rows);
    cpu->scratch_bytes = count.used;
    return HEADRACE_OK;
}

static headrace_status sizes(const hr_model *model, const hr_backend_options *options, hr_backend_sizes *out,
                             headrace_error *err)
{
    hr_cpu cpu;

    HR_PASS(plan(&cpu, model, options, err));
    *out = (hr_backend_sizes){.page_bytes = cpu.page_bytes,
                              .slot_bytes = cpu.slot_values * sizeof(float),
                              .scratch_bytes = cpu.scratch_bytes + cpu.n_threads * sampler_bytes(cpu.arch->vocab_size) +
                                               hr_cpu_weights_bytes(model, options)};
    return HEADRACE_OK;
}

/* Zeroed memory from the kernel, resident only where touched. Takes at least one byte, so that *at is never NULL. */
static headrace_status take(size_t n, size_t size, const char *what, void **at, size_t *bytes, headrace_error *err)
{
    void *memory;

    if (__builtin_mul_overflow(n, size, bytes))
        return hr_fail(err, HEADRACE_E_MEMORY, "%zu x %zu bytes of %s exceed the address space", n, size, what);
    *bytes = largest(*bytes, 1);
    memory = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return hr_fail(err, HEADRACE_E_MEMORY, "%zu bytes for %s: %s", *bytes, what, strerror(errno));
    *at = memory;
    return HEADRACE_OK;
}

/* Asks for huge pages: attention reads 4 KiB of each page of keys and values, and pages lie far apart, so small ones
 * would cost a walk of the page table each. Only a wish. Not for scratch, of which many parts are never touched. */
static void wish_huge_pages(void *at, size_t bytes)
{
#ifdef MADV_HUGEPAGE
    if (bytes >= HUGE_PAGE_BYTES)
        (void)madvise(at, bytes, MADV_HUGEPAGE);
#else
    (void)at;
    (void)bytes;
#endif
}

static void give_back(void *at, size_t bytes)
{
    if (at)
        (void)munmap(at, bytes);
}

static headrace_status take_memory(hr_cpu *cpu, uint32_t n_pages, uint32_t n_slots, headrace_error *err)
{
    hr_carver place = {.alignment = HR_CPU_ALIGNMENT};
    void *at = NULL;

    cpu->n_pages = n_pages;
    cpu->n_slots = n_slots;
    HR_PASS(take(n_pages, cpu->page_bytes, "key/value pages", &at, &cpu->kv_bytes, err));
    cpu->kv = at;
    wish_huge_pages(at, cpu->kv_bytes);
    HR_PASS(take(n_slots, cpu->slot_values * sizeof(float), "convolution states", &at, &cpu->state_bytes, err));
    cpu->state = at;
    HR_PASS(take(1, cpu->scratch_bytes, "scratch", &cpu->scratch, &cpu->scratch_bytes, err));
    place.base = cpu->scratch;
    lay_out(cpu, &place);
    cpu->slot_token = calloc(largest(n_slots, 1), sizeof *cpu->slot_token);
    if (!cpu->slot_token)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for %u slots", n_slots);
    for (uint32_t i = 0; i < n_slots; i++)
        cpu->slot_token[i] = -1;
    return HEADRACE_OK;
}

static headrace_status start_workers(hr_cpu *cpu, headrace_error *err)
{
    for (uint32_t i = 0; i < cpu->n_threads; i++) {
        cpu->workers[i].sampler = hr_sampler_create(cpu->arch->vocab_size);
        if (!cpu->workers[i].sampler)
            return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the sampler of a vocabulary of %u",
                           cpu->arch->vocab_size);
    }
    cpu->pool = hr_cpu_pool_create(cpu->n_threads);
    if (!cpu->pool)
        return hr_fail(err, HEADRACE_E_MEMORY, "could not start %u threads", cpu->n_threads);
    return HEADRACE_OK;
}

static void close_instance(hr_backend *backend)
{
    hr_cpu *cpu = (hr_cpu *)backend;

    if (!cpu)
        return;
    hr_cpu_pool_destroy(cpu->pool);
    for (uint32_t i = 0; cpu->workers && i < cpu->n_threads; i++)
        hr_sampler_destroy(cpu->workers[i].sampler);
    hr_cpu_weights_close(&cpu->weights);
    free(cpu->slot_token);
    give_back(cpu->scratch, cpu->scratch_bytes);
    give_back(cpu->state, cpu->state_bytes);
    give_back(cpu->kv, cpu->kv_bytes);
    free(cpu);
}

static headrace_status open_instance(const hr_model *model, const hr_backend_options *options, uint32_t n_pages,
                                     uint32_t n_slots, hr_backend **out, headrace_error *err)
{
    hr_cpu *cpu = malloc(sizeof *cpu);
    headrace_status status;

    *out = NULL;
    if (!cpu)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for a backend");
    *cpu = (hr_cpu){0};
    HR_TRY_GOTO(failed, plan(cpu, model, options, err));
    cpu->workers = NULL;
    HR_TRY_GOTO(failed, take_memory(cpu, n_pages, n_slots, err));
    HR_TRY_GOTO(failed, start_workers(cpu, err));
    HR_TRY_GOTO(failed, hr_cpu_weights_open(model, options, cpu->pool, &cpu->weights, err));
    for (uint32_t j = 0; j < cpu->arch->head_dim / 2; j++)
        cpu->rope_rate[j] = pow((double)cpu->arch->rope_theta, -2.0 * j / cpu->arch->head_dim);
    *out = &cpu->base;
    return HEADRACE_OK;
failed:
    close_instance(&cpu->base);
    return status;
}

static hr_batch *batch(hr_backend *backend, uint32_t i)
{
    HR_ASSERT(i < 2);
    return &((hr_cpu *)backend)->batches[i];
}

static headrace_status step_begin(hr_backend *backend, hr_batch *step, headrace_error *err)
{
    hr_cpu *cpu = (hr_cpu *)backend;

    HR_PASS(hr_cpu_step(cpu, step, err));
    cpu->n_steps_begun++;
    return HEADRACE_OK;
}

static headrace_status step_wait(hr_backend *backend, headrace_error *err)
{
    hr_cpu *cpu = (hr_cpu *)backend;

    if (cpu->n_steps_begun == 0)
        return hr_fail(err, HEADRACE_E_ENGINE, "no step was begun");
    cpu->n_steps_begun--;
    return HEADRACE_OK;
}

static void copy_slot(hr_backend *backend, uint32_t from, uint32_t to)
{
    hr_cpu *cpu = (hr_cpu *)backend;

    HR_ASSERT(from < cpu->n_slots && to < cpu->n_slots);
    if (from == to)
        return;
    memcpy(cpu->state + to * cpu->slot_values, cpu->state + from * cpu->slot_values, cpu->slot_values * sizeof(float));
    cpu->slot_token[to] = cpu->slot_token[from];
}

static void copy_page(hr_backend *backend, uint32_t from, uint32_t to)
{
    hr_cpu *cpu = (hr_cpu *)backend;

    HR_ASSERT(from < cpu->n_pages && to < cpu->n_pages);
    if (from != to)
        memcpy(cpu->kv + to * cpu->page_bytes, cpu->kv + from * cpu->page_bytes, cpu->page_bytes);
}

static const char *compute_name(const hr_backend *backend)
{
    return ((const hr_cpu *)backend)->kernels->name;
}

static uint32_t n_threads(const hr_backend *backend)
{
    return ((const hr_cpu *)backend)->n_threads;
}

static void read_slot(const hr_backend *backend, uint32_t slot, float *out)
{
    const hr_cpu *cpu = (const hr_cpu *)backend;
    size_t H = cpu->arch->hidden_size, columns = cpu->arch->conv_length - 1;
    const float *state = cpu->state + slot * cpu->slot_values;

    for (uint32_t layer = 0; layer < cpu->arch->n_conv_layers; layer++) {
        for (size_t first = 0; first < H; first += HR_CPU_CHANNELS) {
            size_t n = H - first < HR_CPU_CHANNELS ? H - first : HR_CPU_CHANNELS;

            for (size_t h = 0; h < n; h++) {
                for (size_t j = 0; j < columns; j++)
                    out[(layer * H + first + h) * columns + j] =
                        state[layer * columns * H + columns * first + j * n + h];
            }
        }
    }
}

static void read_kv(const hr_backend *backend, uint32_t attention_layer, uint32_t page, uint32_t offset, int which,
                    float *out)
{
    const hr_cpu *cpu = (const hr_cpu *)backend;
    hr_dtype dtype = cpu->kv_dtype == HR_KV_F32 ? HR_F32 : HR_BF16;
    size_t D = cpu->arch->head_dim, step = which == 0 ? cpu->options.page_tokens : 1;

    for (uint32_t h = 0; h < cpu->arch->n_kv_heads; h++) {
        size_t head = ((size_t)attention_layer * cpu->arch->n_kv_heads + h) * 2 + (which != 0);
        const unsigned char *at = cpu->kv + page * cpu->page_bytes + head * cpu->kv_head_bytes;

        for (size_t i = 0; i < D; i++)
            hr_dequantize(dtype, at + ((which == 0 ? offset : offset * D) + i * step) * cpu->kv_value_bytes,
                          out + h * D + i, 1);
    }
}

const hr_backend_ops hr_backend_cpu = {
    .name = "cpu",
    .max_steps_in_flight = 1,
    .sizes = sizes,
    .open = open_instance,
    .close = close_instance,
    .batch = batch,
    .step_begin = step_begin,
    .step_wait = step_wait,
    .copy_slot = copy_slot,
    .copy_page = copy_page,
    .compute_name = compute_name,
    .n_threads = n_threads,
    .read_slot = read_slot,
    .read_kv = read_kv,
};

/* What lies where on the device, and the host memory beside it.
 *
 * One block is taken at open and nothing afterwards. It holds, in this order, weights, pages, convolution states and
 * tables by slot, and scratch. The scratch is not in use while weights are loaded, so it lends its first bytes as the
 * place where weights arrive (cuda_weights.c). All of it is zeroed: padding must be zero for good, and a page's unused
 * rows must not be NaN.
 */
#include "backend/cuda/cuda.h"

#include <inttypes.h>
#include <string.h>

enum {
    PAGE_TOKENS_MAX = 1024,
    ROWS_MAX = 1 << 16,
    ROW_ALIGNMENT = 64,      /* row buffers end where a tile of rows ends */
    CHUNK_ITEMS_PER_ROW = 4, /* decode attention rounds: some 2,048 keys a row at once */
};

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* ---------------------------------------------------------------- layout */

static void lay_out_slots(hr_cuda *cuda, size_t n, hr_carver *c)
{
    hrk_tables *t = &cuda->tables;

    cuda->state = hr_carve(c, 2 * n * cuda->state_values, sizeof *cuda->state);
    t->next_token = hr_carve(c, n, sizeof *t->next_token);
    t->page_table = hr_carve(c, n * cuda->max_pages, sizeof *t->page_table);
    t->sampling = hr_carve(c, n, sizeof *t->sampling);
    t->bias = hr_carve(c, n * HRK_BIAS_MAX, sizeof *t->bias);
    t->stop_ids = hr_carve(c, n * HRK_STOP_IDS_MAX, sizeof *t->stop_ids);
    t->seen = hr_carve(c, n * t->seen_ld, sizeof *t->seen);
}

static size_t bytes_a_slot(const hr_cuda *cuda)
{
    return 2 * cuda->state_values * sizeof(hrk_bf16) + sizeof(int32_t) + cuda->max_pages * sizeof(uint32_t) +
           sizeof(hrk_sampling) + HRK_BIAS_MAX * sizeof(hrk_bias) + HRK_STOP_IDS_MAX * sizeof(int32_t) +
           cuda->tables.seen_ld * sizeof(uint16_t);
}

static void lay_out_moe(hr_cuda *cuda, size_t T, hr_carver *c)
{
    const hr_arch *arch = &cuda->model->arch;
    size_t E = arch->n_experts, K = arch->n_experts_used;
    hrk_routing *r = &cuda->routing;

    r->E = arch->n_experts;
    r->K = arch->n_experts_used;
    r->ids = hr_carve(c, T * K, sizeof *r->ids);
    r->weights = hr_carve(c, T * K, sizeof *r->weights);
    r->first = hr_carve(c, E + 1, sizeof *r->first);
    r->sorted = hr_carve(c, T * K, sizeof *r->sorted);
    r->place = hr_carve(c, T * K, sizeof *r->place);
    r->scratch = hr_carve(c, 1, hrk_route_scratch((uint32_t)T, r->E, r->K));
    cuda->expert_out = hr_carve(c, T * K, hrk_ld(arch->hidden_size) * sizeof(hrk_bf16));
}

/* Columns of the widest unfused operator product; 0 when all are fused. */
static size_t wide_cols(const hr_cuda *cuda)
{
    const hr_arch *arch = &cuda->model->arch;
    size_t conv = cuda->fuses_conv || arch->n_conv_layers == 0 ? 0 : hrk_ld(3 * arch->hidden_size);
    size_t qkv = cuda->fuses_qkv || arch->n_attention_layers == 0
                     ? 0
                     : hrk_ld((arch->n_heads + 2 * arch->n_kv_heads) * arch->head_dim);

    return largest(conv, qkv);
}

static void lay_out_rows(hr_cuda *cuda, hr_carver *c)
{
    const hr_arch *arch = &cuda->model->arch;
    size_t T = (cuda->options.max_rows + ROW_ALIGNMENT - 1) / ROW_ALIGNMENT * ROW_ALIGNMENT;
    size_t H = hrk_ld(arch->hidden_size), Q = hrk_ld(arch->n_heads * arch->head_dim);
    size_t act = largest(T * hrk_ld((uint32_t)hr_model_dense_width(cuda->model)),
                         T * arch->n_experts_used * hrk_ld(arch->expert_ffn_dim));

    cuda->tables.row_token = hr_carve(c, T, sizeof(int32_t));
    cuda->tables.row_position = hr_carve(c, T, sizeof(uint32_t));
    cuda->tables.row_span = hr_carve(c, T, sizeof(uint32_t));
    cuda->x = hr_carve(c, T * H, sizeof(hrk_bf16));
    cuda->xn = hr_carve(c, T * H, sizeof(hrk_bf16));
    cuda->mix = hr_carve(c, T * largest(H, Q), sizeof(hrk_bf16));
    cuda->q = hr_carve(c, T * Q, sizeof(hrk_bf16));
    cuda->wide = hr_carve(c, T * wide_cols(cuda), sizeof(hrk_bf16));
    cuda->act = hr_carve(c, act, sizeof(hrk_bf16));
    cuda->attention_scratch = hr_carve(
        c, 1, hrk_attention_scratch(cuda->options.max_rows, cuda->max_chunk_items, arch->n_heads, arch->head_dim));
    if (arch->n_experts > 0)
        lay_out_moe(cuda, T, c);
    for (int i = 0; i < 2 && hr_cuda_has_taps(cuda); i++)
        cuda->tap_rows[i] = hr_carve(c, T * hrk_ld((uint32_t)cuda->tap_cols), sizeof(hrk_bf16));
}

static void lay_out_outputs(hr_cuda *cuda, hr_carver *c)
{
    const hr_arch *arch = &cuda->model->arch;
    size_t n = (cuda->options.max_outputs + ROW_ALIGNMENT - 1) / ROW_ALIGNMENT * ROW_ALIGNMENT;
    size_t V = hrk_ld(arch->vocab_size);

    cuda->final = hr_carve(c, n * hrk_ld(arch->hidden_size), sizeof(hrk_bf16));
    cuda->logits = hr_carve(c, n * V, sizeof(float));
    cuda->sampler_scratch = hr_carve(c, n * V, sizeof(float));
    cuda->samples = hr_carve(c, n, sizeof(hrk_sample));
    cuda->tops = hr_carve(c, n * HRK_TOP_MAX, sizeof(hrk_top));
}

void hr_cuda_lay_out(hr_cuda *cuda, hr_carver *c)
{
    size_t at = c->used;

    hr_cuda_lay_out_weights(cuda, c);
    cuda->rope = hr_carve(c, (size_t)cuda->max_context * cuda->model->arch.head_dim, sizeof(float));
    cuda->weight_bytes = c->used - at;
    at = c->used;
    cuda->kv = hr_carve(c, cuda->n_pages, cuda->page_bytes);
    cuda->kv_bytes = c->used - at;
    at = c->used;
    lay_out_slots(cuda, cuda->n_slots, c);
    cuda->state_bytes = c->used - at;
    at = c->used;
    cuda->scratch = c->base ? c->base + at : NULL;
    cuda->tables.step = hr_carve(c, 1, cuda->upload_bytes);
    lay_out_rows(cuda, c);
    lay_out_outputs(cuda, c);
    if (c->used - at < 2 * cuda->staging_bytes)
        (void)hr_carve(c, 1, 2 * cuda->staging_bytes - (c->used - at));
    cuda->scratch_bytes = c->used - at;
}

/* ---------------------------------------------------------------- planning */

static headrace_status check_options(const hr_model *model, const hr_backend_options *o, headrace_error *err)
{
    if (model->layers == NULL || (model->embedding.data == NULL && !model->is_dummy))
        return hr_fail(err, HEADRACE_E_ARGUMENT, "the model was opened without weights");
    if (o->page_tokens == 0 || o->page_tokens > PAGE_TOKENS_MAX)
        return hr_fail_param(err, HEADRACE_E_ARGUMENT, "page_tokens", "page_tokens is %u, must be 1 .. %d",
                             o->page_tokens, PAGE_TOKENS_MAX);
    if (o->kv_dtype == HR_KV_F32)
        return hr_fail_param(err, HEADRACE_E_UNSUPPORTED, "kv_cache_dtype",
                             "kv_cache_dtype f32 is for the CPU; on a GPU keys and values are bf16");
    if (o->max_rows == 0 || o->max_rows > ROWS_MAX || o->max_spans == 0 || o->max_outputs == 0 || o->max_page_refs == 0)
        return hr_fail(
            err, HEADRACE_E_ARGUMENT,
            "capacities of %u rows, %u spans, %u outputs, %u pages; each must be at least 1, rows at most %d",
            o->max_rows, o->max_spans, o->max_outputs, o->max_page_refs, ROWS_MAX);
    if (o->n_valid_ids > model->arch.vocab_size)
        return hr_fail(err, HEADRACE_E_ARGUMENT, "%u valid ids of a vocabulary of %u", o->n_valid_ids,
                       model->arch.vocab_size);
    if (model->arch.conv_length > HRK_CONV_LENGTH_MAX || model->arch.head_dim % 2 != 0 || model->arch.head_dim > 256)
        return hr_fail(err, HEADRACE_E_UNSUPPORTED,
                       "a convolution of %u taps and heads of %u; a GPU takes up to %d taps and even heads up to 256",
                       model->arch.conv_length, model->arch.head_dim, HRK_CONV_LENGTH_MAX);
    return HEADRACE_OK;
}

static bool has_conv_bias(const hr_model *model)
{
    for (uint32_t i = 0; i < model->arch.n_layers; i++) {
        const hr_conv_weights *conv = &model->layers[i].conv;

        if (model->layers[i].operator== HR_OPERATOR_CONV &&(conv->in_bias || conv->conv_bias))
            return true;
    }
    return false;
}

/* Which kernels: the fused ones where device and shapes allow (their files name the limits). */
static void choose_kernels(hr_cuda *cuda)
{
    const hr_arch *arch = &cuda->model->arch;
    const char *wish = getenv("HEADRACE_CUDA");
    uint32_t P = cuda->options.page_tokens;
    bool has_pages = P >= 8 && P <= 128 && (P & (P - 1)) == 0;
    bool has_heads = arch->head_dim == 64 && arch->n_kv_heads > 0 && arch->n_heads / arch->n_kv_heads <= 8;

    cuda->is_tiled = cuda->device.major == 9 && !(wish && strcmp(wish, "portable") == 0);
    cuda->fuses_conv =
        cuda->is_tiled && arch->conv_length <= 4 && arch->hidden_size % 64 == 0 && !has_conv_bias(cuda->model);
    cuda->fuses_attention = cuda->is_tiled && has_heads && has_pages;
    cuda->fuses_qkv = cuda->fuses_attention;
    wish = getenv("HEADRACE_CUDA_QUANTISED");
    cuda->keeps_quantised = cuda->is_tiled && !cuda->model->is_dummy && !(wish && strcmp(wish, "0") == 0);
    wish = getenv("HEADRACE_CUDA_PROGRAMMATIC");
    cuda->is_programmatic = cuda->device.major >= 9 && !(wish && strcmp(wish, "0") == 0); /* older devices refuse */
    (void)snprintf(cuda->compute_name, sizeof cuda->compute_name, "%s sm_%d%d%s %s bf16", cuda->device.name,
                   cuda->device.major, cuda->device.minor, cuda->is_tiled ? "a" : "",
                   cuda->fuses_conv && cuda->fuses_attention ? "fused"
                   : cuda->is_tiled                          ? "tiled"
                                                             : "portable");
}

/* How much of decode attention runs at once, so that its scratch stays small whatever the context. */
static void bound_attention(hr_cuda *cuda)
{
    uint32_t rows = cuda->options.max_rows;
    uint32_t longest = (cuda->max_context + HRK_DECODE_CHUNK - 1) / HRK_DECODE_CHUNK;
    uint64_t all = (uint64_t)rows * longest, wanted = largest((size_t)CHUNK_ITEMS_PER_ROW * rows, longest);

    cuda->max_chunk_items = (uint32_t)(wanted < all ? wanted : all);
    /* A round is closed when the next item does not fit. */
    cuda->max_rounds = (uint32_t)(all / (cuda->max_chunk_items - longest + 1)) + 1;
    cuda->max_prefill_tiles = rows / HRK_PREFILL_TILE + cuda->options.max_spans;
}

headrace_status hr_cuda_plan(hr_cuda *cuda, const hr_model *model, const hr_backend_options *options,
                             headrace_error *err)
{
    const hr_arch *arch = &model->arch;
    uint64_t covered = (uint64_t)options->max_page_refs * options->page_tokens;
    hr_carver count = {.alignment = HR_CUDA_ALIGNMENT};

    HR_PASS(check_options(model, options, err));
    cuda->base.ops = &hr_backend_cuda;
    cuda->model = model;
    cuda->arch = arch;
    cuda->options = *options;
    HR_PASS(hr_cuda_probe(options->device_index, &cuda->device, err));
    choose_kernels(cuda);
    cuda->n_valid_ids = options->n_valid_ids > 0 ? options->n_valid_ids : arch->vocab_size;
    cuda->max_context = covered < arch->max_positions ? (uint32_t)covered : arch->max_positions;
    cuda->max_pages = (cuda->max_context + options->page_tokens - 1) / options->page_tokens;
    cuda->tables.max_pages = cuda->max_pages;
    cuda->tables.seen_ld = (arch->vocab_size + 7) / 8 * 8;
    cuda->page_bytes = (size_t)2 * arch->n_attention_layers * arch->n_kv_heads * options->page_tokens * arch->head_dim *
                       sizeof(hrk_bf16);
    cuda->page_bytes = (cuda->page_bytes + 127) / 128 * 128;
    cuda->state_values = hr_arch_state_values(arch);
    cuda->slot_bytes = bytes_a_slot(cuda);
    cuda->tap_cols = largest(largest(arch->hidden_size, arch->n_experts), (size_t)arch->n_heads * arch->head_dim);
    bound_attention(cuda);
    cuda->staging_bytes = hr_cuda_staging_bytes(cuda);
    cuda->upload_bytes = hr_cuda_upload_bytes(cuda);
    cuda->layers = calloc(arch->n_layers, sizeof *cuda->layers);
    if (!cuda->layers)
        return hr_fail(err, HEADRACE_E_MEMORY, "no memory for the tables of %u layers", arch->n_layers);
    hr_cuda_lay_out(cuda, &count);
    if (count.overflows)
        return hr_fail(err, HEADRACE_E_MEMORY, "%u rows and %u pages exceed the address space", options->max_rows,
                       cuda->n_pages);
    return HEADRACE_OK;
}

/* ---------------------------------------------------------------- taking */

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static headrace_status fail_memory(const hr_cuda *cuda, uint64_t need, headrace_error *err)
{
    uint64_t fixed = cuda->weight_bytes + cuda->scratch_bytes + cuda->state_bytes, have = cuda->device.free_bytes;
    uint64_t pages = have > fixed && cuda->page_bytes > 0 ? (have - fixed) / cuda->page_bytes : 0;
    char head[96] = "";

    if (cuda->second_head_bytes > 0)
        (void)snprintf(head, sizeof head, " (%.1f of them the embedding once more, tiled for the logits)",
                       mib(cuda->second_head_bytes));
    if (pages > 0)
        return hr_fail_param(
            err, HEADRACE_E_MEMORY, "kv_cache_bytes",
            "GPU %u (%s) has %.1f MiB free of %.1f, this needs %.1f: weights %.1f%s, %u sequences %.1f, "
            "scratch %.1f, %u pages of %u tokens %.1f. %" PRIu64 " pages fit: try --kv-cache-memory %" PRIu64
            "M or a smaller --max-model-len",
            cuda->device.index, cuda->device.name, mib(have), mib(cuda->device.total_bytes), mib(need),
            mib(cuda->weight_bytes), head, cuda->n_slots, mib(cuda->state_bytes), mib(cuda->scratch_bytes),
            cuda->n_pages, cuda->options.page_tokens, mib(cuda->kv_bytes), pages, pages * cuda->page_bytes >> 20);
    return hr_fail_param(err, HEADRACE_E_MEMORY, "max_num_batched_tokens",
                         "GPU %u (%s) has %.1f MiB free of %.1f, this needs %.1f before any page: weights %.1f%s, %u "
                         "sequences %.1f, scratch for %u rows a step %.1f. Try fewer --max-num-batched-tokens and "
                         "--max-num-seqs, a smaller model, or a GPU with more free memory",
                         cuda->device.index, cuda->device.name, mib(have), mib(cuda->device.total_bytes), mib(fixed),
                         mib(cuda->weight_bytes), head, cuda->n_slots, mib(cuda->state_bytes), cuda->options.max_rows,
                         mib(cuda->scratch_bytes));
}

static void *pieces(size_t n, size_t size, bool *failed)
{
    void *memory = calloc(n > 0 ? n : 1, size);

    *failed |= memory == NULL;
    return memory;
}

static headrace_status take_host_memory(hr_cuda *cuda, headrace_error *err)
{
    const hr_backend_options *o = &cuda->options;
    size_t act_cols =
        largest(hr_model_dense_width(cuda->model), (size_t)cuda->arch->n_experts_used * cuda->arch->expert_ffn_dim);
    bool failed = false;

    for (uint32_t i = 0; i < HR_CUDA_IN_FLIGHT; i++) {
        hr_batch *batch = &cuda->batches[i];

        batch->token_ids = pieces(o->max_rows, sizeof *batch->token_ids, &failed);
        batch->spans = pieces(o->max_spans, sizeof *batch->spans, &failed);
        batch->pages = pieces(o->max_page_refs, sizeof *batch->pages, &failed);
        batch->outputs = pieces(o->max_outputs, sizeof *batch->outputs, &failed);
        batch->samples = pieces(o->max_outputs, sizeof *batch->samples, &failed);
    }
    cuda->slots = pieces(cuda->n_slots, sizeof *cuda->slots, &failed);
    cuda->slot_token = pieces(cuda->n_slots, sizeof *cuda->slot_token, &failed);
    cuda->page_mirror = pieces((size_t)cuda->n_slots * cuda->max_pages, sizeof *cuda->page_mirror, &failed);
    cuda->row_span = pieces(o->max_rows, sizeof *cuda->row_span, &failed);
    cuda->changes.pages = pieces(HR_CUDA_PAGE_UPDATES, sizeof *cuda->changes.pages, &failed);
    cuda->changes.sampling = pieces(o->max_outputs, sizeof *cuda->changes.sampling, &failed);
    cuda->changes.history = pieces(o->max_outputs, sizeof *cuda->changes.history, &failed);
    cuda->changes.payload = pieces(HR_CUDA_PAYLOAD_WORDS, sizeof *cuda->changes.payload, &failed);
    if (hr_cuda_has_taps(cuda))
        cuda->tap_values = pieces(largest(largest(o->max_rows, o->max_outputs) * largest(cuda->tap_cols, act_cols),
                                          (size_t)o->max_outputs * cuda->arch->vocab_size),
                                  sizeof *cuda->tap_values, &failed);
    if (failed)
        return hr_fail(err, HEADRACE_E_MEMORY, "no host memory for the tables of %u rows and %u sequences", o->max_rows,
                       cuda->n_slots);
    for (uint32_t i = 0; i < cuda->n_slots; i++)
        cuda->slot_token[i] = -1;
    memset(cuda->page_mirror, 0xFF, (size_t)cuda->n_slots * cuda->max_pages * sizeof *cuda->page_mirror);
    return HEADRACE_OK;
}

static headrace_status take_pinned(hr_cuda *cuda, headrace_error *err)
{
    cuda->readback_bytes = hrk_ld(cuda->arch->vocab_size) * sizeof(float);
    HR_CUDA_TRY(cuda, cudaMallocHost((void **)&cuda->readback, cuda->readback_bytes));
    for (uint32_t i = 0; i < HR_CUDA_IN_FLIGHT; i++) {
        hr_cuda_flight *f = &cuda->flights[i];
        size_t n = cuda->options.max_outputs;

        HR_CUDA_TRY(cuda, cudaMallocHost((void **)&f->upload, cuda->upload_bytes));
        HR_CUDA_TRY(cuda, cudaMallocHost((void **)&f->samples, n * sizeof *f->samples));
        HR_CUDA_TRY(cuda, cudaMallocHost((void **)&f->tops, n * HRK_TOP_MAX * sizeof *f->tops));
        HR_CUDA_TRY(cuda, cudaEventCreateWithFlags(&f->begun, cudaEventDefault));
        HR_CUDA_TRY(cuda, cudaEventCreateWithFlags(&f->ended, cudaEventDefault));
    }
    return HEADRACE_OK;
}

headrace_status hr_cuda_take_memory(hr_cuda *cuda, headrace_error *err)
{
    uint64_t need = (uint64_t)cuda->weight_bytes + cuda->kv_bytes + cuda->state_bytes + cuda->scratch_bytes;
    hr_carver place = {.alignment = HR_CUDA_ALIGNMENT};
    void *memory = NULL;
    cudaError_t code;

    HR_PASS(take_host_memory(cuda, err));
    if (need > cuda->device.free_bytes)
        return fail_memory(cuda, need, err);
    code = cudaMalloc(&memory, need);
    if (code == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return fail_memory(cuda, need, err);
    }
    HR_PASS(hr_cuda_check(cuda, (int)code, "cudaMalloc", err));
    cuda->arena = memory;
    place.base = cuda->arena;
    hr_cuda_lay_out(cuda, &place);
    HR_CUDA_TRY(cuda, cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking));
    HR_CUDA_TRY(cuda, cudaMemsetAsync(cuda->arena, 0, need, cuda->stream));
    return take_pinned(cuda, err);
}

void hr_cuda_give_memory(hr_cuda *cuda)
{
    if (cuda->stream) /* first: a recording that failed keeps memory from being freed until its stream is gone */
        (void)cudaStreamDestroy(cuda->stream);
    for (uint32_t i = 0; i < HR_CUDA_IN_FLIGHT; i++) {
        hr_cuda_flight *f = &cuda->flights[i];
        hr_batch *batch = &cuda->batches[i];

        if (f->begun)
            (void)cudaEventDestroy(f->begun);
        if (f->ended)
            (void)cudaEventDestroy(f->ended);
        (void)cudaFreeHost(f->upload);
        (void)cudaFreeHost(f->samples);
        (void)cudaFreeHost(f->tops);
        free(batch->token_ids);
        free(batch->spans);
        free(batch->pages);
        free(batch->outputs);
        free(batch->samples);
    }
    (void)cudaFreeHost(cuda->readback);
    (void)cudaFree(cuda->arena);
    free(cuda->slots);
    free(cuda->slot_token);
    free(cuda->page_mirror);
    free(cuda->row_span);
    free(cuda->changes.pages);
    free(cuda->changes.sampling);
    free(cuda->changes.history);
    free(cuda->changes.payload);
    free(cuda->tap_values);
    free(cuda->layers);
}

/* What a step gave, from the device to the batch.
 *
 * Samples are copied into pinned memory behind the step's kernels, and an event tells when they are there; step_wait
 * waits for it and writes them into the batch. Raw logits are large and wanted only by research and tests: a step that
 * asks for them copies them before it returns, piece by piece.
 */
#include "backend/cuda/cuda.h"

#include <string.h>

headrace_status hr_cuda_read(hr_cuda *cuda, const void *from, void *to, size_t n, headrace_error *err)
{
    for (size_t at = 0; at < n; at += cuda->readback_bytes) {
        size_t count = n - at < cuda->readback_bytes ? n - at : cuda->readback_bytes;

        HR_CUDA_TRY(cuda, cudaMemcpyAsync(cuda->readback, (const unsigned char *)from + at, count,
                                          cudaMemcpyDeviceToHost, cuda->stream));
        HR_CUDA_TRY(cuda, cudaStreamSynchronize(cuda->stream));
        memcpy((unsigned char *)to + at, cuda->readback, count);
    }
    return HEADRACE_OK;
}

static headrace_status copy_logits(hr_cuda *cuda, const hr_batch *batch, headrace_error *err)
{
    size_t V = cuda->arch->vocab_size, ld = hrk_ld(cuda->arch->vocab_size);

    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        if (batch->outputs[i].logits)
            HR_PASS(hr_cuda_read(cuda, cuda->logits + i * ld, batch->outputs[i].logits, V * sizeof(float), err));
    }
    return HEADRACE_OK;
}

static bool wants_tops(const hr_batch *batch)
{
    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        if (batch->outputs[i].n_logprobs > 0)
            return true;
    }
    return false;
}

headrace_status hr_cuda_fetch_results(hr_cuda *cuda, hr_cuda_flight *flight, headrace_error *err)
{
    const hr_batch *batch = flight->batch;
    size_t n = batch->n_outputs;

    if (n > 0)
        HR_CUDA_TRY(cuda, cudaMemcpyAsync(flight->samples, cuda->samples, n * sizeof *flight->samples,
                                          cudaMemcpyDeviceToHost, cuda->stream));
    if (wants_tops(batch))
        HR_CUDA_TRY(cuda, cudaMemcpyAsync(flight->tops, cuda->tops, n * HRK_TOP_MAX * sizeof *flight->tops,
                                          cudaMemcpyDeviceToHost, cuda->stream));
    HR_CUDA_TRY(cuda, cudaEventRecord(flight->ended, cuda->stream));
    return copy_logits(cuda, batch, err);
}

static void write_sample(const hr_output *output, const hrk_sample *from, const hrk_top *tops, hr_sample *to)
{
    *to = (hr_sample){.id = -1};
    if (output->score_id < 0 && !output->sampling)
        return;
    to->id = from->id;
    to->is_bad = from->is_bad != 0;
    if (output->n_logprobs < 0)
        return;
    to->logprob = from->logprob;
    to->rank = from->rank;
    to->n_top = output->n_logprobs > 0 && from->n_top <= HEADRACE_LOGPROBS_MAX ? from->n_top : 0;
    for (uint32_t i = 0; i < to->n_top; i++) {
        to->top_ids[i] = tops[i].id;
        to->top_logprobs[i] = tops[i].logprob;
    }
}

headrace_status hr_cuda_wait_results(hr_cuda *cuda, hr_cuda_flight *flight, headrace_error *err)
{
    float milliseconds = 0;

    HR_CUDA_TRY(cuda, cudaEventSynchronize(flight->ended));
    HR_CUDA_TRY(cuda, cudaEventElapsedTime(&milliseconds, flight->begun, flight->ended));
    cuda->last_step_us = (uint64_t)(milliseconds > 0 ? (double)milliseconds * 1000 : 0);
    for (uint32_t i = 0; i < flight->batch->n_outputs; i++)
        write_sample(&flight->batch->outputs[i], &flight->samples[i], &flight->tops[(size_t)i * HRK_TOP_MAX],
                     &flight->batch->samples[i]);
    return HEADRACE_OK;
}

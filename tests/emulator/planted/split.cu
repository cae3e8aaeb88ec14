// Softmax-weighted sums of rows, keys split over blocks; the last block of a row to finish merges the parts.
#include "device.h"

namespace planted
{

namespace
{

constexpr uint32_t D = 32, SPLITS = 3, CHUNK = 16, N_KEYS = 41, ROWS = 2;

struct Parts {
    float *sum;         // [ROWS, SPLITS, D]
    float *max, *total; // [ROWS, SPLITS]
    uint32_t *counter;  // [ROWS], zero before and after
};

// One thread a dimension; every thread keeps the row's maximum and total.
template <Fault F>
__global__ void __launch_bounds__(D) split(float *out, const float *scores, const float *values, Parts parts)
{
    __shared__ uint32_t is_last;
    const uint32_t row = blockIdx.y, part = row * SPLITS + blockIdx.x, d = threadIdx.x;
    float max = -INFINITY, total = 0, sum = 0;

    for (uint32_t key = blockIdx.x * CHUNK; key < (blockIdx.x + 1) * CHUNK; key++) {
        if (F == KEY_MASK_OFF_BY_ONE ? key > N_KEYS : key >= N_KEYS)
            break;
        const float score = scores[row * SPLITS * CHUNK + key], new_max = fmaxf(max, score);
        const float scale = F == NO_RESCALE ? 1.0f : expf(max - new_max), weight = expf(score - new_max);
        total = total * scale + weight;
        sum = sum * scale + weight * values[key * D + d];
        max = new_max;
    }
    parts.sum[part * D + d] = sum;
    if (d == 0) {
        parts.max[part] = max;
        parts.total[part] = total;
    }
    __threadfence();
    __syncthreads();
    if (d == 0) {
        is_last = prim::atomic_add_acq_rel(&parts.counter[row], 1) == SPLITS - (F == WRONG_COUNT ? 0 : 1);
        if (is_last && F != COUNTER_NOT_RESET)
            parts.counter[row] = 0;
    }
    if (F != FLAG_WITHOUT_BARRIER)
        __syncthreads();
    if (!is_last) // reported: FLAG_WITHOUT_BARRIER
        return;
    float merged_max = -INFINITY, merged_total = 0, merged = 0;
    for (uint32_t i = row * SPLITS; i < (row + 1) * SPLITS; i++)
        merged_max = fmaxf(merged_max, parts.max[i]);
    for (uint32_t i = row * SPLITS; i < (row + 1) * SPLITS; i++) {
        const float weight = expf(parts.max[i] - merged_max);
        merged_total += weight * parts.total[i];
        merged += weight * parts.sum[i * D + d];
    }
    out[row * D + d] = merged / merged_total;
}

template <Fault F> struct LaunchSplit {
    static int run(float *out, const float *scores, const float *values, const Parts &parts)
    {
        return hrk::launch(split<F>, {dim3(SPLITS, ROWS), dim3(D), 0}, &ON, out, scores, values, parts);
    }
};

bool is_right(const std::vector<float> &out, const std::vector<float> &scores, const std::vector<float> &values)
{
    if (out.empty())
        return false;
    for (uint32_t row = 0; row < ROWS; row++)
        for (uint32_t d = 0; d < D; d++) {
            double total = 0, sum = 0;
            for (uint32_t key = 0; key < N_KEYS; key++) {
                const double weight = exp(static_cast<double>(scores[row * SPLITS * CHUNK + key]));
                total += weight;
                sum += weight * static_cast<double>(values[key * D + d]);
            }
            if (!is_close(out[row * D + d], static_cast<float>(sum / total), 1e-4f))
                return false;
        }
    return true;
}

} // namespace

bool run_split(Fault fault)
{
    std::vector<float> scores(ROWS * SPLITS * CHUNK), values(SPLITS * CHUNK * D);
    uint32_t state = 7;

    for (float &v : scores)
        v = 4 * next_random(&state);
    for (float &v : values)
        v = next_random(&state);
    DeviceArray<float> d_scores(scores), d_values(values), d_out(ROWS * D);
    DeviceArray<float> sum(ROWS * SPLITS * D), max(ROWS * SPLITS), total(ROWS * SPLITS);
    DeviceArray<uint32_t> counter(std::vector<uint32_t>(ROWS, 0));
    const Parts parts = {sum.get(), max.get(), total.get(), counter.get()};
    for (int run = 0; run < 2; run++) { // the counter must serve twice
        d_out.fill(0xff);
        const int error =
            launch_one<LaunchSplit, NONE, NO_RESCALE, KEY_MASK_OFF_BY_ONE, COUNTER_NOT_RESET, FLAG_WITHOUT_BARRIER,
                       WRONG_COUNT>(fault, d_out.get(), d_scores.get(), d_values.get(), parts);
        if (error || !is_right(d_out.values(), scores, values))
            return false;
    }
    return true;
}

} // namespace planted

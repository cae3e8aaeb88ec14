/* What an engine promises: every limit as a number, decided at open from the options, the model and the memory at hand.
 */
#ifndef HR_ENGINE_LIMITS_H
#define HR_ENGINE_LIMITS_H

#include "engine/engine.h"

enum {
    HR_DEFAULT_BATCHED_TOKENS = 512,
    HR_DEFAULT_PAGE_TOKENS = 16,
    HR_DEFAULT_SEQS_MAX = 256,
    HR_DEFAULT_MODEL_LEN_MAX = 32768,
    HR_PAGE_TOKENS_MAX = 1024,
    HR_SEQS_MAX = 4096,
    HR_BATCHED_TOKENS_MAX = 65536,
    /* On a device. Rows: where a step begins to take longer than the reading of the weights; many experts, more rows.
     */
    HR_DEVICE_BATCHED_TOKENS = 2048,
    HR_DEVICE_BATCHED_TOKENS_MANY_EXPERTS = 3072,
    HR_MANY_EXPERTS = 64,
    HR_DEVICE_PAGE_TOKENS = 64,
    HR_DEVICE_SEQS = 1024,
    /* One part in so many of a device is left to the driver, which takes memory for graphs and kernels after us. */
    HR_DEVICE_RESERVE_SHARE = 64,
};
#define HR_DEVICE_MEMORY_UTILIZATION 0.9
#define HR_DEFAULT_KV_BYTES_MAX ((uint64_t)4 << 30)
#define HR_DEFAULT_QUEUE_TIMEOUT_US 60000000u

typedef struct hr_limits {
    uint32_t max_model_len, max_num_seqs, max_num_batched_tokens, max_num_queued_reqs, page_tokens, n_pages,
        max_outputs;
    uint32_t pages_per_sequence;    /* of a sequence of max_model_len */
    uint64_t max_num_queued_tokens; /* UINT64_MAX: no limit */
    uint64_t queue_timeout_us;
} hr_limits;

/* Fills what does not depend on memory: page_tokens. Needed to ask the backend for its page_bytes. E_ARGUMENT. */
headrace_status hr_limits_page_tokens(const hr_engine_config *config, uint32_t *page_tokens, headrace_error *err);
/* Decides the rest. sizes: page_bytes and slot_bytes of one page and slot; available_bytes: memory that may be used for
 * them. On a device (backend_ops->device_memory) all of it is taken, on the host a part, which is shared with others.
 * Errors: E_ARGUMENT (the option in param), E_MEMORY (says what fits and which option helps). */
headrace_status hr_limits_decide(const hr_engine_config *config, const hr_arch *arch, const hr_backend_sizes *sizes,
                                 uint64_t available_bytes, hr_limits *out, headrace_error *err);
/* Memory of a device that pages and slots may take: the utilization's part of it as far as it is free, less
 * scratch_bytes. E_ARGUMENT, E_MEMORY. */
headrace_status hr_limits_device_bytes(const hr_engine_config *config, const hr_device_memory *memory,
                                       uint64_t scratch_bytes, uint64_t *out, headrace_error *err);
/* Memory that this process may still take: what the system calls available, less if a control group allows less. */
uint64_t hr_available_memory(void);

#endif

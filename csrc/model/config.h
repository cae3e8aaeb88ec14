/* What a checkpoint says of itself, before its tensors are looked at. Internal to the model room.
 *
 * Both sources (config.json, GGUF metadata) fill the same hr_config and pass the same hr_config_check, so that no
 * backend ever meets a size that was not looked at. What is required is required: the class defaults of the family's
 * configuration describe no released model, so a missing size is refused, not guessed. Where released checkpoints may
 * be silent (expert switches, conv_bias) the values are those of every release.
 */
#ifndef HR_MODEL_CONFIG_H
#define HR_MODEL_CONFIG_H

#include "model/model.h"

typedef struct hr_config {
    hr_arch arch;
    hr_operator operators[HR_LAYERS_MAX];
    bool conv_bias, is_tied;
    const char *ffn_key, *expert_ffn_key; /* where the two widths were read, for warnings */
} hr_config;

/* Reads config.json (a Hugging Face folder's). path is for messages. E_MODEL names the field and the value. */
headrace_status hr_config_from_json(const char *text, size_t len, const char *path, hr_config *out,
                                    headrace_error *err);
/* Reads the metadata of an opened GGUF file. */
headrace_status hr_config_from_gguf(const hr_gguf *gguf, hr_config *out, headrace_error *err);

/* Completes what follows from the rest (layer counts, the second end id) and refuses sizes that contradict each other.
 */
headrace_status hr_config_finish(hr_config *config, const char *path, headrace_error *err);

/* The width of the dense feed-forward that a configured one means (docs/formats.md). false: the result is no sensible
 * number. */
bool hr_ffn_width(uint64_t configured, bool auto_adjust, double multiplier, uint64_t multiple_of, uint32_t *out);

/* Adds an end-of-sequence id once; E_MODEL when the id is outside the vocabulary or there are more than HR_EOS_MAX. */
headrace_status hr_arch_add_eos(hr_arch *arch, int64_t id, const char *path, headrace_error *err);

/* Values in all weights (a tied head counts once), and those a token passes through. */
void hr_arch_count_parameters(const hr_arch *arch, bool is_tied, bool conv_bias, uint64_t *total, uint64_t *active);

/* generation_config.json: end ids go into arch; sampling values, if it holds any, into *hint (source set). A missing
 * file is no error and leaves hint->source NULL. */
headrace_status hr_generation_config_read(const char *path, hr_arch *arch, hr_sampling_hint *hint, headrace_error *err);
/* general.sampling.* of a GGUF file; hint->source stays NULL if there are none. */
headrace_status hr_gguf_sampling_read(const hr_gguf *gguf, hr_sampling_hint *hint, headrace_error *err);
/* The model card's values for the family that the path or name tells, else for the architecture. */
hr_sampling_hint hr_card_sampling(const hr_arch *arch, const char *path, const char *name);
/* A hint that says nothing. */
hr_sampling_hint hr_no_sampling(void);

/* Binds the tensors of model->file to roles. Fills layers, matrices, vectors; arch.ffn_dim and .expert_ffn_dim follow
 * the tensors. */
headrace_status hr_model_bind(hr_model *model, const hr_config *config, headrace_error *err);

/* Instead of binding: layers and matrices as configured, without bytes; vectors with values (hr_model.is_dummy). */
headrace_status hr_model_make_dummy(hr_model *model, const hr_config *config, headrace_error *err);

#endif

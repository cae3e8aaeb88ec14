/* What the commands share: finding and opening a model and an engine, progress, exit codes. */
#ifndef HR_CLI_PROGRAM_H
#define HR_CLI_PROGRAM_H

#include "base/buffer.h"
#include "cli/options.h"
#include "headrace.h"

/* The commands. Each parses its own arguments and returns the exit code. argv[0] is the command's name. */
int hr_cmd_serve(int argc, char **argv);
int hr_cmd_run(int argc, char **argv);
int hr_cmd_info(int argc, char **argv);
int hr_cmd_tokenize(int argc, char **argv);
int hr_cmd_bench(int argc, char **argv);
int hr_cmd_logits(int argc, char **argv);
int hr_cmd_score(int argc, char **argv);
int hr_cmd_imatrix(int argc, char **argv);
int hr_cmd_compare(int argc, char **argv);
int hr_cmd_convert(int argc, char **argv);
int hr_cmd_doctor(int argc, char **argv);
int hr_cmd_version(int argc, char **argv);

/* Prints "headrace: MESSAGE" on stderr and returns the exit code for the status. */
int hr_report(const headrace_error *err);
/* How much is said on stderr: --quiet and --verbose, else --log-level, whichever came from the stronger source. */
headrace_log_level hr_log_level(const hr_options *options);
/* For the commands that log: sends the library's lines to stderr by that level. */
void hr_setup_log(const hr_options *options);

/* Says so on stderr and returns HR_EXIT_MEMORY. */
int hr_out_of_memory(void);

/* Which model is meant: when the command has all its positional arguments, the given one; else --model or --hf
 * (whichever came from the stronger source), else the given positional argument. 0 and *path (malloc'ed), or an exit
 * code after printing why not. *used_argument tells whether the positional argument was the model. */
int hr_model_path(const hr_options *options, uint32_t argument, char **path, bool *used_argument);
/* Looks for ORG/NAME[:QUANT] in the local Hub cache; never asks the network. 0 and *path (malloc'ed), or an exit code
 * after printing what is wrong with the reference or the command that downloads it. */
int hr_hub_find(const char *reference, char **path);
typedef struct hr_model_choice {
    uint32_t argument;         /* which positional argument names the model */
    const char *chat_template; /* NULL: the checkpoint's own */
    bool ignore_generation_config, skip_weights;
} hr_model_choice;
/* Opens the model that the options mean, with progress on a terminal. 0 or an exit code, after printing what was wrong.
 * *used_argument as in hr_model_path. */
int hr_open_model(const hr_options *options, const hr_model_choice *choice, headrace_model **out, bool *used_argument);
/* vllm_flags.c, for the commands that have an engine: the flags that only vLLM needs, before a model is opened and
 * after. 0 or an exit code, after printing what is right here. */
int hr_check_vllm_flags(const hr_options *options);
int hr_check_dtype(const hr_options *options, const headrace_model *model);
/* Says which of them have no effect on the device in use. */
void hr_warn_vllm_flags(const hr_options *options, const headrace_engine *engine);
/* Engine options from the flags that serve, run and bench share. */
void hr_engine_options_from(const hr_options *options, headrace_engine_options *out);
/* Opens an engine. 0 or an exit code, after printing what was wrong. */
int hr_open_engine(const hr_options *options, headrace_model *model, const headrace_engine_options *engine_options,
                   headrace_engine **out);
/* Speculative decoding as the flags ask for it. *draft: the draft model, opened, for the caller to close after the
 * engine, also after a failure; NULL: none. 0 or an exit code after printing why not. */
int hr_speculation_from(const hr_options *options, headrace_engine_options *out, headrace_model **draft);
/* Five lines on stderr: what was loaded and how memory is divided. */
void hr_print_summary(const headrace_model *model, const headrace_engine *engine);

/* Computing options from the flags of the commands that need no engine; --exact, which not all have, is left out. */
headrace_compute_options hr_compute_options_from(const hr_options *options);
/* Whether --out may be written; says why not. Asked before hours of computing, not after. What is not an ordinary file
 * is left alone: the result is renamed into place, and would take the place of a device. */
bool hr_can_write(const char *path);

/* Ids of a text file, with --special its special tokens as such; *ids is freed with headrace_free. 0 or an exit code
 * after printing why not; a text without a token is refused. */
int hr_read_text_ids(const hr_options *options, const headrace_model *model, const char *path, int32_t **ids,
                     size_t *n_ids, size_t *n_bytes);
/* Reads a JSON list of lists of token ids. Freed with hr_id_lists_free. Returns 0 or an exit code after printing. */
typedef struct hr_id_lists {
    int32_t **ids; /* [n][n_ids[i]] */
    size_t *n_ids;
    size_t n;
} hr_id_lists;
int hr_read_id_lists(const char *path, uint32_t vocab_size, hr_id_lists *out);
void hr_id_lists_free(hr_id_lists *lists);
/* Ids in the longest of them. */
size_t hr_longest_list(const hr_id_lists *lists);

/* Waits until the descriptor is readable or the time is over. */
void hr_wait_readable(int fd, int timeout_ms);
/* "1.2 GiB", in a buffer of the caller. */
const char *hr_format_bytes(uint64_t n_bytes, char text[32]);

#endif

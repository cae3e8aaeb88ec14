/* The option table. A new option is one row here; argp's table, help, environment, configuration file and
 * --print-config follow. */
#include "cli/option_table.h"

#define WITH_MODEL                                                                                             \
    (HR_FOR_SERVE | HR_FOR_RUN | HR_FOR_INFO | HR_FOR_TOKENIZE | HR_FOR_BENCH | HR_FOR_LOGITS | HR_FOR_SCORE | \
     HR_FOR_COMPARE)
#define WITH_ENGINE (HR_FOR_SERVE | HR_FOR_RUN | HR_FOR_BENCH)
#define WITH_COMPUTE (WITH_ENGINE | HR_FOR_LOGITS | HR_FOR_SCORE | HR_FOR_COMPARE)
#define WITH_JSON (HR_FOR_INFO | HR_FOR_TOKENIZE | HR_FOR_BENCH | HR_FOR_SCORE | HR_FOR_COMPARE | HR_FOR_DOCTOR)
#define ALL ((unsigned)-1)

const hr_option_group hr_option_groups[] = {
    {"model", "Model:"},      {"device", "Computing:"}, {"max-model-len", "Engine:"}, {"host", "Server:"},
    {"system", "Answering:"}, {"special", "Text:"},     {"ids", "Measuring:"},        {"verbose", "Every command:"},
};
const uint32_t hr_option_group_count = sizeof hr_option_groups / sizeof hr_option_groups[0];

const hr_option_def hr_option_table[] = {
    /* model */
    {"model", NULL, 'm', HR_OPTION_TEXT, "PATH", NULL, WITH_MODEL,
     "folder with safetensors, .gguf file, or \"tiny\" (instead of the argument)"},
    {"hf", NULL, 0, HR_OPTION_TEXT, "ORG/NAME[:QUANT]", NULL, WITH_MODEL, "model in the local Hugging Face Hub cache"},
    {"chat-template", NULL, 0, HR_OPTION_TEXT, "NAME|FILE", NULL, HR_FOR_SERVE | HR_FOR_RUN,
     "use this chat template instead of the checkpoint's"},
    {"generation-config", NULL, 0, HR_OPTION_TEXT, "auto|none", "auto", HR_FOR_SERVE | HR_FOR_RUN,
     "sampling defaults; auto: of generation_config.json, none: of the model card"},
    {"load-format", NULL, 0, HR_OPTION_TEXT, "auto|dummy", "auto", WITH_MODEL,
     "dummy: random weights of the configured sizes, made on the CUDA device, to measure speed"},
    /* computing */
    {"device", NULL, 0, HR_OPTION_TEXT, "auto|cpu|cuda|cuda:N", "auto", WITH_COMPUTE,
     "where to compute; auto: a GPU if there is one to use"},
    {"threads", NULL, 't', HR_OPTION_UINT, "N", "0", WITH_COMPUTE, "CPU threads; 0: one a physical core"},
    {"exact", NULL, 0, HR_OPTION_BOOL, NULL, "no", WITH_ENGINE | HR_FOR_LOGITS | HR_FOR_SCORE,
     "the plain fp32 path: slow, the oracle of every other"},
    {"kv-cache-dtype", NULL, 0, HR_OPTION_TEXT, "auto|bf16|f32", "auto", WITH_COMPUTE,
     "element type of keys and values"},
    {"deterministic", NULL, 0, HR_OPTION_BOOL, NULL, "yes", WITH_ENGINE,
     "a request's tokens never depend on what else runs: the CPU always computes so"},
    {"dtype", NULL, 0, HR_OPTION_TEXT, "auto|bfloat16|float16|float32", "auto", WITH_ENGINE,
     "weights run in the file's own dtype; any other is refused"},
    {"quantization", NULL, 0, HR_OPTION_TEXT, "auto|gguf", "auto", WITH_ENGINE,
     "weights are used as the file has them"},
    {"tensor-parallel-size", NULL, 0, HR_OPTION_UINT, "N", "1", WITH_ENGINE,
     "also -tp; only 1: one device runs the whole model"},
    {"gpu-memory-utilization", NULL, 0, HR_OPTION_REAL, "F", "0.9", WITH_ENGINE,
     "part of a GPU's memory that may be used; no effect on the CPU"},
    {"chunk", NULL, 0, HR_OPTION_UINT, "N", "0", HR_FOR_LOGITS | HR_FOR_SCORE | HR_FOR_COMPARE, "rows a step; 0: 512"},
    /* engine */
    {"max-model-len", "ctx-size", 'c', HR_OPTION_UINT, "N", "0", WITH_ENGINE,
     "prompt + output tokens; 0: from the model"},
    {"max-num-seqs", "parallel", 0, HR_OPTION_UINT, "N", "0", WITH_ENGINE,
     "sequences that run at once; 0: by memory; also -np"},
    {"max-num-batched-tokens", NULL, 'b', HR_OPTION_UINT, "N", "0", WITH_ENGINE,
     "rows a step; 0: 512 on the CPU, 2048 or 3072 on a GPU"},
    {"max-num-queued-reqs", NULL, 0, HR_OPTION_UINT, "N", "0", HR_FOR_SERVE, "waiting requests; 0: 4 x max-num-seqs"},
    {"max-num-queued-tokens", NULL, 0, HR_OPTION_UINT64, "N", "0", HR_FOR_SERVE, "waiting prompt tokens; 0: no limit"},
    {"queue-timeout", NULL, 0, HR_OPTION_REAL, "S", "60", HR_FOR_SERVE, "seconds a request may wait before 503"},
    {"kv-cache-memory", NULL, 0, HR_OPTION_SIZE, "SIZE", "0", WITH_ENGINE,
     "memory for keys and values; 0: by free memory"},
    {"block-size", NULL, 0, HR_OPTION_UINT, "N", "0", WITH_ENGINE,
     "tokens a page of the KV cache; 0: 16 on the CPU, 64 on a GPU"},
    {"enable-prefix-caching", NULL, 0, HR_OPTION_BOOL, NULL, "yes", HR_FOR_SERVE | HR_FOR_RUN,
     "reuse pages of equal prefixes"},
    {"seed", NULL, 0, HR_OPTION_UINT64, "N", "0", WITH_ENGINE, "for requests that bring no seed of their own"},
    /* server */
    {"host", NULL, 0, HR_OPTION_TEXT, "ADDR", "127.0.0.1", HR_FOR_SERVE, "address to listen on, or unix:PATH"},
    {"port", NULL, 0, HR_OPTION_UINT, "N", "8000", HR_FOR_SERVE, "0: any free port, which the ready line names"},
    {"served-model-name", "alias", 'a', HR_OPTION_LIST, "NAME", NULL, HR_FOR_SERVE, "names the model answers to"},
    {"api-key", NULL, 0, HR_OPTION_LIST, "KEY", NULL, HR_FOR_SERVE, "clients must send one of these"},
    {"api-key-file", NULL, 0, HR_OPTION_TEXT, "FILE", NULL, HR_FOR_SERVE, "one key a line"},
    {"allowed-origins", NULL, 0, HR_OPTION_LIST, "ORIGIN", NULL, HR_FOR_SERVE, "CORS origins; * for all"},
    {"max-n", NULL, 0, HR_OPTION_UINT, "N", "16", HR_FOR_SERVE, "choices a request may ask for"},
    {"max-logprobs", NULL, 0, HR_OPTION_UINT, "N", "20", HR_FOR_SERVE, "alternatives a token"},
    {"max-body", NULL, 0, HR_OPTION_SIZE, "SIZE", "16mi", HR_FOR_SERVE, "longest request body"},
    {"max-header", NULL, 0, HR_OPTION_SIZE, "SIZE", "32ki", HR_FOR_SERVE, "longest request head"},
    {"max-connections", NULL, 0, HR_OPTION_UINT, "N", "8192", HR_FOR_SERVE, "open connections"},
    {"io-threads", NULL, 0, HR_OPTION_UINT, "N", "0", HR_FOR_SERVE, "HTTP threads; 0: half the cores, 1 to 4"},
    {"header-timeout", NULL, 0, HR_OPTION_REAL, "S", "10", HR_FOR_SERVE, "seconds for a request head to arrive"},
    {"body-timeout", NULL, 0, HR_OPTION_REAL, "S", "30", HR_FOR_SERVE, "seconds a request body may be silent"},
    {"idle-timeout", "timeout-keep-alive", 0, HR_OPTION_REAL, "S", "75", HR_FOR_SERVE,
     "seconds a kept connection may be idle"},
    {"slow-client-timeout", NULL, 0, HR_OPTION_REAL, "S", "60", HR_FOR_SERVE,
     "seconds a client may take nothing of its answer"},
    {"shutdown-timeout", NULL, 0, HR_OPTION_REAL, "S", "30", HR_FOR_SERVE,
     "seconds to finish running requests on SIGTERM"},
    {"reasoning-parser", NULL, 0, HR_OPTION_TEXT, "auto|none", "auto", HR_FOR_SERVE,
     "part <think> text from the answer, or leave it in"},
    {"tool-call-parser", NULL, 0, HR_OPTION_TEXT, "lfm2|none", "lfm2", HR_FOR_SERVE,
     "read tool calls out of the answer, or leave them as text"},
    {"enable-auto-tool-choice", NULL, 0, HR_OPTION_BOOL, NULL, "yes", HR_FOR_SERVE,
     "let the model call tools; no: as --tool-call-parser none"},
    {"enable-per-request-metrics", NULL, 0, HR_OPTION_BOOL, NULL, "no", HR_FOR_SERVE,
     "add times and speed to each answer"},
    {"metrics", NULL, 0, HR_OPTION_BOOL, NULL, "yes", HR_FOR_SERVE, "serve /metrics"},
    {"metrics-prefix", NULL, 0, HR_OPTION_TEXT, "NAME", "headrace", HR_FOR_SERVE, "\"vllm\" gives vLLM's metric names"},
    {"webui", NULL, 0, HR_OPTION_BOOL, NULL, "yes", HR_FOR_SERVE, "serve a page to chat on at /"},
    {"log-requests", NULL, 0, HR_OPTION_BOOL, NULL, "yes", HR_FOR_SERVE, "one line a request (never its text)"},
    {"log-format", NULL, 0, HR_OPTION_TEXT, "text|json", "text", HR_FOR_SERVE, "format of the line a request"},
    {"print-config", NULL, 0, HR_OPTION_BOOL, NULL, "no", HR_FOR_SERVE, "show every option with its source and exit"},
    /* answering */
    {"system", NULL, 's', HR_OPTION_TEXT, "TEXT", NULL, HR_FOR_RUN, "system message"},
    {"raw", NULL, 0, HR_OPTION_BOOL, NULL, "no", HR_FOR_RUN,
     "continue the prompt as plain text, without a chat template"},
    {"max-tokens", NULL, 'n', HR_OPTION_UINT, "N", "0", HR_FOR_RUN, "longest answer; 0: rest of the context"},
    {"temperature", "temp", 0, HR_OPTION_REAL, "X", NULL, HR_FOR_RUN, "0: greedy; default: the model's"},
    {"top-k", NULL, 0, HR_OPTION_UINT, "N", NULL, HR_FOR_RUN, "0: off; default: the model's"},
    {"top-p", NULL, 0, HR_OPTION_REAL, "X", NULL, HR_FOR_RUN, "default: the model's"},
    {"min-p", NULL, 0, HR_OPTION_REAL, "X", NULL, HR_FOR_RUN, "default: the model's"},
    {"repetition-penalty", NULL, 0, HR_OPTION_REAL, "X", NULL, HR_FOR_RUN, "default: the model's"},
    {"stop", NULL, 0, HR_OPTION_LIST, "TEXT", NULL, HR_FOR_RUN, "end the answer at this text"},
    /* text */
    {"special", NULL, 0, HR_OPTION_BOOL, NULL, "no", HR_FOR_TOKENIZE, "recognise special tokens in the text"},
    {"bos", NULL, 0, HR_OPTION_BOOL, NULL, "no", HR_FOR_TOKENIZE, "put the beginning-of-sequence id in front"},
    /* files and measures */
    {"ids", NULL, 0, HR_OPTION_TEXT, "FILE.json", NULL, HR_FOR_LOGITS | HR_FOR_COMPARE,
     "JSON list of lists of token ids"},
    {"out", "output", 'o', HR_OPTION_TEXT, "FILE", NULL, HR_FOR_LOGITS, "safetensors file to write"},
    {"window", NULL, 0, HR_OPTION_UINT, "N", "512", HR_FOR_SCORE, "tokens scored at once, the first being bos"},
    {"tolerance", NULL, 0, HR_OPTION_REAL, "X", "0.05", HR_FOR_COMPARE,
     "largest difference relative to the tensor's largest value"},
    {"input-len", NULL, 0, HR_OPTION_UINT, "N", "512", HR_FOR_BENCH, "prompt tokens"},
    {"output-len", NULL, 0, HR_OPTION_UINT, "N", "128", HR_FOR_BENCH, "generated tokens"},
    {"num-iters", NULL, 0, HR_OPTION_UINT, "N", "3", HR_FOR_BENCH, "latency: measured runs, after one to warm up"},
    {"num-prompts", NULL, 0, HR_OPTION_UINT, "N", "16", HR_FOR_BENCH, "throughput: requests in all"},
    {"max-concurrency", NULL, 0, HR_OPTION_UINT, "N", "8", HR_FOR_BENCH, "throughput: requests at once"},
    {"json", NULL, 0, HR_OPTION_BOOL, NULL, "no", WITH_JSON, "one JSON object on stdout"},
    /* every command */
    {"verbose", NULL, 'v', HR_OPTION_BOOL, NULL, "no", ALL, "debug lines on stderr"},
    {"quiet", NULL, 'q', HR_OPTION_BOOL, NULL, "no", ALL, "only results and errors"},
    {"log-level", NULL, 0, HR_OPTION_TEXT, "error|warning|info|debug", "info", ALL,
     "error is --quiet, debug is --verbose"},
    {"color", NULL, 0, HR_OPTION_TEXT, "auto|always|never", "auto", ALL,
     "accepted; nothing is printed in colour, with or without NO_COLOR"},
    {"config", NULL, 0, HR_OPTION_TEXT, "FILE", NULL, ALL, "lines of `name = value` with the names above"},
};
const uint32_t hr_option_count = sizeof hr_option_table / sizeof hr_option_table[0];

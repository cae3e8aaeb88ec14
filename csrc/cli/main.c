/* headrace: one program, verbs first. This file only finds the verb; each command is a file of its own (cmd_*.c). */
#include "cli/program.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"serve", hr_cmd_serve, "OpenAI-compatible HTTP server"},
    {"run", hr_cmd_run, "one answer, or a chat on a terminal"},
    {"info", hr_cmd_info, "what a model file holds"},
    {"tokenize", hr_cmd_tokenize, "token ids and pieces of a text"},
    {"bench", hr_cmd_bench, "bench latency | throughput: speed of this machine"},
    {"logits", hr_cmd_logits, "logits of token ids, to a safetensors file"},
    {"score", hr_cmd_score, "perplexity of a text file, and divergence from a base model"},
    {"imatrix", hr_cmd_imatrix, "importance of weight columns over a calibration text"},
    {"compare", hr_cmd_compare, "first place where the fast path leaves the plain one"},
    {"convert", hr_cmd_convert, "a model as a GGUF file: f16, q8_0, q4_k_m, ..."},
    {"doctor", hr_cmd_doctor, "what this machine grants"},
    {"version", hr_cmd_version, "version and build"},
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_help(FILE *to)
{
    (void)fputs("usage: headrace COMMAND [MODEL] [OPTION...]\n\n", to);
    for (size_t i = 0; i < N_COMMANDS; i++)
        (void)fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].help);
    (void)fputs("\nMODEL is a folder with safetensors, a .gguf file, or \"tiny\", the model that comes with headrace.\n"
                "`headrace COMMAND --help` lists the options; each has an environment twin, HEADRACE_NAME.\n"
                "\n  headrace run tiny \"Who are you?\"\n  headrace serve model.gguf --port 8000\n",
                to);
}

int main(int argc, char **argv)
{
    static char version[] = "version";

    (void)signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        print_help(stderr);
        return HR_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return HR_EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0)
        argv[1] = version;
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            int code = commands[i].run(argc - 1, argv + 1);

            if (fflush(stdout) != 0 || ferror(stdout)) {
                (void)fputs("headrace: writing to stdout failed\n", stderr);
                return code != 0 ? code : HR_EXIT_FAILURE;
            }
            return code;
        }
    }
    (void)fprintf(stderr, "headrace: unknown command \"%s\"\n\n", argv[1]);
    print_help(stderr);
    return HR_EXIT_USAGE;
}

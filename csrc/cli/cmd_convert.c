/* headrace convert: a model as a GGUF file. The work is the library's; here are progress, Ctrl-C and the result's line.
 *
 * Ctrl-C and SIGTERM only set a flag, which the library asks for several times a second: it then removes what it wrote.
 * A second one ends the program at once, as anywhere.
 */
#include "cli/program.h"

#include "base/clock.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { BAR_CELLS = 30, REDRAW_US = 100000, LINE_US = 5000000 };

static volatile sig_atomic_t was_interrupted;

static void on_signal(int number)
{
    (void)number;
    was_interrupted = 1;
}

static void watch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};

    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
}

typedef struct progress {
    bool is_terminal, is_quiet, is_shown;
    uint64_t started_us, shown_us;
} progress;

/* A bar that is redrawn on a terminal; elsewhere a line every five seconds. */
static void show(progress *p, uint64_t done, uint64_t total)
{
    uint64_t now = hr_now_us(), elapsed = now - p->started_us, rate = elapsed ? done * 1000000 / elapsed : 0;
    unsigned percent = total ? (unsigned)(done * 100 / total) : 100, cells = percent * BAR_CELLS / 100;
    char done_text[32], total_text[32], rate_text[32], bar[BAR_CELLS + 1];

    if (now - p->shown_us < (p->is_terminal ? REDRAW_US : LINE_US))
        return;
    p->shown_us = now;
    p->is_shown = true;
    for (unsigned i = 0; i < BAR_CELLS; i++)
        bar[i] = i < cells ? '#' : '.';
    bar[BAR_CELLS] = '\0';
    (void)fprintf(stderr,
                  p->is_terminal ? "\r[%s] %3u%%, %s of %s, %s/s, %llu s left \033[K"
                                 : "[%s] %3u%%, %s of %s, %s/s, %llu s left\n",
                  bar, percent, hr_format_bytes(done, done_text), hr_format_bytes(total, total_text),
                  hr_format_bytes(rate, rate_text), (unsigned long long)(rate ? (total - done) / rate : 0));
    (void)fflush(stderr);
}

static bool on_progress(uint64_t done, uint64_t total, void *user)
{
    progress *p = user;

    if (!p->is_quiet)
        show(p, done, total);
    return !was_interrupted;
}

static int convert(const hr_options *options, const char *path, const char *out)
{
    headrace_convert_options how;
    headrace_convert_info info;
    headrace_error err = {0};
    progress shown = {.started_us = hr_now_us(), .is_terminal = isatty(STDERR_FILENO) == 1};
    headrace_status status;
    char size[32];

    shown.shown_us = shown.started_us;
    shown.is_quiet = hr_log_level(options) < HEADRACE_LOG_INFO;
    headrace_convert_options_init(&how);
    how.path = path;
    how.out = out;
    how.type = hr_option_text(options, "type");
    how.imatrix = hr_option_text(options, "imatrix");
    how.n_threads = hr_option_u32(options, "threads");
    how.replace = hr_option_bool(options, "force");
    how.allow_requantize = hr_option_bool(options, "allow-requantize");
    how.progress = on_progress;
    how.progress_user = &shown;
    watch_signals();
    status = headrace_convert(&how, &info, &err);
    if (shown.is_shown && shown.is_terminal)
        (void)fputs("\r\033[K", stderr);
    if (status != HEADRACE_OK)
        return hr_report(&err);
    (void)printf("%s: %s, %s, %.2f bits a weight, %u tensors, %.1f s\n", info.path, info.type,
                 hr_format_bytes(info.n_bytes, size), (double)info.n_bytes * 8 / (double)info.n_parameters,
                 info.n_tensors, (double)(hr_now_us() - shown.started_us) / 1e6);
    headrace_free(info.path);
    return HR_EXIT_OK;
}

int hr_cmd_convert(int argc, char **argv)
{
    hr_options *options =
        hr_options_parse(argc, argv, HR_FOR_CONVERT, "[MODEL] [OUT.gguf]",
                         "Writes a model as a GGUF file of another type. Without OUT the file is NAME-TYPE.gguf in the "
                         "model's folder. A "
                         "run that fails, is stopped or is killed leaves nothing under that name; run it again.",
                         0, 2);
    bool used;
    char *path;
    int code;

    hr_setup_log(options);
    if (!hr_option_text(options, "type")) {
        (void)fprintf(stderr, "headrace: convert needs --type, one of %s\n", headrace_convert_types());
        hr_options_destroy(options);
        return HR_EXIT_USAGE;
    }
    code = hr_model_path(options, 0, &path, &used);
    if (code == HR_EXIT_OK && !hr_options_argument(options, used ? 1 : 0) && hr_option_given(options, "hf") && !used) {
        (void)fputs("headrace: name the file to write, OUT.gguf: the Hub's cache is no place for it\n", stderr);
        code = HR_EXIT_USAGE;
    }
    if (code == HR_EXIT_OK)
        code = convert(options, path, hr_options_argument(options, used ? 1 : 0));
    free(path);
    hr_options_destroy(options);
    return code;
}

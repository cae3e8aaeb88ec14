// Which planted faults the emulation notices: every one of planted/, in at least one of the configurations that kernel
// tests run in, the marked ones in plain ones already; and the sound kernels pass in all of them.
#include <stdio.h>
#include <string.h>
#include <fstream>
#include <string>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
extern "C" {
#include <cmocka.h> // after the C++ library: it has macros of everyday names
}

#include "planted/planted.h"
#include "runtime.h"
#include "simt.h"

using namespace planted;

namespace
{

struct Kernel {
    const char *file;
    bool (*run)(Fault);
};
const Kernel PIPELINE = {"pipeline.cu", run_pipeline}, WINDOW = {"window.cu", run_window},
             CLUSTER = {"cluster.cu", run_cluster}, REDUCE = {"reduce.cu", run_reduce}, SPLIT = {"split.cu", run_split},
             CHAIN = {"chain.cu", run_chain};

struct Case {
    Fault fault;
    const char *name;
    const Kernel &kernel;
    bool is_seen_plain; // needs no instrumented kernels
    const char *report; // what the checked run says; null: a wrong result, or one of several reports
};
#define CASE(fault, kernel, is_seen_plain, report)   \
    {                                                \
        fault, #fault, kernel, is_seen_plain, report \
    }
const Case CASES[] = {
    CASE(WRONG_SWIZZLE, PIPELINE, true, nullptr),
    CASE(WRONG_FULL_PARITY, PIPELINE, true, nullptr),
    CASE(WRONG_EMPTY_PARITY, PIPELINE, true, "deadlock"),
    CASE(NO_FULL_WAIT, PIPELINE, true, "wgmma reads uninitialised"),
    CASE(NO_EMPTY_WAIT, PIPELINE, true, nullptr),
    CASE(EARLY_RELEASE, PIPELINE, true, "still being read by a wgmma of warp"),
    CASE(RELEASE_OF_ONE_WARP, PIPELINE, false, "still being read by a wgmma of warp 6"),
    CASE(SHORT_BYTES, PIPELINE, true, "bytes missing"),
    CASE(LONG_BYTES, PIPELINE, true, "128 bytes missing"),
    CASE(DESCRIPTOR_STEP, PIPELINE, true, nullptr),
    CASE(UNMASKED_TAIL, PIPELINE, true, nullptr),
    CASE(NO_PROXY_FENCE, PIPELINE, false, "without fence_proxy_async()"),
    CASE(NO_WGMMA_FENCE, PIPELINE, true, "without wgmma_fence()"),
    CASE(NO_WGMMA_WAIT, PIPELINE, true, "wgmma of warp 4 that has not been waited for"),
    CASE(EARLY_OVERWRITE, PIPELINE, true, "registers of A changed"),
    CASE(NO_ACCUMULATOR_RESET, PIPELINE, true, nullptr),
    CASE(NO_COPY_ARRIVAL, PIPELINE, true, "cp.async that has not been waited for"),
    CASE(NO_STORE_BARRIER, PIPELINE, true, nullptr),
    CASE(NO_STORE_FENCE, PIPELINE, false, "bulk store reads"),
    CASE(NO_STORE_READ_WAIT, PIPELINE, true, "a bulk store of warp 4 that has not been waited for"),
    CASE(STORE_NOT_COMMITTED, PIPELINE, true, "bulk store"),
    CASE(EXIT_WITH_STORE, PIPELINE, true, "exits without waiting for its bulk store"),
    CASE(BARRIER_COUNT, PIPELINE, true, nullptr),
    CASE(OVER_ARRIVAL, PIPELINE, true, nullptr),
    CASE(EMPTY_COUNT, PIPELINE, true, "1 of 5 arrivals"),
    CASE(NO_INIT_BARRIER, PIPELINE, true, nullptr),
    CASE(EXIT_WITH_LOAD, PIPELINE, true, "still in flight"),
    CASE(NO_CP_ASYNC_WAIT, WINDOW, true, "cp.async that has not been waited for"),
    CASE(NO_BARRIER_AFTER_WAIT, WINDOW, true, nullptr),
    CASE(NO_BARRIER_BEFORE_REFILL, WINDOW, true, nullptr),
    CASE(UNMASKED_COPY, WINDOW, true, "cp.async of 16 bytes out of bounds"),
    CASE(MASK_OFF_BY_ONE, WINDOW, true, nullptr),
    CASE(NO_TRANSPOSITION, WINDOW, true, nullptr),
    CASE(SHARED_OUT_OF_BOUNDS, WINDOW, true, "past the end of dynamic shared memory"),
    CASE(SHARED_UNINITIALISED, WINDOW, true, "read of uninitialised shared memory"),
    CASE(GLOBAL_OUT_OF_BOUNDS, WINDOW, true, "out of bounds"),
    CASE(NO_CLUSTER_BARRIER, CLUSTER, true, nullptr),
    CASE(WRONG_PEER, CLUSTER, true, nullptr),
    CASE(EXIT_BEFORE_PEER, CLUSTER, false, "of a block that has exited"),
    CASE(NO_SYNCTHREADS, REDUCE, true, nullptr),
    CASE(NO_SYNCWARP, REDUCE, true, nullptr),
    CASE(LANE_MISSING, REDUCE, true, "lanes ffffff7f"),
    CASE(MASK_MISSES_LANE, REDUCE, true, "is not in its mask"),
    CASE(SHORT_BUTTERFLY, REDUCE, true, nullptr),
    CASE(BARRIER_IN_BRANCH, REDUCE, true, nullptr),
    CASE(NO_RESCALE, SPLIT, true, nullptr),
    CASE(KEY_MASK_OFF_BY_ONE, SPLIT, true, nullptr),
    CASE(COUNTER_NOT_RESET, SPLIT, true, nullptr),
    CASE(FLAG_WITHOUT_BARRIER, SPLIT, false, nullptr),
    CASE(WRONG_COUNT, SPLIT, true, nullptr),
    CASE(NO_GRIDDEP_WAIT, CHAIN, true, "that the kernel before wrote"),
    CASE(READ_BEFORE_WAIT, CHAIN, false, "that the kernel before wrote"),
    CASE(WRITE_BEFORE_WAIT, CHAIN, false, "before griddep_wait() in a programmatic launch"),
    CASE(USE_AFTER_FREE, CHAIN, true, "freed"),
};

struct Setting {
    simt::Async async;
    uint64_t seed;
};
const Setting SETTINGS[] = {{simt::ASYNC_LATE, 0},   {simt::ASYNC_EARLY, 0},  {simt::ASYNC_RANDOM, 1},
                            {simt::ASYNC_RANDOM, 2}, {simt::ASYNC_RANDOM, 3}, {simt::ASYNC_LATE, 4}};

struct Outcome {
    bool is_right;
    std::string report;
};

Outcome run(const Kernel &kernel, Fault fault, const Setting &setting, bool is_checked)
{
    Outcome o;

    emu_reset();
    simt::take_report();
    simt::config.async = setting.async;
    simt::config.seed = setting.seed;
    simt::config.check = is_checked;
    o.is_right = kernel.run(fault);
    o.report = simt::take_report();
    if (!o.report.empty())
        o.is_right = false;
    return o;
}

// The line of the kernel that a report should name; 0: none is marked.
int marked_line(const Case &c)
{
    std::ifstream file(std::string(PLANTED_DIR "/") + c.kernel.file);
    std::string line;

    assert_true(file.is_open());
    for (int number = 1; std::getline(file, line); number++) {
        const size_t mark = line.find("// reported: "), at = line.find(c.name);
        if (mark == std::string::npos || at == std::string::npos || at < mark)
            continue;
        const char after = line[at + strlen(c.name)]; // '\0' at the end of the line
        if (after == ',' || after == 0)
            return number + (line.find("next line", mark) != std::string::npos);
    }
    return 0;
}

void check_report(const Case &c, const std::string &report)
{
    const int line = marked_line(c);
    const std::string place = std::string(c.kernel.file) + ":" + std::to_string(line);

    if (c.report && report.find(c.report) == std::string::npos)
        fail_msg("%s: the report should say \"%s\":\n%s", c.name, c.report, report.c_str());
    if (c.report && report.find("kernel planted::") == std::string::npos)
        fail_msg("%s: the report should name the kernel:\n%s", c.name, report.c_str());
    if (line && report.find(place) == std::string::npos)
        fail_msg("%s: the report should name %s:\n%s", c.name, place.c_str(), report.c_str());
}

void sound_kernels_pass_everywhere(void **)
{
    for (const Kernel &kernel : {PIPELINE, WINDOW, CLUSTER, REDUCE, SPLIT, CHAIN})
        for (const Setting &setting : SETTINGS)
            for (int is_checked = 0; is_checked <= (simt::is_checked_build() ? 1 : 0); is_checked++) {
                const Outcome o = run(kernel, NONE, setting, is_checked != 0);
                if (!o.is_right)
                    fail_msg("%s, copies %d, seed %d, checked %d: %s", kernel.file, setting.async,
                             static_cast<int>(setting.seed), is_checked,
                             o.report.empty() ? "wrong result" : o.report.c_str());
            }
}

void plain_runs_notice_what_they_can(void **)
{
    for (const Case &c : CASES) {
        bool is_noticed = false;
        for (const Setting &setting : SETTINGS)
            is_noticed = is_noticed || !run(c.kernel, c.fault, setting, false).is_right;
        if (c.is_seen_plain && !is_noticed)
            fail_msg("%s: not noticed by plain runs", c.name);
    }
}

void checked_runs_notice_every_fault_and_name_it(void **)
{
    if (!simt::is_checked_build())
        return; // test_planted_checked has them
    for (const Case &c : CASES) {
        const bool wants_report = c.report || marked_line(c);
        Outcome noticed = {true, ""};
        for (const Setting &setting : SETTINGS) {
            const Outcome o = run(c.kernel, c.fault, setting, true);
            if (!o.is_right && (noticed.is_right || (noticed.report.empty() && !o.report.empty())))
                noticed = o;
            if (!noticed.is_right && (!wants_report || !noticed.report.empty()))
                break;
        }
        if (noticed.is_right)
            fail_msg("%s: not noticed", c.name);
        if (wants_report)
            check_report(c, noticed.report);
    }
}

void every_fault_has_a_case(void **)
{
    for (int fault = NONE + 1; fault < N_FAULTS; fault++) {
        int n = 0;
        for (const Case &c : CASES)
            n += c.fault == fault;
        assert_int_equal(n, 1);
    }
}

} // namespace

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_fault_has_a_case),
        cmocka_unit_test(sound_kernels_pass_everywhere),
        cmocka_unit_test(plain_runs_notice_what_they_can),
        cmocka_unit_test(checked_runs_notice_every_fault_and_name_it),
    };

    simt::config.quiet = true;
    simt::config.threads = 1; // each run the same every time
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

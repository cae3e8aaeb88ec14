// What the tests of primitives share: device arrays, launches, reports. Include it before anything else.
#pragma once

#include <string>
#include <vector>

#include "planted/device.h"
#include "runtime.h"
#include "simt.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
extern "C" {
#include <cmocka.h> // after the C++ library: it has macros of everyday names
}

using planted::DeviceArray;

// Launches, waits, and fails the test on any error.
template <class... P, class... A>
void launch_well(void (*kernel)(P...), const hrk::LaunchShape &shape, A &&...arguments)
{
    const int error = hrk::launch(kernel, shape, &planted::ON, arguments...);

    if (error || cudaDeviceSynchronize() != cudaSuccess)
        fail_msg("%s", simt::take_report().c_str());
}

// Launches a kernel that must fail, and returns the report.
template <class... P, class... A>
std::string launch_badly(void (*kernel)(P...), const hrk::LaunchShape &shape, A &&...arguments)
{
    simt::config.quiet = true;
    assert_int_equal(hrk::launch(kernel, shape, &planted::ON, arguments...), cudaSuccess);
    assert_int_not_equal(cudaDeviceSynchronize(), cudaSuccess);
    simt::config.quiet = false;
    const std::string report = simt::take_report();
    emu_reset();
    return report;
}

inline void assert_says(const std::string &report, const char *text)
{
    if (report.find(text) == std::string::npos)
        fail_msg("no \"%s\" in: %s", text, report.c_str());
}

# Building .cu files as C++ on the emulation.
#
# hr_emulated_library(name a.cu ...): the static libraries `name` and `name_checked`, the latter with every memory access
# reported to the checks. Built only when something needs them.
# hr_emulated_kernel_test(name SOURCES test.cc ... [ROOMS linear ...] [LINKS target ...] [TIMEOUT seconds]): what
# hr_kernel_test makes here: a cmocka program on the kernels of ROOMS (default: the room of the folder's name), run as NAME (copies as late as can be), NAME_early, NAME_seed1 (random
# order of threads and copies) and NAME_checked. Not in a build with sanitizers: the emulation has checks of its own, and a
# sanitizer would see its fibers as one confused thread. Host code that drives kernels is tested under sanitizers all the same.
include(CheckCXXSourceRuns)
check_cxx_source_runs("int main() { return __builtin_cpu_supports(\"avx2\") && __builtin_cpu_supports(\"fma\") ? 0 : 1; }"
  HEADRACE_HAS_AVX2)

# -ffp-contract=off: a fused multiply-add is written by name, as in host code. Without the last two warnings the
# compilers would object to "#pragma unroll" (g++) or to not having followed it (clang).
set(KERNEL_OPTIONS -O2 -ffp-contract=off -fno-strict-aliasing -Wall -Wextra -Wshadow -Wno-unknown-pragmas
  $<$<CXX_COMPILER_ID:Clang>:-Wno-pass-failed> $<$<BOOL:${HEADRACE_HAS_AVX2}>:-march=x86-64-v3>
  $<$<BOOL:${HEADRACE_WERROR}>:-Werror>)
set(CHECKED_COMPILE ${CMAKE_CURRENT_LIST_DIR}/compile_checked.sh)

function(hr_emulated_library name)
  set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX)
  foreach(variant "" _checked)
    add_library(${name}${variant} STATIC EXCLUDE_FROM_ALL ${ARGN})
    target_include_directories(${name}${variant} PUBLIC ${PROJECT_SOURCE_DIR}/kernels)
    target_compile_options(${name}${variant} PRIVATE ${KERNEL_OPTIONS})
    target_link_libraries(${name}${variant} PUBLIC hr_simt)
  endforeach()
  # The sanitizer's instrumentation without its runtime: tests/emulator/instrument.cc answers.
  target_compile_options(${name}_checked PRIVATE -g -fsanitize=thread)
  set_target_properties(${name}_checked PROPERTIES CXX_COMPILER_LAUNCHER ${CHECKED_COMPILE})
endfunction()

function(hr_emulated_kernel_test name)
  if(HEADRACE_SANITIZE)
    return()
  endif()
  cmake_parse_arguments(TEST "" "TIMEOUT" "SOURCES;ROOMS;LINKS" ${ARGN})
  if(NOT TEST_ROOMS)
    get_filename_component(TEST_ROOMS ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  endif()
  if(NOT TEST_TIMEOUT)
    set(TEST_TIMEOUT 120)
  endif()
  foreach(variant "" _checked)
    set(program test_${name}${variant})
    add_executable(${program} ${TEST_SOURCES})
    target_include_directories(${program} PRIVATE ${PROJECT_SOURCE_DIR}/tests ${PROJECT_SOURCE_DIR}/kernels)
    target_compile_options(${program} PRIVATE ${KERNEL_OPTIONS})
    foreach(room ${TEST_ROOMS})
      target_link_libraries(${program} PRIVATE hr_kernels_${room}${variant})
    endforeach()
    target_link_libraries(${program} PRIVATE ${TEST_LINKS} hr_simt PkgConfig::CMOCKA m)
  endforeach()
  foreach(run "" _early _seed1)
    add_test(NAME ${name}${run} COMMAND test_${name})
    set_tests_properties(${name}${run} PROPERTIES LABELS kernels TIMEOUT ${TEST_TIMEOUT})
  endforeach()
  set_tests_properties(${name} PROPERTIES ENVIRONMENT "SIMT_ASYNC=late")
  set_tests_properties(${name}_early PROPERTIES ENVIRONMENT "SIMT_ASYNC=early")
  set_tests_properties(${name}_seed1 PROPERTIES ENVIRONMENT "SIMT_ASYNC=random;SIMT_SEED=1")
  add_test(NAME ${name}_checked COMMAND test_${name}_checked)
  set_tests_properties(${name}_checked PROPERTIES LABELS kernels TIMEOUT ${TEST_TIMEOUT} ENVIRONMENT "SIMT_CHECK=1")
endfunction()

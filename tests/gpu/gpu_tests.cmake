# The tests of the kernels and of the CUDA backend for a real GPU: the sources of tests/kernels and tests/csrc/backend/cuda,
# linked with what nvcc made and the static CUDA runtime where the other builds link the emulation. ./dev gpu runs them.
#
# hr_gpu_test(name SOURCES ... [LINKS ...]): the program gpu_test_NAME. No ctest entry: this machine may have no GPU.
#
# HRK_ON_GPU is defined, so that a test can be tolerant where a GPU's arithmetic is not the host's. on_device.c has what the
# tests ask of the emulated runtime, as far as a real one can answer. Not built for the GPU, since they are about the
# emulation or need what a real device cannot be told to do:
#
#   tests/emulator (test_planted, test_runtime)   the emulation itself; planted faults would hang or kill a GPU
#   test_cuda_faults                              errors on demand in every call of the runtime
#   what_a_gpu_cannot_do_is_said, too_little_memory_says_what_fits (of test_cuda_step)
#                                                 other devices, none, and little memory; on_device.c leaves them out
set(GPU_WRAPPED _cmocka_run_group_tests cudaMalloc cudaFree cudaMallocHost cudaFreeHost cudaLaunchKernelExC)
set(wraps)
foreach(function ${GPU_WRAPPED})
  list(APPEND wraps -Wl,--wrap=${function})
endforeach()

add_library(hr_on_device STATIC ${CMAKE_CURRENT_LIST_DIR}/on_device.c)
target_link_libraries(hr_on_device PUBLIC hr_flags hr_cuda PkgConfig::CMOCKA)
target_include_directories(hr_on_device PUBLIC ${PROJECT_SOURCE_DIR}/tests ${PROJECT_SOURCE_DIR}/tests/emulator)

add_custom_target(gpu_tests)
function(hr_gpu_test name)
  cmake_parse_arguments(TEST "" "" "SOURCES;LINKS" ${ARGN})
  set(program gpu_test_${name})
  add_executable(${program} EXCLUDE_FROM_ALL ${TEST_SOURCES})
  target_compile_definitions(${program} PRIVATE HRK_ON_GPU HEADRACE_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
    HEADRACE_TEST_DATA="${HEADRACE_TEST_DATA}" HEADRACE_BUILD_DIR="${CMAKE_BINARY_DIR}")
  target_include_directories(${program} PRIVATE ${PROJECT_SOURCE_DIR}/tests ${PROJECT_SOURCE_DIR}/tests/emulator
    ${PROJECT_SOURCE_DIR}/tests/gpu/include)
  target_link_libraries(${program} PRIVATE ${TEST_LINKS} $<LINK_ONLY:hr_on_device> hr_cuda PkgConfig::CMOCKA)
  target_link_options(${program} PRIVATE ${wraps})
  add_dependencies(gpu_tests ${program})
endfunction()

# Called by hr_kernel_test for every test in tests/kernels.
function(hr_gpu_kernel_test name)
  hr_gpu_test(kernel_${name} ${ARGN})
  target_compile_features(gpu_test_kernel_${name} PRIVATE cxx_std_17)
  target_compile_options(gpu_test_kernel_${name} PRIVATE -O2 -ffp-contract=off -Wall -Wextra -Wshadow
    $<$<BOOL:${HEADRACE_WERROR}>:-Werror>)
endfunction()

# Finds the CUDA toolkit (tests/tools/cuda_path.sh knows where) and makes
#
#   hr_cuda_headers   the CUDA headers and hrk.h, for everything that includes them: the emulation, too, needs no more
#
# HEADRACE_CUDA_ROOT names the toolkit by hand. HEADRACE_CUDA_FOUND says whether there is one.
set(HEADRACE_CUDA_ROOT "" CACHE PATH "CUDA toolkit (bin, include, lib); empty: look for one")
if(HEADRACE_CUDA_ROOT)
  set(cuda_environment ${CMAKE_COMMAND} -E env CUDA_HOME=${HEADRACE_CUDA_ROOT})
endif()
foreach(what nvcc include lib)
  execute_process(COMMAND ${cuda_environment} ${PROJECT_SOURCE_DIR}/tests/tools/cuda_path.sh ${what}
    OUTPUT_VARIABLE HEADRACE_CUDA_${what} OUTPUT_STRIP_TRAILING_WHITESPACE)
endforeach()
set(HEADRACE_CUDA_FOUND OFF)
if(HEADRACE_CUDA_include)
  set(HEADRACE_CUDA_FOUND ON)
  add_library(hr_cuda_headers INTERFACE)
  target_include_directories(hr_cuda_headers INTERFACE ${PROJECT_SOURCE_DIR}/kernels)
  target_include_directories(hr_cuda_headers SYSTEM INTERFACE ${HEADRACE_CUDA_include})
endif()

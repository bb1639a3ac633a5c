# The module `_cuda`: included where the Python modules are built. PRUNEFAST_CUDA is AUTO, ON or OFF.
set(PRUNEFAST_CUDA_ARCHITECTURES "80;90;100" CACHE STRING "Machine code for these; PTX of the last one for newer GPUs")

set(prunefast_with_cuda FALSE)
if(PRUNEFAST_CUDA STREQUAL "OFF")
  message(STATUS "prunefast: CUDA kernels left out (PRUNEFAST_CUDA=OFF); GPUs run Triton and torch")
elseif(PRUNEFAST_CUDA MATCHES "^(AUTO|ON)$")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # Until our own are known; CMake would ask for an architecture that new toolkits have dropped.
    set(CMAKE_CUDA_ARCHITECTURES OFF)
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
      set(prunefast_cuda_problem "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.8, the first to know sm_100")
    else()
      set(prunefast_with_cuda TRUE)
    endif()
  else()
    set(prunefast_cuda_problem "no working nvcc was found (PATH, CUDACXX)")
  endif()
  if(prunefast_with_cuda)
    message(STATUS "prunefast: CUDA kernels by nvcc ${CMAKE_CUDA_COMPILER_VERSION} for sm ${PRUNEFAST_CUDA_ARCHITECTURES}")
  elseif(PRUNEFAST_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PRUNEFAST_CUDA=ON: ${prunefast_cuda_problem}")
  else()
    message(STATUS "prunefast: no CUDA kernels: ${prunefast_cuda_problem}; GPUs run Triton and torch")
  endif()
else()
  message(FATAL_ERROR "PRUNEFAST_CUDA=${PRUNEFAST_CUDA}: AUTO, ON or OFF is needed")
endif()
if(NOT prunefast_with_cuda)
  return()
endif()

set(prunefast_cuda_sources
    csrc/cuda/add_noise.cu csrc/cuda/class_sums.cu csrc/cuda/denoising_loss.cu csrc/cuda/group_norm_silu.cu
    csrc/cuda/philox.cu csrc/cuda/runtime.cu)
pybind11_add_module(_cuda csrc/bindings/cuda.cpp ${prunefast_cuda_sources})
target_include_directories(_cuda PRIVATE csrc/include csrc/common csrc/cpu csrc/cuda)

list(TRANSFORM PRUNEFAST_CUDA_ARCHITECTURES APPEND "-real" OUTPUT_VARIABLE prunefast_cuda_targets)
list(GET PRUNEFAST_CUDA_ARCHITECTURES -1 prunefast_cuda_newest)
list(APPEND prunefast_cuda_targets "${prunefast_cuda_newest}-virtual")
string(REPLACE ";" ", " prunefast_cuda_names "${PRUNEFAST_CUDA_ARCHITECTURES}")
set_target_properties(
  _cuda
  PROPERTIES CUDA_ARCHITECTURES "${prunefast_cuda_targets}"
             CUDA_STANDARD 17
             CUDA_STANDARD_REQUIRED ON
             CUDA_VISIBILITY_PRESET hidden
             # Static: the kernels then work beside whatever runtime torch brings, given a driver that is new enough.
             CUDA_RUNTIME_LIBRARY Static
             # Link-time optimisation of the binding would rerun on every change and gains nothing.
             INTERPROCEDURAL_OPTIMIZATION OFF
             LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/prunefast_cuda.map)
target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--threads=1>)
target_compile_definitions(_cuda PRIVATE "PRUNEFAST_CUDA_ARCHITECTURES=\"${prunefast_cuda_names}\"")
target_link_options(_cuda PRIVATE -static-libstdc++ -static-libgcc
                    "LINKER:--version-script=${CMAKE_CURRENT_SOURCE_DIR}/csrc/prunefast_cuda.map")
install(TARGETS _cuda DESTINATION prunefast)

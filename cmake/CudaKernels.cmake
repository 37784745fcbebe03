# DYDIT_CUDA_KERNELS, the kernels of dydit/engine/cuda, and dydit_compile_cuda. nvcc is called by name: CMake's language
# CUDA wants a whole toolkit to link with, while here objects are linked to the libcudart that LibTorch brings.
find_program(DYDIT_NVCC nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
set(dydit_nvcc_fits OFF)
if(DYDIT_CUDA AND DYDIT_NVCC)
  execute_process(COMMAND "${DYDIT_NVCC}" --version OUTPUT_VARIABLE dydit_nvcc_version)
  if(dydit_nvcc_version MATCHES "release 13\\.")
    set(dydit_nvcc_fits ON)
  endif()
endif()
option(DYDIT_CUDA_KERNELS "Compile the own CUDA kernels, with CUDA 13's nvcc" ${dydit_nvcc_fits})
if(NOT DYDIT_CUDA)
  set(DYDIT_CUDA_KERNELS OFF)
elseif(DYDIT_CUDA_KERNELS AND NOT dydit_nvcc_fits)
  message(FATAL_ERROR "DYDIT_CUDA_KERNELS takes the nvcc of CUDA 13; found: ${DYDIT_NVCC}")
endif()
if(DYDIT_CUDA_KERNELS)
  message(STATUS "CUDA kernels: compiled for sm_80 and sm_90a by ${DYDIT_NVCC}")
  find_library(DYDIT_CUDART libcudart.so.13 PATHS "${DYDIT_LIBTORCH}/nvidia/cu13/lib" REQUIRED)
else()
  message(STATUS "CUDA kernels: not compiled, which takes the preset cuda and the nvcc of CUDA 13")
endif()

# dydit_compile_cuda(OUT sources...): objects of .cu files of this folder.
function(dydit_compile_cuda out)
  set(objects)
  foreach(source IN LISTS ARGN)
    set(object "${CMAKE_CURRENT_BINARY_DIR}/${source}.o")
    get_filename_component(folder "${object}" DIRECTORY)
    file(MAKE_DIRECTORY "${folder}")
    add_custom_command(OUTPUT "${object}" DEPENDS "${source}" DEPFILE "${object}.d" VERBATIM
      COMMAND "${DYDIT_NVCC}" -std=c++20 --expt-relaxed-constexpr -O3 -Xcompiler -fPIC "-I${PROJECT_SOURCE_DIR}"
              -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a
              -MD -MF "${object}.d" -c "${CMAKE_CURRENT_SOURCE_DIR}/${source}" -o "${object}")
    list(APPEND objects "${object}")
  endforeach()
  set(${out} ${objects} PARENT_SCOPE)
endfunction()

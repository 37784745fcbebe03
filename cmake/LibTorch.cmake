# The imported target dydit::libtorch: the CPU libraries of the LibTorch that lies in the PyPI wheel.
# TorchConfig.cmake is not used: that of the CUDA wheel demands a CUDA toolkit, which the CPU program does not need.
# Used by the build and, installed, by dyditConfig.cmake. Where LibTorch is not what it must be, nothing is defined
# and dydit_libtorch_error says why.
set(dydit_libtorch_error "")
if(NOT EXISTS "${DYDIT_LIBTORCH}/torch/lib/libtorch_cpu.so")
  set(dydit_libtorch_error "no LibTorch in ${DYDIT_LIBTORCH} (torch/lib/libtorch_cpu.so is missing)")
  return()
endif()
file(READ "${DYDIT_LIBTORCH}/torch/version.py" dydit_torch_version)
if(NOT dydit_torch_version MATCHES "__version__ = '(2\\.11\\.[0-9]+)")
  set(dydit_libtorch_error "${DYDIT_LIBTORCH} does not hold LibTorch 2.11")
  return()
endif()

add_library(dydit::libtorch INTERFACE IMPORTED)
target_include_directories(dydit::libtorch SYSTEM INTERFACE
  "${DYDIT_LIBTORCH}/torch/include" "${DYDIT_LIBTORCH}/torch/include/torch/csrc/api/include")
target_link_libraries(dydit::libtorch INTERFACE
  "${DYDIT_LIBTORCH}/torch/lib/libtorch_cpu.so" "${DYDIT_LIBTORCH}/torch/lib/libc10.so" Threads::Threads)

# at::parallel_for is a template that runs serially where it is compiled without OpenMP; LibTorch brings the
# runtime. Not under TSan, which cannot see the runtime's barriers.
if(NOT DYDIT_SANITIZE MATCHES "thread")
  target_compile_options(dydit::libtorch INTERFACE -fopenmp)
  target_link_libraries(dydit::libtorch INTERFACE "${DYDIT_LIBTORCH}/torch/lib/libgomp.so.1")
endif()

# The imported target dydit::libtorch_cuda: what registers the device CUDA when the program is loaded. No symbol of
# it is used by name, so without --no-as-needed the linker drops it silently. Its own needs (cuDNN, cuSPARSELt,
# NVSHMEM, cuFile, ...) are found beside LibTorch when the program starts; no toolkit has all of them at link time.
if(DYDIT_CUDA)
  set(dydit_torch_lib "${DYDIT_LIBTORCH}/torch/lib")
  if(NOT EXISTS "${dydit_torch_lib}/libtorch_cuda.so")
    message(FATAL_ERROR "${DYDIT_LIBTORCH} holds a LibTorch without CUDA (torch/lib/libtorch_cuda.so is missing): "
            "set DYDIT_LIBTORCH to a folder made by scripts/setup, or build another preset")
  endif()
  add_library(dydit::libtorch_cuda INTERFACE IMPORTED)
  target_link_libraries(dydit::libtorch_cuda INTERFACE "-Wl,--push-state,--no-as-needed,\
${dydit_torch_lib}/libtorch_cuda.so,${dydit_torch_lib}/libc10_cuda.so,--pop-state"
    "${DYDIT_LIBTORCH}/nvidia/cu13/lib/libcudart.so.13")
  target_include_directories(dydit::libtorch_cuda SYSTEM INTERFACE "${DYDIT_LIBTORCH}/nvidia/cu13/include")
  target_link_options(dydit::libtorch_cuda INTERFACE -Wl,--allow-shlib-undefined)
endif()

# LibTorch's include folder carries headers of a newer fmt without its library, and they would be found first:
# dydit_fmt_first is a folder that holds nothing but the installed fmt, to go in front of all.
find_path(DYDIT_FMT_INCLUDE fmt/format.h REQUIRED NO_CMAKE_FIND_ROOT_PATH)
set(dydit_fmt_first "${PROJECT_BINARY_DIR}/fmt_first")
file(MAKE_DIRECTORY "${dydit_fmt_first}")
file(CREATE_LINK "${DYDIT_FMT_INCLUDE}/fmt" "${dydit_fmt_first}/fmt" SYMBOLIC)

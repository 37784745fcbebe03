# The text of the CUDA kernels, compiled for the CPU; and, where there is nvcc, what it makes of it.
if(NOT DYDIT_SANITIZE)  # which take fibers for broken stacks
  set(cuda ${PROJECT_SOURCE_DIR}/dydit/engine/cuda)
  set_source_files_properties(${cuda}/attention.cu ${cuda}/row_kernels.cu PROPERTIES LANGUAGE CXX)
  add_library(cuda_kernels_on_cpu OBJECT ${cuda}/attention.cu ${cuda}/row_kernels.cu ${cuda}/errors.cpp
              support/cuda_on_cpu.cpp support/cuda_on_cpu_memory.cpp)
  target_link_libraries(cuda_kernels_on_cpu PRIVATE dydit_flags fmt::fmt GTest::gtest)
  target_compile_options(cuda_kernels_on_cpu PRIVATE -O2 -Wno-unknown-pragmas)

  set(card engine/device_primitives_no_card.cpp)
  set(label unit)
  if(DYDIT_CUDA_KERNELS)
    set(label gpu-build)  # what the preset cuda tests
    dydit_compile_cuda(card engine/device_primitives_card.cu)
    dydit_compile_cuda(on_card support/cuda_on_card.cu)
  endif()
  dydit_add_test(cuda_kernel_tests ${label} engine/cuda_kernels_test.cpp engine/cuda_on_cpu_test.cpp
                 engine/device_primitives_test.cpp ${card} $<TARGET_OBJECTS:cuda_kernels_on_cpu>)
  target_link_libraries(cuda_kernel_tests PRIVATE dydit_flags fmt::fmt)
  target_compile_options(cuda_kernel_tests PRIVATE -Wno-unknown-pragmas)
  dydit_add_test(token_choice_tests unit engine/token_choice_test.cpp $<TARGET_OBJECTS:cuda_kernels_on_cpu>)
  target_link_libraries(token_choice_tests PRIVATE dydit)
  if(DYDIT_CUDA_KERNELS)
    target_link_libraries(cuda_kernel_tests PRIVATE ${DYDIT_CUDART})
    # The same facts on a card: kernels compiled by nvcc.
    add_executable(cuda_card_tests engine/cuda_kernels_test.cpp ${on_card})
    target_link_libraries(cuda_card_tests PRIVATE dydit GTest::gtest_main)
    add_test(NAME engine.cuda_kernels_on_card COMMAND cuda_card_tests)
    set_tests_properties(engine.cuda_kernels_on_card PROPERTIES LABELS gpu-build)
  endif()
endif()

add_test(NAME engine.check_kernels COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/scripts/check_kernels)
set_tests_properties(engine.check_kernels PROPERTIES LABELS "unit;gpu-build" SKIP_RETURN_CODE 77 TIMEOUT 600)

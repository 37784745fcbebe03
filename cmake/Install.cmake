# cmake --install: the program, the library with its headers, and the package for find_package(dydit). Nothing in the
# prefix names the prefix, so it may be moved; LibTorch stays where it is.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(dydit_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/dydit")

# LibTorch by its place, libraries of other parcels by the system's rules.
set_target_properties(dydit_program PROPERTIES INSTALL_RPATH "${DYDIT_LIBTORCH}/torch/lib")
install(TARGETS dydit_program RUNTIME)
if(TARGET dydit_mpi)
  install(TARGETS dydit_mpi LIBRARY DESTINATION "${CMAKE_INSTALL_BINDIR}")  # the program looks for it beside itself
endif()

target_include_directories(dydit_flags INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
install(TARGETS dydit dydit_io dydit_flags EXPORT dydit ARCHIVE)
install(EXPORT dydit NAMESPACE dydit:: FILE dyditTargets.cmake DESTINATION "${dydit_package_dir}")
# All headers but those of kernels, which only files compiled once an instruction level may include.
install(DIRECTORY "${PROJECT_SOURCE_DIR}/dydit" TYPE INCLUDE FILES_MATCHING PATTERN "*.h"
        PATTERN "dydit/engine/cpu" EXCLUDE PATTERN "dydit/engine/cuda" EXCLUDE PATTERN "dydit/train/mpi" EXCLUDE
        PATTERN "kernel_math.h" EXCLUDE PATTERN "op_kernels.h" EXCLUDE)
string(REGEX MATCH "^[0-9]+" dydit_fmt_major "${fmt_VERSION}")
configure_file(cmake/dyditConfig.cmake.in "${PROJECT_BINARY_DIR}/dyditConfig.cmake" @ONLY)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/dyditConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/dyditConfig.cmake" "${PROJECT_BINARY_DIR}/dyditConfigVersion.cmake"
        cmake/LibTorch.cmake DESTINATION "${dydit_package_dir}")
install(FILES LICENSE TYPE DOC)

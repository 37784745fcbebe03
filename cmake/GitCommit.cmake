# cmake -DSOURCE=DIR -DHEADER=FILE -P GitCommit.cmake: writes the commit of DIR as a C++ constant, "-dirty" after it
# when tracked files differ from it, "unknown" where DIR is not the top of a git checkout. An unchanged header is not
# touched, so that it may run in every build.
set(commit "")
find_program(git git)
if(git)
  # The top only: an archive unpacked somewhere in another project's checkout has no commit of its own.
  execute_process(COMMAND ${git} rev-parse --show-prefix WORKING_DIRECTORY ${SOURCE}
                  OUTPUT_VARIABLE below_top RESULT_VARIABLE outside ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(outside EQUAL 0 AND below_top STREQUAL "")
    # Without optional locks, so that a build never stands in the way of a commit.
    execute_process(COMMAND ${git} --no-optional-locks describe --always --dirty --abbrev=12 --exclude=*
                    WORKING_DIRECTORY ${SOURCE}
                    OUTPUT_VARIABLE commit ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  endif()
endif()
if(commit STREQUAL "")
  set(commit unknown)
endif()
set(text "// Made by cmake/GitCommit.cmake.\n#pragma once\n\nnamespace dydit {\n\n\
inline constexpr const char* kCommit = \"${commit}\";\n\n}  // namespace dydit\n")
set(old "")
if(EXISTS ${HEADER})
  file(READ ${HEADER} old)
endif()
if(NOT old STREQUAL text)
  file(WRITE ${HEADER} "${text}")
endif()

# The commit for dydit --version: a header that is written again only when the commit changed, read by version_facts.cpp alone.
set(dydit_generated "${PROJECT_BINARY_DIR}/generated")
add_custom_target(dydit_commit
  COMMAND ${CMAKE_COMMAND} -DSOURCE=${PROJECT_SOURCE_DIR} -DHEADER=${dydit_generated}/dydit_commit.h
          -P ${PROJECT_SOURCE_DIR}/cmake/GitCommit.cmake
  BYPRODUCTS "${dydit_generated}/dydit_commit.h"
  COMMENT "Looking up the commit"
  VERBATIM)
add_dependencies(dydit_program dydit_commit)
set_property(SOURCE "${PROJECT_SOURCE_DIR}/programs/dydit/version_facts.cpp" TARGET_DIRECTORY dydit_program
             APPEND PROPERTY INCLUDE_DIRECTORIES "${dydit_generated}")

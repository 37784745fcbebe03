# Sets DYDIT_LIBTORCH to the folder of the torch package of the Python that the module is built for. -I: pip builds
# under a PYTHONPATH that hides the environment it installs into.
find_package(Python 3.9 REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(
  COMMAND "${Python_EXECUTABLE}" -I -c
          "import importlib.util as u, os; print(os.path.dirname(os.path.dirname(u.find_spec('torch').origin)))"
  OUTPUT_VARIABLE DYDIT_LIBTORCH RESULT_VARIABLE failed ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
if(failed)
  message(FATAL_ERROR "${Python_EXECUTABLE} has no torch: install torch 2.11 there first, then dydit")
endif()

# Configures, builds and runs examples/installed against the installed tree.
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE ${build})
run(${CMAKE_COMMAND} -S ${source} -B ${build} -G ${generator}
  -D CMAKE_PREFIX_PATH=${prefix} -D CMAKE_BUILD_TYPE=Release
  -D CMAKE_C_COMPILER=${c_compiler} -D CMAKE_CXX_COMPILER=${cxx_compiler}
  -D CMAKE_C_FLAGS=${flags} -D CMAKE_CXX_FLAGS=${flags})
run(${CMAKE_COMMAND} --build ${build})
# Found in the prefix, not in the build tree or elsewhere on the machine.
file(STRINGS ${build}/CMakeCache.txt found REGEX "^pagefill_DIR:PATH=${prefix}/")
if(NOT found)
  message(FATAL_ERROR "pagefill_DIR: expected a folder in ${prefix}")
endif()
run(${build}/prefill)
run(${build}/decode)

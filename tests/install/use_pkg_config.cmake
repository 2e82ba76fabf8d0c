# Compiles the C example with what pkg-config says, and runs it.
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

set(ENV{PKG_CONFIG_PATH} ${prefix}/${libdir}/pkgconfig)
set(static "")
if(NOT shared)
  set(static --static)
endif()
execute_process(COMMAND ${pkg_config} ${static} --cflags --libs pagefill
  OUTPUT_VARIABLE arguments OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
separate_arguments(arguments UNIX_COMMAND "${arguments}")

file(MAKE_DIRECTORY ${build})
run(${c_compiler} -std=c99 ${flags} ${source} ${arguments} -lm -o ${build}/decode)
set(ENV{LD_LIBRARY_PATH} ${prefix}/${libdir})
run(${build}/decode)

# pagefill_add_test(NAME SOURCES... [LABELS label...]): one GoogleTest binary, one CTest test a TEST().
# Labels: slow (minutes; not under sanitizers), threads (also run under ThreadSanitizer), native (not under
# emulation).
include(GoogleTest)
function(pagefill_add_test name)
  cmake_parse_arguments(arg "" "" "SOURCES;LABELS;LIBRARIES" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE pagefill::pagefill pagefill_compile_options
    GTest::gtest_main rapidcheck Threads::Threads ${arg_LIBRARIES})
  gtest_discover_tests(${name} PROPERTIES LABELS "${arg_LABELS}" DISCOVERY_TIMEOUT 120)
endfunction()

# pagefill_add_test(NAME SOURCES... [LABELS label...] [LIBRARIES target...] [PAGEFILL target] [PREFIX text]): one
# GoogleTest binary, one CTest test a TEST(), its name behind PREFIX. PAGEFILL: what stands for pagefill::pagefill.
# Labels: slow (not under sanitizers or emulation), threads (also under ThreadSanitizer), targets (also at other SVE
# vector lengths), native (starts programs itself: not under emulation).
include(GoogleTest)
function(pagefill_add_test name)
  cmake_parse_arguments(arg "" "PAGEFILL;PREFIX" "SOURCES;LABELS;LIBRARIES" ${ARGN})
  if(NOT arg_PAGEFILL)
    set(arg_PAGEFILL pagefill::pagefill)
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_PAGEFILL} pagefill_compile_options
    GTest::gtest_main rapidcheck Threads::Threads ${arg_LIBRARIES})
  gtest_discover_tests(${name} TEST_PREFIX "${arg_PREFIX}" DISCOVERY_TIMEOUT 120)
  # gtest_discover_tests keeps the first of several labels only.
  set(labels ${CMAKE_CURRENT_BINARY_DIR}/${name}_labels.cmake)
  file(WRITE ${labels} "foreach(test IN LISTS ${name}_TESTS)
  set_tests_properties(\"\${test}\" PROPERTIES LABELS \"${arg_LABELS}\")
endforeach()
")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${labels})
endfunction()

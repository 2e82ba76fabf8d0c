# What every target of pagefill is compiled with: pagefill_compile_options, linked privately.
add_library(pagefill_compile_options INTERFACE)
set(host_options -Wall -Wextra -Wshadow -Wno-psabi
  # A compiler that may fuse a * b + c decides anew in each function; the same row would get other bits
  # from other tiles.
  -ffp-contract=off)
target_compile_options(pagefill_compile_options INTERFACE
  $<$<COMPILE_LANGUAGE:C,CXX>:${host_options}>)

if(PAGEFILL_SANITIZE STREQUAL "address")
  set(sanitize -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
elseif(PAGEFILL_SANITIZE STREQUAL "thread")
  set(sanitize -fsanitize=thread -fno-omit-frame-pointer)
elseif(NOT PAGEFILL_SANITIZE STREQUAL "")
  message(FATAL_ERROR "PAGEFILL_SANITIZE: expected address or thread, got ${PAGEFILL_SANITIZE}")
endif()
target_compile_options(pagefill_compile_options INTERFACE
  $<$<COMPILE_LANGUAGE:C,CXX>:${sanitize}>)
target_link_options(pagefill_compile_options INTERFACE ${sanitize})

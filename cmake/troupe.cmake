include(CMakeParseArguments)

# troupe_library(NAME SOURCES a.cpp b.cpp DEPS core CAF::core ... [TORCH])
# One static library a folder; TORCH adds ATen and the shared precompiled header.
function(troupe_library name)
  cmake_parse_arguments(ARG "TORCH" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS})
  if(ARG_TORCH)
    target_link_libraries(${name} PUBLIC troupe::torch)
    target_precompile_headers(${name} PRIVATE <ATen/core/Tensor.h> <ATen/ops/empty.h> <ATen/ops/zeros.h>
                              <string> <vector> <span> <memory> <algorithm> <cstdint>)
  endif()
endfunction()

# troupe_test(NAME SOURCES a_test.cpp ... DEPS model ... [LABELS x]): one executable, one ctest entry a case.
function(troupe_test name)
  cmake_parse_arguments(ARG "WHOLE" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_definitions(${name} PRIVATE TROUPE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest_main)
  # A test program is one ctest entry: the suite starts a process a file, not a process a case.
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
endfunction()

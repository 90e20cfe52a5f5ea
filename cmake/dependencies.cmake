find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(GTest REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(spdlog REQUIRED)
find_package(Protobuf REQUIRED)
find_package(CAF REQUIRED COMPONENTS core io)
pkg_check_modules(ZMQ REQUIRED IMPORTED_TARGET libzmq)
# Its .pc file names the headers of libraries that it uses inside, and CMake hands them on otherwise when it configures a second time,
# which would compile half the tree again. zmq.h needs none of them.
set_target_properties(PkgConfig::ZMQ PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "" INTERFACE_COMPILE_OPTIONS "")
pkg_check_modules(HTTPLIB REQUIRED IMPORTED_TARGET cpp-httplib)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
find_package(rapidcheck REQUIRED)

# LibTorch as ./dev setup unpacks it from the wheel: no CMake package, no Python, no CUDA.
set(TROUPE_TORCH_DIR ${CMAKE_SOURCE_DIR}/.deps/torch CACHE PATH "LibTorch: include/ and lib/")
if(NOT EXISTS ${TROUPE_TORCH_DIR}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "LibTorch is not in ${TROUPE_TORCH_DIR}; run ./dev setup")
endif()
add_library(troupe_torch INTERFACE)
add_library(troupe::torch ALIAS troupe_torch)
target_include_directories(troupe_torch SYSTEM INTERFACE
  ${TROUPE_TORCH_DIR}/include ${TROUPE_TORCH_DIR}/include/torch/csrc/api/include)
target_link_libraries(troupe_torch INTERFACE ${TROUPE_TORCH_DIR}/lib/libtorch_cpu.so ${TROUPE_TORCH_DIR}/lib/libc10.so)
# The wheel's library names CUDA's profiler, which nothing here calls.
target_link_options(troupe_torch INTERFACE -Wl,--allow-shlib-undefined -Wl,-rpath,${TROUPE_TORCH_DIR}/lib)

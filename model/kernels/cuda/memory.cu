#include "model/kernels/cuda/check.cuh"
#include "model/kernels/cuda/memory.hpp"
#include <cstdio>

namespace troupe::cuda {

int device_count() {
  int n = 0;
  if (cudaGetDeviceCount(&n) == cudaSuccess)
    return n;
  cudaGetLastError(); // no driver is an answer, not an error that a later call should find
  return 0;
}

void set_device(int device) { check(cudaSetDevice(device), ("taking GPU " + std::to_string(device)).c_str()); }

int device_of(const void* data) {
  cudaPointerAttributes found = {};
  check(cudaPointerGetAttributes(&found, data), "asking where memory is");
  if (found.type != cudaMemoryTypeDevice)
    throw error(errc::failed, "asking where memory is: it is not a GPU's");
  return found.device;
}

std::string device_name(int device) {
  char name[32] = {};
  check(cudaDeviceGetPCIBusId(name, sizeof name, device), "asking for a GPU's address");
  return name;
}

memory_info device_memory() {
  memory_info info;
  check(cudaMemGetInfo(&info.free, &info.total), "asking for the GPU's free memory");
  return info;
}

void require_memory(std::size_t n_bytes, const char* what, const char* help) {
  const auto in_gib = [](std::size_t n) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f GiB", double(n) / double(std::size_t{1} << 30));
    return std::string(text);
  };
  const memory_info memory = device_memory();
  if (n_bytes > memory.free)
    throw error(errc::failed, std::string(what) + ": " + in_gib(n_bytes) + " of GPU memory are needed, " + in_gib(memory.free) + " of " +
                                  in_gib(memory.total) + " are free; " + help);
}

void synchronize(stream where) { check(cudaStreamSynchronize(where), "waiting for the GPU"); }
void synchronize_device() { check(cudaDeviceSynchronize(), "waiting for the GPU"); }

void copy_async(void* to, const void* from, std::size_t n_bytes, stream where) {
  if (n_bytes > 0)
    check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDefault, where), "queueing a copy");
}

void copy_rows_async(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width, std::size_t rows,
                     stream where) {
  check(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows, cudaMemcpyDefault, where), "copying rows on the GPU");
}

void fill_zero(void* to, std::size_t n_bytes, stream where) {
  if (n_bytes > 0)
    check(cudaMemsetAsync(to, 0, n_bytes, where), "queueing zeros");
}

device_buffer::device_buffer(std::size_t n_bytes) : n_bytes_(n_bytes) {
  if (n_bytes > 0)
    check(cudaMalloc(&data_, n_bytes), ("allocating " + std::to_string(n_bytes) + " bytes on the GPU").c_str());
}

device_buffer::~device_buffer() { cudaFree(data_); }

void device_buffer::upload(const void* from) {
  check(cudaMemcpy(data_, from, n_bytes_, cudaMemcpyHostToDevice), "copying to the GPU");
  synchronize(); // a small copy from pageable memory may still be on its way
}

void device_buffer::download(void* to) const { check(cudaMemcpy(to, data_, n_bytes_, cudaMemcpyDeviceToHost), "copying from the GPU"); }

void release::operator()(void* pinned) const { cudaFreeHost(pinned); }
void release::operator()(CUstream_st* stream) const { cudaStreamDestroy(stream); }
void release::operator()(CUevent_st* event) const { cudaEventDestroy(event); }
void release::operator()(CUgraphExec_st* graph) const { cudaGraphExecDestroy(graph); }

pinned_buffer::pinned_buffer(std::size_t n_bytes) : n_bytes_(n_bytes) {
  if (n_bytes == 0)
    return;
  void* data = nullptr;
  check(cudaHostAlloc(&data, n_bytes, cudaHostAllocDefault), ("allocating " + std::to_string(n_bytes) + " bytes of pinned memory").c_str());
  data_.reset(data);
}

stream_owner::stream_owner() {
  cudaStream_t made = nullptr;
  check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "making a stream");
  stream_.reset(made);
}

event::event() {
  cudaEvent_t made = nullptr;
  check(cudaEventCreate(&made), "making an event");
  event_.reset(made);
}

void event::record(stream where) { check(cudaEventRecord(event_.get(), where), "marking a stream"); }
void event::synchronize() const { check(cudaEventSynchronize(event_.get()), "waiting for the GPU"); }
void event::hold(stream where) const { check(cudaStreamWaitEvent(where, event_.get(), 0), "letting a stream wait"); }

float event::elapsed_ms(const event& since) const {
  float ms = 0;
  check(cudaEventElapsedTime(&ms, since.event_.get(), event_.get()), "timing the GPU");
  return ms;
}

void graph::launch(stream where) const { check(cudaGraphLaunch(exec_.get(), where), "launching a graph"); }

void begin_capture(stream where) { check(cudaStreamBeginCapture(where, cudaStreamCaptureModeThreadLocal), "beginning to record a graph"); }

graph end_capture(stream where) {
  cudaGraph_t recorded = nullptr;
  check(cudaStreamEndCapture(where, &recorded), "recording a graph");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, recorded, 0);
  cudaGraphDestroy(recorded);
  check(status, "making a graph");
  graph made;
  made.exec_.reset(exec);
  return made;
}

} // namespace troupe::cuda

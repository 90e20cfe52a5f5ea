#include "model/kernels/cuda/check.cuh"
#include "model/kernels/cuda/memory.hpp"

namespace troupe::cuda {

int device_count() {
  int n = 0;
  if (cudaGetDeviceCount(&n) == cudaSuccess)
    return n;
  cudaGetLastError(); // no driver is an answer, not an error that a later call should find
  return 0;
}

void synchronize(stream where) { check(cudaStreamSynchronize(where), "waiting for the GPU"); }

device_buffer::device_buffer(std::size_t n_bytes) : n_bytes_(n_bytes) {
  if (n_bytes > 0)
    check(cudaMalloc(&data_, n_bytes), ("allocating " + std::to_string(n_bytes) + " bytes on the GPU").c_str());
}

device_buffer::~device_buffer() { cudaFree(data_); }

void device_buffer::upload(const void* from) { check(cudaMemcpy(data_, from, n_bytes_, cudaMemcpyHostToDevice), "copying to the GPU"); }

void device_buffer::download(void* to) const { check(cudaMemcpy(to, data_, n_bytes_, cudaMemcpyDeviceToHost), "copying from the GPU"); }

} // namespace troupe::cuda

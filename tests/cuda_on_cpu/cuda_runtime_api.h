// As much of CUDA as qvec_linear.cu needs, on a CPU: a block's threads are threads, blocks come one after another, and
// shared memory is static. Tensor core fragments are whole matrices that every lane of a warp has. For tests.
#pragma once

#include <barrier>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct int4 {
  int x, y, z, w;
};
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline thread_local dim3 threadIdx, blockIdx;
inline std::unique_ptr<std::barrier<>> block_barrier;
inline std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline void __syncwarp() { warp_barriers[threadIdx.x / 32]->arrive_and_wait(); }

template <class... Wanted, class... Given>
void run_grid(void (*kernel)(Wanted...), dim3 grid, int threads, Given... given) {
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      block_barrier = std::make_unique<std::barrier<>>(threads);
      warp_barriers.clear();
      for (int warp = 0; warp < threads / 32; ++warp) warp_barriers.push_back(std::make_unique<std::barrier<>>(32));
      std::vector<std::thread> running;
      for (int thread = 0; thread < threads; ++thread)
        running.emplace_back([=] {
          threadIdx = dim3(thread, 0, 0);
          blockIdx = dim3(x, y, 0);
          kernel(given...);
        });
      for (std::thread& each : running) each.join();
    }
}

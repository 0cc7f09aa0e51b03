// Enough of CUDA to run one block of a kernel on the CPU: a thread per CUDA thread, barriers for what a warp or
// a block does together. Only what the thin kernels of `slim_source` use.
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
using std::max;
using std::min;

struct Dim { int x, y, z; };
thread_local Dim threadIdx, blockIdx;
static Dim gridDim;
struct uint4 { uint32_t x, y, z, w; };
struct float4 { float x, y, z, w; };
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

constexpr int EMULATED_WARPS = 8;
static std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;
static std::unique_ptr<std::barrier<>> block_barrier;
static uint32_t post[EMULATED_WARPS][32][8];

template <class T> T __ldg(const T* at) { return *at; }
inline float __uint_as_float(uint32_t x) { float out; std::memcpy(&out, &x, 4); return out; }
inline uint32_t __float_as_uint(float x) { uint32_t out; std::memcpy(&out, &x, 4); return out; }
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t s) {
  const uint64_t both = (uint64_t)y << 32 | x;
  uint32_t out = 0;
  for (int i = 0; i < 4; i++) out |= (uint32_t)(both >> (s >> 4 * i & 7) * 8 & 255) << 8 * i;
  return out;
}
inline float __fmul_rn(float x, float y) { return x * y; }
inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline void prefetch(const uint16_t*) {}
inline void copy8(uint16_t* to, const uint16_t* from) { std::memcpy(to, from, 16); }
inline void copied() {}
inline void warp_sync() { warp_barriers[threadIdx.x / 32]->arrive_and_wait(); }
inline float __shfl_xor_sync(uint32_t, float x, int mask) {
  auto& room = post[threadIdx.x / 32];
  room[threadIdx.x % 32][0] = __float_as_uint(x);
  warp_sync();
  const float out = __uint_as_float(room[threadIdx.x % 32 ^ mask][0]);
  warp_sync();
  return out;
}
inline uint32_t bf16(float x) {
  const uint32_t w = __float_as_uint(x);
  return x != x ? 0x7fff : (w + 0x7fff + (w >> 16 & 1)) >> 16;
}
inline uint32_t pack_bf(float lo, float hi) { return bf16(lo) | bf16(hi) << 16; }

// mma.sync.m16n8k16 as the PTX manual lays out its fragments, sums in float32.
inline void mma_bf(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  auto& room = post[threadIdx.x / 32];
  const int lane = threadIdx.x % 32;
  const uint32_t mine[6] = {a0, a1, a2, a3, b0, b1};
  std::memcpy(room[lane], mine, sizeof mine);
  warp_sync();
  auto number = [](uint32_t w, int i) { return __uint_as_float(i ? w & 0xffff0000u : w << 16); };
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; k++) {
      const int place = k % 8 / 2;
      d[i] += number(room[row % 8 * 4 + place][row / 8 + k / 8 * 2], k % 2) *
              number(room[column * 4 + place][4 + k / 8], k % 2);
    }
  }
  warp_sync();
}

template <class Kernel> void launch(Dim grid, int threads, Kernel kernel) {
  gridDim = grid;
  warp_barriers.clear();
  for (int w = 0; w < threads / 32; w++) warp_barriers.push_back(std::make_unique<std::barrier<>>(32));
  block_barrier = std::make_unique<std::barrier<>>(threads);
  std::vector<std::thread> all;
  for (int t = 0; t < threads; t++)
    all.emplace_back([=] {
      threadIdx = {t, 0, 0};
      for (int z = 0; z < grid.z; z++)
        for (int y = 0; y < grid.y; y++)
          for (int x = 0; x < grid.x; x++) {
            blockIdx = {x, y, z};
            kernel();
            __syncthreads();
          }
    });
  for (auto& thread : all) thread.join();
}

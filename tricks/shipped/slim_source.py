"""CUDA C++ of what a slim step launches beside `slim_decode_source`: thin products and rounding.

`slim_kernel` compiles both at run time and says what they compute.
"""

SOURCE = r"""
// --- few tokens times many rows ---------------------------------------------------------------------
// A matrix is read once for 32 rows of the batch, on tensor cores. What has more digits than a bfloat16 is
// a sum of two: exact for 16-bit integers, to 2^-17 for float32. The inner axis is permuted alike on both
// sides, so that a lane's eight numbers of a step lie beside one another in memory.

constexpr int INNER = 256, COUNT = 4;  // threads; tiles of 8 rows of the batch
template <int N> struct Tiles { static constexpr int most = N; };

struct Pairs { u32 big[4], small[4]; };  // eight numbers

__device__ __forceinline__ u32 pack_bf(float lo, float hi) {
  u32 out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
  return out;
}
__device__ __forceinline__ Pairs halved(const float* x) {
  Pairs out;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const u32 w = pack_bf(x[2 * i], x[2 * i + 1]);
    out.big[i] = w;
    out.small[i] = pack_bf(x[2 * i] - __uint_as_float(w << 16),
                           x[2 * i + 1] - __uint_as_float(w & 0xffff0000u));
  }
  return out;
}
// 16-bit integers as 256 · high byte + low byte. A byte below the exponent of 2^23 or 2^31 is a float.
__device__ __forceinline__ Pairs integers(const uint4& raw) {
  const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
  Pairs out;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const u32 w = words[i], z = w ^ 0x80008000u;
    out.small[i] = pack_bf(__uint_as_float(__byte_perm(w, 0x4b000000u, 0x7540)) - 8388608.f,
                           __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7542)) - 8388608.f);
    out.big[i] = pack_bf(__uint_as_float(__byte_perm(z, 0x4f000000u, 0x7541)) - 2147516416.f,
                         __uint_as_float(__byte_perm(z, 0x4f000000u, 0x7543)) - 2147516416.f);
  }
  return out;
}
// The sum of two matrices' numbers.
__device__ __forceinline__ Pairs both(const uint4& u, const uint4& v) {
#if BF16
  return {{u.x, u.y, u.z, u.w}, {v.x, v.y, v.z, v.w}};
#else
  const u32 us[4] = {u.x, u.y, u.z, u.w}, vs[4] = {v.x, v.y, v.z, v.w};
  float x[8];
#pragma unroll
  for (int i = 0; i < 4; i++) x[2 * i] = low(us[i]) + low(vs[i]), x[2 * i + 1] = high(us[i]) + high(vs[i]);
  return halved(x);
#endif
}
// `multiply` with what it may take for granted: that there is one tile, or up to COUNT.
template <class Multiply>
__device__ __forceinline__ void with_tiles(int tiles, Multiply multiply) {
  if (tiles == 1)
    multiply(Tiles<1>{});
  else
    multiply(Tiles<COUNT>{});
}
__device__ __forceinline__ void mma_bf(float* d, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// d [16 rows, 8 of the batch] += rows (lane / 4 of `a`, lane / 4 + 8 of `b`) times the batch's `x`, in two
// sums that do not wait for each other.
__device__ __forceinline__ void product(float (*d)[4], const Pairs& a, const Pairs& b, const Pairs& x) {
#pragma unroll
  for (int s = 0; s < 4; s += 2) {
    mma_bf(d[0], a.big[s], b.big[s], a.big[s + 1], b.big[s + 1], x.big[s], x.big[s + 1]);
    mma_bf(d[1], a.big[s], b.big[s], a.big[s + 1], b.big[s + 1], x.small[s], x.small[s + 1]);
    mma_bf(d[0], a.small[s], b.small[s], a.small[s + 1], b.small[s + 1], x.big[s], x.big[s + 1]);
    mma_bf(d[1], a.small[s], b.small[s], a.small[s + 1], b.small[s + 1], x.small[s], x.small[s + 1]);
  }
}
__device__ __forceinline__ void eight(float* x, const uint4& raw) {
  x[0] = low(raw.x), x[1] = high(raw.x), x[2] = low(raw.y), x[3] = high(raw.y);
  x[4] = low(raw.z), x[5] = high(raw.z), x[6] = low(raw.w), x[7] = high(raw.w);
}
__device__ __forceinline__ void eight(float* x, const u16* from) { eight(x, __ldg((const uint4*)from)); }
__device__ __forceinline__ void eight(float* x, const float* from) {
  *(float4*)x = *(const float4*)from;
  *(float4*)(x + 4) = *(const float4*)(from + 4);
}
// The warps' sums of one tile become one: `put(row of 16, row of 32 of the batch, sum)`.
template <class Put>
__device__ __forceinline__ void gather(float (*acc)[2][4], float* room, int tiles, Put put) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int n = 0; n < COUNT; n++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      room[warp * 512 + (n * 8 + lane % 4 * 2 + i % 2) * 16 + lane / 4 + i / 2 * 8] =
          acc[n][0][i] + acc[n][1][i];
  __syncthreads();
  for (int i = threadIdx.x; i < tiles * 128; i += INNER) {
    float x = 0;
#pragma unroll
    for (int w = 0; w < INNER / 32; w++) x += room[w * 512 + i];
    put(i % 16, i / 16, x);
  }
  __syncthreads();
}

struct Mix {
  const float* sums;        // [batch][HEADS][DR], as slim_decode leaves them
  const short* whole;       // [HEADS * DV][D]: A transposed, divided by its scales
  const u16* rows;          // [HEADS * DV] scales
  const u16* columns;       // [D] scales
  const u16* rest;          // [2][HEADS * DV][R]: B transposed is the sum of its two parts
  u16* out;                 // [batch][HEADS * DV]
  int batch, values;        // values is DV, a head's outputs
};

// The heads' sums times their own matrices: 16 numbers of a head for 32 rows of the batch.
extern "C" __global__ void __launch_bounds__(INNER, 2) slim_mix(const __grid_constant__ Mix mix) {
  __shared__ float room[INNER / 32 * 512];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.y;
  const int first = blockIdx.z * 8 * COUNT, many = min(8 * COUNT, mix.batch - first), tiles = (many + 7) / 8;
  const int j = blockIdx.x * 16;
  const long long r0 = (long long)head * mix.values + min(j + lane / 4, mix.values - 1);
  const long long r1 = (long long)head * mix.values + min(j + lane / 4 + 8, mix.values - 1);
  float acc[COUNT][2][4] = {};
  auto sums = [&](int n, int at) {  // a lane whose row of the batch is none reads another's
    const int b = first + min(n * 8 + lane / 4, many - 1);
    return mix.sums + ((long long)b * HEADS + head) * DR + at;
  };
  const uint4 none = make_uint4(0, 0, 0, 0);
  const u16* const second = mix.rest + (long long)HEADS * mix.values * R;
  auto multiply = [&](auto given) {
    constexpr int most = decltype(given)::most;
#pragma unroll 4
    for (int k = warp * 32 + lane % 4 * 8; k - lane % 4 * 8 < D; k += INNER) {
      const bool in = k < D;
      const Pairs a = integers(in ? __ldg((const uint4*)(mix.whole + r0 * D + k)) : none);
      const Pairs b = integers(in ? __ldg((const uint4*)(mix.whole + r1 * D + k)) : none);
      float scales[8];
      eight(scales, mix.columns + (in ? k : 0));
#pragma unroll
      for (int n = 0; n < most; n++)
        if (most == 1 || n < tiles) {
          float x[8];
          eight(x, sums(n, in ? k : 0));
#pragma unroll
          for (int i = 0; i < 8; i++) x[i] *= scales[i];
          product(acc[n], a, b, halved(x));
        }
    }
    const float s0 = low(mix.rows[r0]), s1 = low(mix.rows[r1]);
#pragma unroll
    for (int n = 0; n < most; n++)
#pragma unroll
      for (int i = 0; i < 8; i++) acc[n][i / 4][i % 4] *= i % 4 < 2 ? s0 : s1;
    for (int k = warp * 32 + lane % 4 * 8; k - lane % 4 * 8 < R; k += INNER) {
      const bool in = k < R;
      const Pairs a = both(in ? __ldg((const uint4*)(mix.rest + r0 * R + k)) : none,
                           in ? __ldg((const uint4*)(second + r0 * R + k)) : none);
      const Pairs b = both(in ? __ldg((const uint4*)(mix.rest + r1 * R + k)) : none,
                           in ? __ldg((const uint4*)(second + r1 * R + k)) : none);
#pragma unroll
      for (int n = 0; n < most; n++)
        if (most == 1 || n < tiles) {
          float x[8];
          eight(x, sums(n, in ? D + k : 0));
          product(acc[n], a, b, halved(x));
        }
    }
  };
  with_tiles(tiles, multiply);
  gather(acc, room, tiles, [&](int row, int b, float x) {
    if (b < many && j + row < mix.values)
      mix.out[((long long)(first + b) * HEADS + head) * mix.values + j + row] = (u16)pack(x, 0.f);
  });
}

struct Rest {
  const u16* x;             // [batch] rows of `width` numbers: the layer's input
  const u16* primary;       // [batch] rows of D: what is cached of it
  const u16* weight;        // [2][R][width + D]: the sum of its two parts
  float* part;              // [gridDim.y][batch][R]
  long long x_row, primary_row;  // strides in elements
  int batch, width;
};

// Shares of the residual's sums: 16 of its numbers, a part of the inner axis, 32 rows of the batch.
extern "C" __global__ void __launch_bounds__(INNER, 2) slim_rest(const __grid_constant__ Rest rest) {
  __shared__ float room[INNER / 32 * 512];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, inner = rest.width + D;
  const int first = blockIdx.z * 8 * COUNT, many = min(8 * COUNT, rest.batch - first), tiles = (many + 7) / 8;
  const int j = blockIdx.x * 16, last = max(R - 1, 0);
  const long long r0 = min(j + lane / 4, last), r1 = min(j + lane / 4 + 8, last);
  const u16* const second = rest.weight + (long long)R * inner;
  const uint4 none = make_uint4(0, 0, 0, 0);
  float acc[COUNT][2][4] = {};
  auto multiply = [&](auto given) {
    constexpr int most = decltype(given)::most;
#pragma unroll 2
    for (int k = (blockIdx.y * (INNER / 32) + warp) * 32 + lane % 4 * 8; k - lane % 4 * 8 < inner;
         k += gridDim.y * INNER) {
      const bool in = k < inner;
      const Pairs a = both(in ? __ldg((const uint4*)(rest.weight + r0 * inner + k)) : none,
                           in ? __ldg((const uint4*)(second + r0 * inner + k)) : none);
      const Pairs b = both(in ? __ldg((const uint4*)(rest.weight + r1 * inner + k)) : none,
                           in ? __ldg((const uint4*)(second + r1 * inner + k)) : none);
#pragma unroll
      for (int n = 0; n < most; n++)
        if (most == 1 || n < tiles) {
          const long long token = first + min(n * 8 + lane / 4, many - 1);
          float x[8];
          eight(x, k < rest.width ? rest.x + token * rest.x_row + k
                                  : rest.primary + token * rest.primary_row + (in ? k - rest.width : 0));
          product(acc[n], a, b, halved(x));
        }
    }
  };
  with_tiles(tiles, multiply);
  gather(acc, room, tiles, [&](int row, int b, float x) {
    if (b < many && j + row < R)
      rest.part[((long long)blockIdx.y * rest.batch + first + b) * R + j + row] = x;
  });
}

__device__ __forceinline__ float larger(float x, float y) { return x != x ? x : y != y ? y : fmaxf(x, y); }

// The shares become the residual in 8 bits: R integers and the two bytes of a bfloat16 scale for each row of
// the batch, to the bit as `to_bytes` in torch makes them of the same sums.
extern "C" __global__ void __launch_bounds__(INNER)
slim_codes(const float* __restrict__ part, unsigned char* __restrict__ out, int parts) {
  __shared__ float room[INNER / 32];
  constexpr int MINE = (R + INNER - 1) / INNER;
  float mine[MINE ? MINE : 1], most = 0;
#pragma unroll
  for (int n = 0; n < MINE; n++) {
    const int at = n * INNER + threadIdx.x;
    float x = 0;
    if (at < R)
      for (int p = 0; p < parts; p++) x += part[((long long)p * gridDim.x + blockIdx.x) * R + at];
    mine[n] = x;
    most = larger(most, fabsf(x));
  }
#pragma unroll
  for (int m = 16; m; m /= 2) most = larger(most, __shfl_xor_sync(~0u, most, m));
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = most;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < INNER / 32; w++) most = larger(most, room[w]);
  most /= 126.f;
  const u32 bits = pack_bf(most < 1e-30f ? 1e-30f : most, 0.f) & 0xffffu;
  const float scale = __uint_as_float(bits << 16);
  out += (long long)blockIdx.x * (R + 2);
#pragma unroll
  for (int n = 0; n < MINE; n++) {
    const int at = n * INNER + threadIdx.x;
    const float whole = fminf(fmaxf(rintf(mine[n] / scale), -127.f), 127.f);
    if (at < R) out[at] = (unsigned char)(signed char)(int)whole;
  }
  if (threadIdx.x < 2) out[R + threadIdx.x] = (unsigned char)(bits >> 8 * threadIdx.x);
}

// --- rounding whose errors are fed back ---------------------------------------------------------------
// `slim_rounding.fed_back`: a block of channels is rounded, and what it lost moves the channels to
// come. Blocks of channels halve. A large one is a launch, each thread block taking 16 columns (a sector of a
// row) and 4 tokens; the small ones at the end are one launch with a block for each token.

constexpr int TOKENS = 4, AT_ONCE = 2048, HELD = AT_ONCE * 2 / INNER;
constexpr int TAIL = 512, TAIL_ROWS = 256, GROUPS = 16;

struct Noise {
  float* left;              // [batch][D] by channel; moved in place
  const short* order;       // [D] channels as they are rounded
  const u16* weight;        // of this block [size][D - first - size]; of all the tail's blocks
  const float* scale;       // [batch] of 8-bit rows; null: rounded to the dtype
  u16* out;                 // [batch][D] of the tail: all channels rounded to the dtype; or null
  int batch, first, size;   // the block's channels in their order; the tail has no one size
  int least;                // the size at which halving ends
};

__device__ __forceinline__ void prefetch(const u16* at) {
  asm volatile("prefetch.global.L2 [%0];" :: "l"(at));
}
// Eight numbers on their way into shared memory, and the wait until all have come.
__device__ __forceinline__ void copy8(u16* to, const u16* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :: "r"((u32)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void copied() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Weights of all blocks that `count` channels are halved into.
__device__ __forceinline__ int weights_of(int count, int least) {
  int sum = 0;
  while (count > least) {
    const int size = (count + 1) / 2;
    count -= size;
    sum += size * count;
  }
  return sum;
}

// What rounding takes away from x, itself rounded as torch does; scale: of its 8-bit row, or 0.
__device__ __forceinline__ float lost(float scale, float x) {
  float kept = low(pack(x, 0.f));
  if (scale != 0) kept = __fmul_rn(fminf(fmaxf(rintf(x / scale), -127.f), 127.f), scale);
  return low(pack(kept - x, 0.f));
}

extern "C" __global__ void __launch_bounds__(INNER) slim_move(const __grid_constant__ Noise noise) {
  __shared__ float room[INNER / 32][TOKENS][16], errors[TOKENS][AT_ONCE];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int rest = D - noise.first - noise.size, column = blockIdx.x * 16 + lane % 2 * 8;
  const int token = blockIdx.z * TOKENS, many = min(TOKENS, noise.batch - token);
  float acc[TOKENS][8] = {};
  for (int begin = 0; begin < noise.size; begin += AT_ONCE) {
    const int rows = min(AT_ONCE, noise.size - begin);
    const u16* const weight = noise.weight + (long long)begin * rest + column;
    uint4 held[HELD];  // on their way while the errors are worked out
#pragma unroll
    for (int n = 0; n < HELD; n++) {
      const int row = threadIdx.x / 2 + n * (INNER / 2);
      held[n] = row < rows && column < rest ? __ldg((const uint4*)(weight + (long long)row * rest))
                                            : make_uint4(0, 0, 0, 0);
    }
    int at[AT_ONCE / INNER];
#pragma unroll
    for (int n = 0; n < AT_ONCE / INNER; n++)
      at[n] = noise.order[noise.first + begin + min(n * INNER + (int)threadIdx.x, rows - 1)];
    for (int t = 0; t < many; t++) {
      const float* const left = noise.left + (long long)(token + t) * D;
      const float scale = noise.scale ? noise.scale[token + t] : 0.f;
      float x[AT_ONCE / INNER];
#pragma unroll
      for (int n = 0; n < AT_ONCE / INNER; n++) x[n] = left[at[n]];
#pragma unroll
      for (int n = 0; n < AT_ONCE / INNER; n++) errors[t][n * INNER + threadIdx.x] = lost(scale, x[n]);
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < HELD; n++) {
      const int row = threadIdx.x / 2 + n * (INNER / 2);
      if (row >= rows) break;
      float w[8];
      eight(w, held[n]);
#pragma unroll
      for (int t = 0; t < TOKENS; t++)
        if (t < many)
#pragma unroll
          for (int i = 0; i < 8; i++) acc[t][i] += errors[t][row] * w[i];
    }
    __syncthreads();
  }
  if (blockIdx.z == 0) {  // the weights of the blocks to come, into the second cache
    const u16* const next = noise.weight + (long long)noise.size * rest;
    const int count = weights_of(rest, noise.least), line = 64;
    for (int i = (blockIdx.x * INNER + threadIdx.x) * line; i < count; i += gridDim.x * INNER * line)
      prefetch(next + i);
  }
#pragma unroll
  for (int t = 0; t < TOKENS; t++)
    if (t < many)
#pragma unroll
      for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int m = 16; m > 1; m /= 2) acc[t][i] += __shfl_xor_sync(~0u, acc[t][i], m);
        if (lane < 2) room[warp][t][lane * 8 + i] = acc[t][i];
      }
  __syncthreads();
  const int t = threadIdx.x / 16, at = blockIdx.x * 16 + threadIdx.x % 16;
  if (t < many && at < rest) {
    float x = 0;
#pragma unroll
    for (int w = 0; w < INNER / 32; w++) x += room[w][t][threadIdx.x % 16];
    noise.left[(long long)(token + t) * D + noise.order[noise.first + noise.size + at]] -= x;
  }
}

extern "C" __global__ void __launch_bounds__(TAIL) slim_tail(const __grid_constant__ Noise noise) {
  extern __shared__ __align__(16) u16 later[];  // weights of all blocks but the first
  __shared__ float left[2 * TAIL_ROWS], errors[TAIL_ROWS], room[GROUPS * TAIL_ROWS];
  const int token = blockIdx.x, count = D - noise.first;  // at most a channel for each thread
  float* const all = noise.left + (long long)token * D;
  u16* const out = noise.out + (long long)token * D;
  const int at = (int)threadIdx.x < count ? noise.order[noise.first + threadIdx.x] : -1;
  int size = (count + 1) / 2, rest = count - size;
  int group = threadIdx.x / (rest / 8), column = threadIdx.x % (rest / 8) * 8;
  uint4 held[TAIL_ROWS / GROUPS];
#pragma unroll
  for (int n = 0; n < TAIL_ROWS / GROUPS; n++) {
    const int row = group + n * GROUPS;
    if (group < GROUPS && row < size) held[n] = __ldg((const uint4*)(noise.weight + row * rest + column));
  }
  for (int i = threadIdx.x * 8; i < weights_of(rest, noise.least); i += TAIL * 8)
    copy8(later + i, noise.weight + size * rest + i);
  const float scale = noise.scale ? noise.scale[token] : 0.f;
  if (at >= 0) left[threadIdx.x] = all[at];
  if (noise.out)  // of the channels before; this kernel's own are written again at the end
#pragma unroll 2
    for (int i = threadIdx.x * 2; i < D; i += TAIL * 2) *(u32*)(out + i) = pack(all[i], all[i + 1]);
  copied();
  __syncthreads();
  // A block is rounded, and its `rows` of weights, each with its error, move what is left.
  auto block = [&](int first, auto rows) {
    for (int i = threadIdx.x; i < size; i += TAIL) errors[i] = lost(scale, left[first + i]);
    __syncthreads();
    if (group < GROUPS) {
      float acc[8] = {};
      rows([&](int row, const uint4& raw) {
        float w[8];
        eight(w, raw);
#pragma unroll
        for (int i = 0; i < 8; i++) acc[i] += errors[row] * w[i];
      });
#pragma unroll
      for (int i = 0; i < 8; i++) room[group * rest + column + i] = acc[i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rest; i += TAIL) {
      float x = 0;
#pragma unroll
      for (int g = 0; g < GROUPS; g++) x += room[g * rest + i];
      left[first + size + i] -= x;
    }
    __syncthreads();
  };
  block(0, [&](auto add) {
#pragma unroll
    for (int n = 0; n < TAIL_ROWS / GROUPS; n++)
      if (group + n * GROUPS < size) add(group + n * GROUPS, held[n]);
  });
  const u16* weight = later;
  for (int first = size; count - first > noise.least; first += size) {
    size = (count - first + 1) / 2, rest = count - first - size;
    group = threadIdx.x / (rest / 8), column = threadIdx.x % (rest / 8) * 8;
    block(first, [&](auto add) {
      for (int row = group; row < size; row += GROUPS)
        add(row, *(const uint4*)(weight + row * rest + column));
    });
    weight += size * rest;
  }
  if (at < 0) return;
  if (noise.out)
    out[at] = (u16)pack(left[threadIdx.x], 0.f);
  else
    all[at] = left[threadIdx.x];
}
"""

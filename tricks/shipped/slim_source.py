"""CUDA C++ of the slim decode kernel; `slim_kernel` compiles it at run time and says what it computes.

Why clusters: one query needs heads · (d + r) float32 sums, 557 KB at Llama-2-7B's geometry and more than one
multiprocessor holds. A cluster of CL thread blocks splits the columns. A block reads its columns of a cache
row once from device memory into shared memory, where two passes use it: the scores of its own HEADS/CL heads
(their keys are exactly its key columns), and the sums of ALL heads over its columns. In between, each block
sends its heads' weights to the others through distributed shared memory: 1 KB per 16 tokens.

Instead of absolute angles, the query is turned to the middle of every 32 tokens, in float32, and the keys of
those by the few constant angles around it, in the cache's dtype: as exact as stock code, which
rounds the turned key too. Both products are mma.sync on the tensor cores. 16 warps compute (scores of tile
i + 2, then sums of tile i, which hides the exchange), 4 weigh (softmax), 4 copy; STAGES tiles are in flight.
"""

SOURCE = r"""
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int T = 16, WARPS = 16, THREADS = 32 * (WARPS + 8), RESEED = 32, RING = 4;
constexpr int LAG = 2, SCORES = 4;  // sums of tile i follow scores of tile i + LAG; LAG < SCORES
constexpr int HPC = HEADS / CL;                         // heads whose scores this block computes
constexpr int HPAD = (HEADS + 15) / 16 * 16, MT = HPAD / 16;
constexpr int KC = HPC * DK, COLS = KC + RC;            // columns of this block: keys, residual
constexpr int NT = COLS / 8, NTW = (NT + WARPS - 1) / WARPS;
constexpr int ROWB = (NT | 1) * 16;                     // odd multiple of 16 bytes: no bank conflicts
constexpr int PST = 48;                                 // likewise: 16 weights, then the row's factor
constexpr int D = HEADS * DK, DR = D + R;
constexpr int WPH = WARPS / HPC;                        // warps per head, UNITS of 8 pairs each
constexpr int UNITS = (DK / 16 + WPH - 1) / WPH;
constexpr int PAIRS = (UNITS * 8 + 31) / 32;            // of the query, per lane
constexpr int OWN = (HPC + 7) / 8;                      // heads per half warp in the softmax

constexpr int AT_P = STAGES * T * ROWB;
constexpr int AT_Q = AT_P + RING * HPAD * PST;
constexpr int AT_TURNS = AT_Q + KC * 2;
constexpr int AT_S = AT_TURNS + 2 * (DK / 16 * 512);
constexpr int AT_SUM = AT_S + SCORES * WPH * HPC * T * 4;
constexpr int FULL = AT_SUM + HPAD * 4;                 // a tile has come
constexpr int DONE = FULL + STAGES * 8;                 // its sums are done in this block
constexpr int SCORED = DONE + STAGES * 8;               // its scores are written
constexpr int SENT = SCORED + SCORES * 8;                   // its weights have come from every block
constexpr int FREE = SENT + RING * 8;                   // every block is done with its weights

#define NEG_INF __int_as_float(0xff800000)

__device__ __forceinline__ u32 shared(const void* p) { return (u32)__cvta_generic_to_shared(p); }

#if BF16
__device__ __forceinline__ float low(u32 x) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float high(u32 x) { return __uint_as_float(x & 0xffff0000u); }
__device__ __forceinline__ u32 pack(float lo, float hi) {
  u32 out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
  return out;
}
#define X2 "bf16x2"
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#else
__device__ __forceinline__ float low(u32 x) {
  float out;
  asm("{.reg .b16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, a;}" : "=f"(out) : "r"(x));
  return out;
}
__device__ __forceinline__ float high(u32 x) {
  float out;
  asm("{.reg .b16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, b;}" : "=f"(out) : "r"(x));
  return out;
}
__device__ __forceinline__ u32 pack(float lo, float hi) {
  u32 out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
  return out;
}
#define X2 "f16x2"
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#endif

__device__ __forceinline__ float exp2_fast(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

__device__ __forceinline__ void mma(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile(MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void load4(u32* x, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void load2(u32* x, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(x[0]), "=r"(x[1]) : "r"(at) : "memory");
}
__device__ __forceinline__ void load4_turned(u32* x, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void load2_turned(u32* x, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(x[0]), "=r"(x[1]) : "r"(at) : "memory");
}

// (x, y) of two pairs, turned by the angles whose cosines and sines are given.
__device__ __forceinline__ void turn(u32& x, u32& y, u32 c, u32 s) {
  u32 ys, xs, z;
  asm("{.reg .b32 n; neg." X2 " n, %2; mul.rn." X2 " %0, %1, n;}" : "=r"(ys) : "r"(y), "r"(s));
  asm("mul.rn." X2 " %0, %1, %2;" : "=r"(xs) : "r"(x), "r"(s));
  asm("fma.rn." X2 " %0, %1, %2, %3;" : "=r"(z) : "r"(x), "r"(c), "r"(ys));
  asm("fma.rn." X2 " %0, %1, %2, %3;" : "=r"(y) : "r"(y), "r"(c), "r"(xs));
  x = z;
}

// Cosine and sine of distance · freq (radians), exact to float32 at any distance.
__device__ __forceinline__ void angle(float freq, int distance, float& c, float& s) {
  const double halves = freq * 0.3183098861837907 * distance;  // in units of pi
  sincospif((float)(halves - 2 * rint(halves * 0.5)), &s, &c);
}

__device__ __forceinline__ void barrier_init(u32 bar, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(count) : "memory");
}
__device__ __forceinline__ void expect(u32 bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait_full(u32 bar, u32 parity) {
  asm volatile(
      "{.reg .pred p;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again;}" :: "r"(bar), "r"(parity) : "memory");
}
__device__ __forceinline__ void copy16(u32 to, const u16* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void arrive_after_copies(u32 bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" :: "r"(bar) : "memory");
}
__device__ __forceinline__ void arrive(u32 bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(bar) : "memory");
}
__device__ __forceinline__ void arrive_remote(u32 bar) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" :: "r"(bar) : "memory");
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ u32 remote(u32 at, int rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  return there;
}
__device__ __forceinline__ void send(u32 at, u32 value, u32 bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];"
               :: "r"(at), "r"(value), "r"(bar) : "memory");
}
__device__ __forceinline__ void send2(u32 at, u32 x, u32 y, u32 bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.u32 [%0], {%1, %2}, [%3];"
               :: "r"(at), "r"(x), "r"(y), "r"(bar) : "memory");
}

struct Cache {
  const u16* k;        // [batch or page][slot][D]
  const u16* c;        // [batch or page][slot][R]
  long long k_batch, k_slot, c_batch, c_slot;  // strides in elements
  const int* table;    // [batch][pages] page numbers, or null: contiguous
  int pages, page_size;
};

struct Job {
  const u16* q;        // [batch][HEADS][DK]
  const int* lengths;  // [batch] slots in use; the query stands at the last one
  const int* starts;   // [batch] first slot to read, or null
  const float* freq;   // [DK/2] radians per position
  const float* turn;   // [batch][DK] cosines, then sines, by which q was turned, or null: it was not
  const float* slopes; // [HEADS] ALiBi, times log2(e), or null
  float scale;         // of the scores, times log2(e)
  float cap;           // soft cap times log2(e), or 0
  int window;          // newest slots to read, or 0: all
  int splits;
  float* out;          // [batch][HEADS][DR] where splits is 1
  float* part;         // [batch][splits][HEADS][DR] sums
  float* norm;         // [batch][splits][HEADS][2] largest score, sum of weights
};

extern "C" __global__ void __cluster_dims__(CL, 1, 1) __launch_bounds__(THREADS, 1)
slim_decode(const __grid_constant__ Job job, const __grid_constant__ Cache cache) {
  extern __shared__ __align__(128) unsigned char memory[];
  const u32 base = shared(memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int rank = blockIdx.x, split = blockIdx.y, batch = blockIdx.z;

  const int length = job.lengths[batch];
  int first = job.starts ? job.starts[batch] : 0;
  if (job.window) first = max(first, length - job.window);
  const int chunk = ((length - first + job.splits - 1) / job.splits + T - 1) / T * T;
  const int begin = first + split * chunk, end = min(length, begin + chunk);
  const int tiles = end > begin ? (end - begin + T - 1) / T : 0;
  const long long slot = (long long)batch * job.splits + split;

  if (tiles == 0) {  // the same for all blocks of the cluster
    if (threadIdx.x < HPC) {
      float* norm = job.norm + (slot * HEADS + rank * HPC + threadIdx.x) * 2;
      norm[0] = NEG_INF;
      norm[1] = 0;
    }
    if (job.splits == 1)
      for (int i = threadIdx.x; i < HEADS * COLS; i += THREADS) {
        int column = i % COLS, at = column < KC ? rank * KC + column : D + rank * RC + column - KC;
        if (at < DR) job.out[((long long)batch * HEADS + i / COLS) * DR + at] = 0;
      }
    return;
  }

  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(base + FULL + 8 * i, 128);
      barrier_init(base + DONE + 8 * i, WARPS);
    }
    for (int i = 0; i < SCORES; i++) barrier_init(base + SCORED + 8 * i, HPC * WPH);
    for (int i = 0; i < RING; i++) {
      barrier_init(base + SENT + 8 * i, 1);
      barrier_init(base + FREE + 8 * i, CL);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  for (int i = threadIdx.x; i < RING * HPAD * PST / 4; i += THREADS)
    ((u32*)(memory + AT_P))[i] = i % (PST / 4) == T / 2 ? 0x3f800000u : 0;  // no weight, factor 1
#if ROPE
  // The turns of two tiles' tokens, seen from their middle, as the lanes of an mma hold them.
  for (int i = threadIdx.x; i < 2 * (DK / 16 * 64); i += THREADS) {
    const int second = i / (DK / 16 * 64), unit = i / 64 % (DK / 16);
    const int l = i / 2 % 32, h = i % 2, f = unit * 8 + l % 4 * 2, t = l / 4 + 8 * h + (second ? 0 : -T);
    float c0, s0, c1, s1;
    angle(job.freq[f], t, c0, s0);
    angle(job.freq[f + 1], t, c1, s1);
    u32* to = (u32*)(memory + AT_TURNS) + i * 2;
    to[0] = pack(c0, c1);
    to[1] = pack(s0, s1);
  }
#endif
  __syncthreads();
  cluster_sync();

  if (warp < WARPS) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 104;");
    const int head = warp / WPH, unit = warp % WPH * UNITS;

    // The query, turned to the middle of two tiles: this lane's pairs, and the turn to the next two.
    float qx[PAIRS], qy[PAIRS], qc[PAIRS], qs[PAIRS];
    auto place_query = [&](int tile) {
#pragma unroll
      for (int n = 0; n < PAIRS; n++) {
        const int pair = n * 32 + lane, f = unit * 8 + pair;
        if (pair < UNITS * 8 && f < DK / 2) {
          if (tile % RESEED == 0) {
            const u16* q = job.q + ((long long)batch * HEADS + rank * HPC + head) * DK + f;
            qx[n] = low(q[0]) * job.scale;
            qy[n] = low(q[DK / 2]) * job.scale;
#if ROPE
            if (job.turn) {
              const float* turn = job.turn + batch * DK + f;
              const float x = qx[n];
              qx[n] = x * turn[0] + qy[n] * turn[DK / 2];
              qy[n] = qy[n] * turn[0] - x * turn[DK / 2];
            }
            angle(job.freq[f], length - 1 - (begin + tile * T + T), qc[n], qs[n]);
#endif
          }
#if ROPE
          const float x = qx[n];
          qx[n] = x * qc[n] - qy[n] * qs[n];
          qy[n] = qy[n] * qc[n] + x * qs[n];
          if (tile % RESEED == 0) angle(job.freq[f], -2 * T, qc[n], qs[n]);
#endif
          u16* to = (u16*)(memory + AT_Q) + head * DK + f;
          to[0] = (u16)pack(qx[n], 0.f);
          to[DK / 2] = (u16)pack(qy[n], 0.f);
        }
      }
      __syncwarp();
    };
    const u32 k_at = base + lane % 16 * ROWB + head * DK * 2 + unit * 16 + lane / 16 * DK;
    const u32 q_at = base + AT_Q + head * DK * 2 + unit * 16 + lane / 8 % 2 * DK;
    auto score = [&](int tile, int stage) {
      float dot[2][4] = {};
      const u32 keys = k_at + stage * (T * ROWB);
#pragma unroll
      for (int u = 0; u < UNITS; u++) {
        if (WPH * UNITS > DK / 16 && unit + u >= DK / 16) break;
        u32 k[4], q[2];
        load4(k, keys + u * 16);
        load2(q, q_at + u * 16);
#if ROPE
        const int place = tile % 2 * (DK / 16) + unit + u;
        const uint4 turns = *(uint4*)(memory + AT_TURNS + place * 512 + lane * 16);
        turn(k[0], k[2], turns.x, turns.y);
        turn(k[1], k[3], turns.z, turns.w);
#endif
        mma(dot[u % 2], k, q[0], q[1]);
      }
      if (lane % 4 == 0) {
        const int place = (tile % SCORES * WPH + warp % WPH) * HPC + head;
        float* out = (float*)(memory + AT_S) + place * T + lane / 4;
        out[0] = dot[0][0] + dot[1][0];
        out[8] = dot[0][2] + dot[1][2];
      }
      __syncwarp();
      if (lane == 0) arrive(base + SCORED + tile % SCORES * 8);
      if (tile % 2 && tile + 1 < tiles) place_query(tile + 1);
    };

    // Sums: this warp's columns. The last warps may repeat columns of their neighbours.
    float acc[MT][NTW][4] = {};
    const int n0 = min(warp * NTW, NT - NTW);
    const u32 b_at = base + lane % 16 * ROWB + (n0 + lane / 16) * 16;
    const u32 a_at = base + AT_P + lane % 16 * PST + lane / 16 * 16;

    int stage = 0, parity = 0, old = 0;  // of tile i + LAG; of tile i
    if (head < HPC) place_query(0);
    for (int i = -LAG; i < tiles; i++) {
      if (i + LAG < tiles) {
        wait_full(base + FULL + stage * 8, parity);
        if (head < HPC) score(i + LAG, stage);
        if (++stage == STAGES) stage = 0, parity ^= 1;
      }
      if (i >= 0) {
        wait_full(base + SENT + i % RING * 8, i / RING & 1);
        const unsigned char* rows = memory + AT_P + i % RING * (HPAD * PST) + 2 * T;
        bool change = false;
#pragma unroll
        for (int m = 0; m < HPAD; m += 32)
          change |= (HPAD % 32 == 0 || m + lane < HPAD) && *(float*)(rows + (m + lane) * PST) != 1.f;
        if (__any_sync(~0u, change))
#pragma unroll
          for (int m = 0; m < 2 * MT; m++) {
            const float factor = *(float*)(rows + (m * 8 + lane / 4) * PST);
#pragma unroll
            for (int n = 0; n < NTW; n++) {
              acc[m / 2][n][m % 2 * 2] *= factor;
              acc[m / 2][n][m % 2 * 2 + 1] *= factor;
            }
          }
        u32 a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) load4(a[m], a_at + (i % RING * HPAD + m * 16) * PST);
        const u32 values = b_at + old * (T * ROWB);
#pragma unroll
        for (int n = 0; n < NTW; n += 2) {
          u32 b[4];
          if (n + 1 < NTW)
            load4_turned(b, values + n * 16);
          else
            load2_turned(b, values + n * 16);
#pragma unroll
          for (int h = 0; h < 2; h++)
            if (n + h < NTW)
#pragma unroll
              for (int m = 0; m < MT; m++) mma(acc[m][n + h], a[m], b[2 * h], b[2 * h + 1]);
        }
        __syncwarp();
        if (lane == 0) arrive(base + DONE + old * 8);
        if (++old == STAGES) old = 0;
      }
    }
    cluster_sync();
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = m * 16 + h * 8 + lane / 4;
        if (row >= HEADS) continue;
        const float scale = 1.f / ((float*)(memory + AT_SUM))[row];
#pragma unroll
        for (int n = 0; n < NTW; n++) {
          const int col = (n0 + n) * 8 + lane % 4 * 2;
          const int at = col < KC ? rank * KC + col : D + rank * RC + col - KC;
          if (at >= DR) continue;
          const float x = acc[m][n][2 * h], y = acc[m][n][2 * h + 1];
          if (job.splits == 1)
            *(float2*)(job.out + (slot * HEADS + row) * DR + at) = make_float2(x * scale, y * scale);
          else
            *(float2*)(job.part + (slot * HEADS + row) * DR + at) = make_float2(x, y);
        }
      }
  } else if (warp >= WARPS + 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    // Copies: four tokens per warp and tile, 16 bytes per lane. Bulk copies of single rows take longer to
    // issue than the card takes to bring them.
    constexpr int KEYS = KC / 8, RESTS = RC / 8, MINE = T / 4;
    const int mover = warp - WARPS - 4;
    const int residual = max(0, min(RC, R - rank * RC)) / 8;
    auto row = [&](int token, long long in_block, long long in_slot) {
      token = min(token, end - 1);  // past the end: any row that is finite
      if (!cache.table) return batch * in_block + token * in_slot;
      const int page = cache.table[batch * cache.pages + token / cache.page_size];
      return page * in_block + token % cache.page_size * in_slot;
    };
    int stage = 0, parity = 1;
    for (int i = 0; i < tiles + STAGES; i++) {
      if (i >= STAGES) {
        wait_full(base + DONE + stage * 8, parity);
        if (mover == 0 && lane < CL)
          arrive_remote(remote(base + FREE + (i - STAGES) % RING * 8, lane));
      }
      if (i < tiles) {
        const int first = begin + i * T + mover * MINE;
        const u32 to = base + (stage * T + mover * MINE) * ROWB;
#pragma unroll
        for (int n = 0; n < MINE; n++) {
          const u16* from = cache.k + row(first + n, cache.k_batch, cache.k_slot) + rank * KC + lane * 8;
#pragma unroll
          for (int k = 0; k < KEYS; k += 32)
            if (KEYS % 32 == 0 || k + lane < KEYS) copy16(to + n * ROWB + (k + lane) * 16, from + k * 8);
        }
#pragma unroll
        for (int k = 0; k < MINE * RESTS; k += 32) {
          const int n = (k + lane) / (RESTS ? RESTS : 1), part = (k + lane) % (RESTS ? RESTS : 1);
          if (n < MINE && part < residual)
            copy16(to + n * ROWB + (KEYS + part) * 16,
                   cache.c + row(first + n, cache.c_batch, cache.c_slot) + rank * RC + part * 8);
        }
        arrive_after_copies(base + FULL + stage * 8);
      }
      if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    cluster_sync();
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    // Softmax: half warps with a lane per token; `top` is the same in all lanes of a half.
    const int half = 2 * (warp - WARPS) + lane / 16, t = lane % 16;
    float top[OWN], sum[OWN] = {};
#pragma unroll
    for (int n = 0; n < OWN; n++) top[n] = NEG_INF;
    const int mine = 2 * (warp - WARPS) < HPC ? tiles : 0;  // a warp without heads would fall out of step
    for (int i = 0; i < mine; i++) {
      const u32 bar = base + SENT + i % RING * 8;
      if (warp == WARPS && lane == 0) expect(bar, HEADS * (2 * T + 4));
      wait_full(base + SCORED + i % SCORES * 8, i / SCORES & 1);
      u32 x0[OWN], x1[OWN];
      float factor[OWN];
#pragma unroll
      for (int n = 0; n < OWN; n++) {
        const int head = half + 8 * n;
        const int token = begin + i * T + t;
        const bool valid = token < end && head < HPC;
        float x = 0;
#pragma unroll
        for (int k = 0; k < WPH; k++)
          x += ((float*)(memory + AT_S))[((i % SCORES * WPH + k) * HPC + min(head, HPC - 1)) * T + t];
        if (job.cap != 0) x = job.cap * tanhf(x / job.cap);
        if (job.slopes) x -= job.slopes[rank * HPC + min(head, HPC - 1)] * (length - 1 - token);
        x = valid ? x : NEG_INF;
        float most = x;
#pragma unroll
        for (int m = 8; m; m /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, m));
        // The scale follows only where a weight would pass 2^8: nearly never after the first tile.
        const float before = top[n];
        if (most > before + 8) top[n] = most;
        factor[n] = top[n] == before ? 1.f : exp2_fast(before - top[n]);
        const float p = valid ? exp2_fast(x - (top[n] == NEG_INF ? 0.f : top[n])) : 0.f;
        const float q = __shfl_xor_sync(~0u, p, 1);
        const u32 word = lane & 1 ? pack(q, p) : pack(p, q);
        sum[n] = sum[n] * factor[n] + low(lane & 1 ? word >> 16 : word);
        x0[n] = __shfl_sync(~0u, word, (lane & 16) + t % 4 * 4);
        x1[n] = __shfl_sync(~0u, word, (lane & 16) + t % 4 * 4 + 2);
      }
      if (i >= RING) wait_full(base + FREE + i % RING * 8, i / RING - 1 & 1);
#pragma unroll
      for (int n = 0; n < OWN; n++)
        if (half + 8 * n < HPC) {
          const u32 row = base + AT_P + (i % RING * HPAD + rank * HPC + half + 8 * n) * PST;
#pragma unroll
          for (int block = 0; block < CL; block += 4) {
            const int to = block + t / 4;
            if (to < CL) send2(remote(row + t % 4 * 8, to), x0[n], x1[n], remote(bar, to));
          }
          if (t < CL) send(remote(row + 2 * T, t), __float_as_uint(factor[n]), remote(bar, t));
        }
    }
#pragma unroll
    for (int n = 0; n < OWN; n++) {
#pragma unroll
      for (int m = 8; m; m /= 2) sum[n] += __shfl_xor_sync(~0u, sum[n], m);
      const int global = rank * HPC + half + 8 * n;
      if (half + 8 * n < HPC) {
        if (t == 0 && job.splits > 1) {
          job.norm[(slot * HEADS + global) * 2] = top[n];
          job.norm[(slot * HEADS + global) * 2 + 1] = sum[n];
        }
        if (t < CL)
          asm volatile("st.shared::cluster.f32 [%0], %1;"
                       :: "r"(remote(base + AT_SUM + global * 4, t)), "f"(sum[n]) : "memory");
      }
    }
    cluster_sync();
  }
}

// The splits of one head of one batch row become its output.
extern "C" __global__ void __launch_bounds__(256)
slim_combine(const float* __restrict__ part, const float* __restrict__ norm, float* __restrict__ out,
             int splits) {
  const int head = blockIdx.y, at = (blockIdx.x * 256 + threadIdx.x) * 2;
  const long long batch = blockIdx.z;
  if (at >= DR) return;
  norm += (batch * splits * HEADS + head) * 2;
  part += (batch * splits * HEADS + head) * DR + at;
  float top = NEG_INF;
  for (int i = 0; i < splits; i++) top = fmaxf(top, norm[i * HEADS * 2]);
  float x = 0, y = 0, sum = 0;
#pragma unroll 4
  for (int i = 0; i < splits; i++) {
    const float2 given = *(const float2*)(norm + i * HEADS * 2);  // largest score, sum of weights
    const float2 v = *(const float2*)(part + (long long)i * HEADS * DR);
    const float w = given.x == top ? 1.f : exp2_fast(given.x - top);
    const bool some = given.y != 0;  // an empty split has written no sums
    sum += some ? w * given.y : 0.f;
    x += some ? w * v.x : 0.f;
    y += some ? w * v.y : 0.f;
  }
  const float scale = sum == 0 ? 0.f : 1.f / sum;
  *(float2*)(out + (batch * HEADS + head) * DR + at) = make_float2(x * scale, y * scale);
}

// Residuals in 8 bits, [batch or page][slot][R + 2] with a bfloat16 scale each, as numbers [...][slot][R]. On
// their own: loads that pass through registers hold up the copies of slim_decode.
extern "C" __global__ void __launch_bounds__(256)
slim_open(const signed char* __restrict__ codes, u16* __restrict__ out, long long in_batch, long long in_slot,
          int slots) {
  constexpr int PER = R ? R / 8 : 1;
  const long long i = blockIdx.x * 256ll + threadIdx.x, batch = blockIdx.z, slot = i / PER;
  if (slot >= slots) return;
  const u16* from = (const u16*)(codes + batch * in_batch + slot * in_slot);
  const float scale = __uint_as_float((u32)__ldg(from + R / 2) << 16);
  const int part = i % PER;
  u32 word[4];
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const u16 two = __ldg(from + part * 4 + k);
    word[k] = pack((float)(signed char)two * scale, (float)(signed char)(two >> 8) * scale);
  }
  *(uint4*)(out + (batch * slots + slot) * R + part * 8) = make_uint4(word[0], word[1], word[2], word[3]);
}

// --- few tokens times many rows ---------------------------------------------------------------------
// A matrix is read once for 32 rows of the batch, on tensor cores. What has more digits than a bfloat16 is
// a sum of two: exact for 16-bit integers, to 2^-17 for float32. The inner axis is permuted alike on both
// sides, so that a lane's eight numbers of a step lie beside one another in memory.

constexpr int INNER = 256, COUNT = 4;  // threads; tiles of 8 rows of the batch

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
__device__ __forceinline__ void mma_bf(float* d, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// d [16 rows, 8 of the batch] += rows (lane / 4 of `a`, lane / 4 + 8 of `b`) times the batch's `x`.
__device__ __forceinline__ void product(float* d, const Pairs& a, const Pairs& b, const Pairs& x) {
#pragma unroll
  for (int s = 0; s < 4; s += 2) {
    mma_bf(d, a.big[s], b.big[s], a.big[s + 1], b.big[s + 1], x.big[s], x.big[s + 1]);
    mma_bf(d, a.big[s], b.big[s], a.big[s + 1], b.big[s + 1], x.small[s], x.small[s + 1]);
    mma_bf(d, a.small[s], b.small[s], a.small[s + 1], b.small[s + 1], x.big[s], x.big[s + 1]);
    mma_bf(d, a.small[s], b.small[s], a.small[s + 1], b.small[s + 1], x.small[s], x.small[s + 1]);
  }
}
__device__ __forceinline__ void eight(float* x, const u16* from) {
  const uint4 raw = __ldg((const uint4*)from);
  x[0] = low(raw.x), x[1] = high(raw.x), x[2] = low(raw.y), x[3] = high(raw.y);
  x[4] = low(raw.z), x[5] = high(raw.z), x[6] = low(raw.w), x[7] = high(raw.w);
}
__device__ __forceinline__ void eight(float* x, const float* from) {
  *(float4*)x = *(const float4*)from;
  *(float4*)(x + 4) = *(const float4*)(from + 4);
}
// The warps' sums of one tile become one: `put(row of 16, row of 32 of the batch, sum)`.
template <class Put>
__device__ __forceinline__ void gather(float (*acc)[4], float* room, int tiles, Put put) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int n = 0; n < COUNT; n++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      room[warp * 512 + (n * 8 + lane % 4 * 2 + i % 2) * 16 + lane / 4 + i / 2 * 8] = acc[n][i];
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
  float acc[COUNT][4] = {};
  auto sums = [&](int n, int at) {  // a lane whose row of the batch is none reads another's
    const int b = first + min(n * 8 + lane / 4, many - 1);
    return mix.sums + ((long long)b * HEADS + head) * DR + at;
  };
  const uint4 none = make_uint4(0, 0, 0, 0);
#pragma unroll 4
  for (int k = warp * 32 + lane % 4 * 8; k - lane % 4 * 8 < D; k += INNER) {
    const bool in = k < D;
    const Pairs a = integers(in ? __ldg((const uint4*)(mix.whole + r0 * D + k)) : none);
    const Pairs b = integers(in ? __ldg((const uint4*)(mix.whole + r1 * D + k)) : none);
    float scales[8];
    eight(scales, mix.columns + (in ? k : 0));
#pragma unroll
    for (int n = 0; n < COUNT; n++)
      if (n < tiles) {
        float x[8];
        eight(x, sums(n, in ? k : 0));
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] *= scales[i];
        product(acc[n], a, b, halved(x));
      }
  }
  const float s0 = low(mix.rows[r0]), s1 = low(mix.rows[r1]);
#pragma unroll
  for (int n = 0; n < COUNT; n++) acc[n][0] *= s0, acc[n][1] *= s0, acc[n][2] *= s1, acc[n][3] *= s1;
  const u16* const second = mix.rest + (long long)HEADS * mix.values * R;
  for (int k = warp * 32 + lane % 4 * 8; k - lane % 4 * 8 < R; k += INNER) {
    const bool in = k < R;
    const Pairs a = both(in ? __ldg((const uint4*)(mix.rest + r0 * R + k)) : none,
                         in ? __ldg((const uint4*)(second + r0 * R + k)) : none);
    const Pairs b = both(in ? __ldg((const uint4*)(mix.rest + r1 * R + k)) : none,
                         in ? __ldg((const uint4*)(second + r1 * R + k)) : none);
#pragma unroll
    for (int n = 0; n < COUNT; n++)
      if (n < tiles) {
        float x[8];
        eight(x, sums(n, in ? D + k : 0));
        product(acc[n], a, b, halved(x));
      }
  }
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
  float acc[COUNT][4] = {};
#pragma unroll 2
  for (int k = (blockIdx.y * (INNER / 32) + warp) * 32 + lane % 4 * 8; k - lane % 4 * 8 < inner;
       k += gridDim.y * INNER) {
    const bool in = k < inner;
    const Pairs a = both(in ? __ldg((const uint4*)(rest.weight + r0 * inner + k)) : none,
                         in ? __ldg((const uint4*)(second + r0 * inner + k)) : none);
    const Pairs b = both(in ? __ldg((const uint4*)(rest.weight + r1 * inner + k)) : none,
                         in ? __ldg((const uint4*)(second + r1 * inner + k)) : none);
#pragma unroll
    for (int n = 0; n < COUNT; n++)
      if (n < tiles) {
        const long long token = first + min(n * 8 + lane / 4, many - 1);
        float x[8];
        eight(x, k < rest.width ? rest.x + token * rest.x_row + k
                                : rest.primary + token * rest.primary_row + (in ? k - rest.width : 0));
        product(acc[n], a, b, halved(x));
      }
  }
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

constexpr int TOKENS = 4, AT_ONCE = 2048, TAIL = 512, TAIL_ROWS = 256, GROUPS = 16;

struct Noise {
  float* left;              // [batch][D] by channel; moved in place
  const short* order;       // [D] channels as they are rounded
  const u16* weight;        // of this block [size][D - first - size]; of all the tail's blocks
  const float* scale;       // [batch] of 8-bit rows; null: rounded to the dtype
  u16* out;                 // [batch][D] of the tail: all channels rounded to the dtype; or null
  int batch, first, size;   // the block's channels in their order; the tail has no one size
  int least;                // the size at which halving ends
};

// What rounding takes away from x, itself rounded as torch does.
__device__ __forceinline__ float lost(const Noise& noise, int token, float x) {
  float kept = low(pack(x, 0.f));
  if (noise.scale) {
    const float scale = noise.scale[token];
    kept = __fmul_rn(fminf(fmaxf(rintf(x / scale), -127.f), 127.f), scale);
  }
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
#pragma unroll 4
    for (int i = threadIdx.x; i < rows; i += INNER) {
      const float* from = noise.left + (long long)token * D + noise.order[noise.first + begin + i];
      for (int t = 0; t < many; t++) errors[t][i] = lost(noise, token + t, from[t * D]);
    }
    __syncthreads();
    const u16* weight = noise.weight + (long long)begin * rest + column;
    if (column < rest)
#pragma unroll 8
      for (int row = threadIdx.x / 2; row < rows; row += INNER / 2) {
        float w[8];
        eight(w, weight + (long long)row * rest);
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
          if (t < many)
#pragma unroll
            for (int i = 0; i < 8; i++) acc[t][i] += errors[t][row] * w[i];
      }
    __syncthreads();
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
  __shared__ float left[2 * TAIL_ROWS], errors[TAIL_ROWS], room[GROUPS * TAIL_ROWS];
  const int token = blockIdx.x, count = D - noise.first;
  float* const all = noise.left + (long long)token * D;
  const short* const order = noise.order + noise.first;
  for (int i = threadIdx.x; i < count; i += TAIL) left[i] = all[order[i]];
  __syncthreads();
  const u16* weight = noise.weight;
  for (int first = 0; count - first > noise.least;) {
    const int size = (count - first + 1) / 2, rest = count - first - size, wide = rest / 8;
    for (int i = threadIdx.x; i < size; i += TAIL) errors[i] = lost(noise, token, left[first + i]);
    __syncthreads();
    const int group = threadIdx.x / wide, column = threadIdx.x % wide * 8;
    if (group < GROUPS) {
      float acc[8] = {};
#pragma unroll 8
      for (int row = group; row < size; row += GROUPS) {
        float w[8];
        eight(w, weight + row * rest + column);
#pragma unroll
        for (int i = 0; i < 8; i++) acc[i] += errors[row] * w[i];
      }
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
    weight += size * rest;
    first += size;
  }
  for (int i = threadIdx.x; i < count; i += TAIL) all[order[i]] = left[i];
  if (!noise.out) return;
  __syncthreads();
  for (int i = threadIdx.x * 2; i < D; i += TAIL * 2)
    *(u32*)(noise.out + (long long)token * D + i) = pack(all[i], all[i + 1]);
}
"""

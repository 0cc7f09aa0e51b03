"""CUDA C++ of the slim decode step; `slim_kernel` compiles it at run time and says what it computes.

Why clusters: one query needs heads · (d + r) float32 sums, 557 KB at Llama-2-7B's geometry and more than one
multiprocessor holds. A cluster of CL thread blocks splits the columns. A block reads its columns of a cache
row once from device memory into shared memory, where two passes use it: the scores of its own HEADS/CL heads
(their keys are exactly its key columns), and the sums of ALL heads over its columns. In between, each block
sends its heads' weights to the others through distributed shared memory: 1 KB per 16 tokens.

Clusters share the tiles (16 tokens of one row of the batch) of the whole batch evenly, whatever the rows'
lengths; a row that several clusters had a piece of is put together by `slim_combine`.

Roles of a block's warps, each a loop over the same tiles, STAGES of which are in shared memory:

    copy     2     tiles come by the tensor memory accelerator, in swizzled blocks of 64 columns; residuals
                   that are cached in 8 bits become numbers here
    score    4     keys times query on tensor cores (mma.sync); the keys pass through registers to be turned
    softmax  2     weights, sent to every block of the cluster
    sum      8     columns [64, tokens] times weights [tokens, heads] on tensor cores (wgmma), both from
                   shared memory: the sums stand in registers, transposed

Instead of absolute angles, the query is turned to the middle of every tile, in float32, and the keys of
the tile by the few constant angles around it, in the cache's dtype: as exact as stock code, which
rounds the turned key too.
"""


def product(heads: int, kind: str) -> str:
    """The text of `wgmma`: sums [64 columns, heads] += columns [64, 16 tokens] · weights [16 tokens, heads].

    Args:
        heads: a multiple of 8, at most 256.
        kind: of the inputs, "bf16" or "f16".
    """
    count = heads // 2
    sums = ", ".join(f"%{n}" for n in range(count))
    outputs = ", ".join(f'"+f"(d[{n}])' for n in range(count))
    return f"""
__device__ __forceinline__ void wgmma(float* d, u64 columns, u64 weights, int add) {{
  asm volatile("{{.reg .pred p;\\nsetp.ne.b32 p, %{count + 2}, 0;\\n"
               "wgmma.mma_async.sync.aligned.m64n{heads}k16.f32.{kind}.{kind} {{{sums}}}, "
               "%{count}, %{count + 1}, p, 1, 1, 1, 0;}}"
               : {outputs} : "l"(columns), "l"(weights), "r"(add));
}}
"""


COMMON = r"""
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int D = HEADS * DK, DR = D + R;

#define NEG_INF __int_as_float(0xff800000)

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
"""

DECODE = r"""
constexpr int T = 16, RING = 4, RESEED = 256;
constexpr int SCORE = 8, SOFTMAX = 12, COPY = 14, THREADS = 512;  // the first warp of each role
constexpr int HPC = HEADS / CL;                         // heads whose scores this block computes
constexpr int HPAD = (HEADS + 7) / 8 * 8;
constexpr int KC = HPC * DK;                            // columns of this block: keys, then RC of C
constexpr int KB = KC / 64, RB = (RC + 63) / 64, BLOCKS = KB + RB;  // of 64 columns
constexpr int MINE = (BLOCKS + 1) / 2;                  // of a warpgroup
constexpr int EIGHTS = HPAD / 8;                        // of heads
constexpr int SPOTS = CL * BLOCKS * 128;                // four sums each of eight heads
constexpr int UNITS = DK / 16;                          // of a head: 8 channels and their partners
constexpr int CHUNKS = (HPC + 7) / 8, WPC = 4 / CHUNKS; // of 8 heads; warps that share a head's units
constexpr int UPW = (UNITS + WPC - 1) / WPC;
constexpr int HROW = 20;                                // a head's 16 scores; no bank conflicts
constexpr int OWN = CHUNKS;                             // heads per quarter warp in the softmax
constexpr int GCD = DK % 64 == 0 ? 64 : DK % 32 == 0 ? 32 : 16, PERIOD = 64 / GCD;
constexpr bool HALVED = UNITS % WPC * 2 == WPC && HPC == 8;  // two warps share a unit

// A tile: 8 tokens' blocks, then those of the other 8, so that memory is read in the longer stretches.
constexpr int BLOCK = 8 * 128, EIGHT = BLOCKS * BLOCK, STAGE = 2 * EIGHT, SLOT = HPAD * (2 * T + 8);
// Tiles asked for at once. Blocks that ask for more get it at the cost of others, which end the later.
constexpr int FLIGHT = STAGE > 40 * 1024 ? 2 : 80 * 1024 / STAGE;
constexpr int AT_P = STAGES * STAGE;                    // weights, each head's factor and their sum
constexpr int AT_S = AT_P + RING * SLOT;                // scores, a plane for each warp of a chunk
constexpr int FULL = AT_S + STAGES * WPC * HPC * HROW * 4;  // a tile has come
constexpr int DONE = FULL + STAGES * 8;                 // its sums are done in this block
constexpr int SCORED = DONE + STAGES * 8;               // its scores are written
constexpr int SENT = SCORED + STAGES * 8;               // its weights have come from every block
constexpr int FREE = SENT + RING * 8;                   // every block is done with its weights
constexpr int AT_SHARE = FREE + RING * 8;               // where this cluster's tiles begin, and how many

__device__ __forceinline__ u32 shared(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void mma(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile(MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void load4(u32* x, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
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
// Radians per position in whole turns of 2^64: a product with a distance drops the whole turns by itself.
__device__ __forceinline__ u64 turns_of(float freq) {
  const double turns = freq * 0.15915494309189535;
  return __double2ull_rz((turns - floor(turns)) * 18446744073709551616.0);
}
// Cosine and sine of distance · freq to 2^-21, at any distance.
__device__ __forceinline__ void angle(u64 turns, int distance, float& c, float& s) {
  const float radians = (int)((turns * (long long)distance) >> 32) * 1.4629180792671596e-9f;
  s = __sinf(radians), c = __cosf(radians);
}

__device__ __forceinline__ void barrier_init(u32 bar, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(count) : "memory");
}
__device__ __forceinline__ void expect(u32 bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait(u32 bar, u32 parity) {
  asm volatile(
      "{.reg .pred p;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again;}" :: "r"(bar), "r"(parity) : "memory");
}
__device__ __forceinline__ void arrive(u32 bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(bar) : "memory");
}
__device__ __forceinline__ void arrive_remote(u32 bar) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" :: "r"(bar) : "memory");
}
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// What ordinary instructions wrote is seen by wgmma.
__device__ __forceinline__ void to_tensor_cores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ u32 remote(u32 at, int rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  return there;
}
__device__ __forceinline__ void send2(u32 at, u32 x, u32 y, u32 bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];"
               :: "r"(at), "r"(x), "r"(y), "r"(bar) : "memory");
}

struct __align__(64) Map { u64 words[16]; };  // CUtensorMap

struct Cache {
  Map k;                      // [batch or page][D / 64][slot][64]
  Map c;                      // [batch or page][slot][R], where the residual is in 16 bits
  const unsigned char* codes; // the residual in 8 bits, [batch or page][slot][R + 2]; or null
  long long codes_batch;      // stride in bytes
  const int* table;           // [batch][pages] page numbers, or null: contiguous
  int pages, page_size;       // a multiple of T
  int pad[8];
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
  int batch;
  float* out;          // [batch][HEADS][DR]
  float* part;         // [2 * clusters][EIGHTS][SPOTS][4] sums of pieces that are not a whole row
  float* norm;         // [2 * clusters][HEADS][2] their largest score, sum of weights
  int2* spans;         // [batch] where a row's first piece is in `part`, and the last cluster that has one
};

// Nothing of the cache is read twice: the hint says to evict it first.
#define TMA(axes) "cp.async.bulk.tensor." axes ".shared::cluster.global.mbarrier::complete_tx::bytes" \
                  ".L2::cache_hint "
__device__ __forceinline__ void copy_keys(u32 to, const Map& map, int block, int slot, int batch, u32 bar) {
  asm volatile(TMA("4d") "[%0], [%1, {%2, %3, %4, %5}], [%6], %7;"
               :: "r"(to), "l"(&map), "r"(0), "r"(slot), "r"(block), "r"(batch), "r"(bar),
                  "l"(0x12F0000000000000ull) : "memory");
}
__device__ __forceinline__ void copy_rest(u32 to, const Map& map, int column, int slot, int batch, u32 bar) {
  asm volatile(TMA("3d") "[%0], [%1, {%2, %3, %4}], [%5], %6;"
               :: "r"(to), "l"(&map), "r"(column), "r"(slot), "r"(batch), "r"(bar),
                  "l"(0x12F0000000000000ull) : "memory");
}

struct Row { int first, length, tiles; };  // slots first to length - 1, in tiles that begin at multiples of T
__device__ __forceinline__ Row row_of(const Job& job, int row) {
  const int length = job.lengths[row];
  int first = job.starts ? job.starts[row] : 0;
  if (job.window) first = max(first, length - job.window);
  return {first, length, length > first ? (length - 1) / T - first / T + 1 : 0};
}

struct Piece { int row, slot, tiles, first, length, place; };  // place: in `part`, or -1: the whole row
// Every piece of a row that this cluster's share of the tiles takes, in their order.
template <class Each>
__device__ __forceinline__ void walk(const Job& job, const int* share, Each each) {
  int at = share[1], left = share[2], place = 2 * blockIdx.y;
  for (int r = share[0]; left > 0; r++, at = 0) {
    const Row row = row_of(job, r);
    const int tiles = min(left, row.tiles - at);
    if (tiles <= 0) continue;
    each(Piece{r, (row.first / T + at) * T, tiles, row.first, row.length, tiles == row.tiles ? -1 : place});
    left -= tiles;
    place |= 1;
  }
}

// Where one of a thread's sums belongs: `group` of 8 heads, block of columns, `e` of four in wgmma's order.
struct Sum { int head, in_row; bool there; };
__device__ __forceinline__ Sum sum_at(int group, int rank, int block, int warp, int lane, int e) {
  const int head = group * 8 + lane % 4 * 2 + e % 2;
  const int column = (block < KB ? block : block - KB) * 64 + warp * 16 + lane / 4 + e / 2 * 8;
  const int at = block < KB ? rank * KC + column : D + rank * RC + column;
  return {head, head * DR + at, head < HEADS && column < (block < KB ? KC : RC) && at < DR};
}

// One warp: where this cluster's share begins; the first block also says which clusters have what row.
__device__ __forceinline__ void find_share(const Job& job, int* share) {
  const int lane = threadIdx.x, cluster = blockIdx.y;
  const u32 clusters = gridDim.y;  // times all tiles it is less than 2^32
  const int early = lane < job.batch ? row_of(job, lane).tiles : 0;
  int total = early;
  for (int b = lane + 32; b < job.batch; b += 32) total += row_of(job, b).tiles;
#pragma unroll
  for (int m = 16; m; m /= 2) total += __shfl_xor_sync(~0u, total, m);
  const int begin = (u32)total * cluster / clusters;
  const int end = (u32)total * (cluster + 1) / clusters;
  if (lane == 0) share[0] = share[1] = share[2] = 0;
  __syncwarp();
  int before = 0;
  for (int b0 = 0; b0 < job.batch; b0 += 32) {
    const int b = b0 + lane, tiles = b0 == 0 ? early : b < job.batch ? row_of(job, b).tiles : 0;
    int upto = tiles;
#pragma unroll
    for (int m = 1; m < 32; m *= 2) {
      const int x = __shfl_up_sync(~0u, upto, m);
      if (lane >= m) upto += x;
    }
    const int from = before + upto - tiles;
    if (begin >= from && begin < from + tiles) share[0] = b, share[1] = begin - from, share[2] = end - begin;
    if (blockIdx.x == 0 && cluster == 0 && b < job.batch) {
      const int first = ((from + 1) * clusters - 1) / (u32)max(total, 1);
      const int last = ((from + tiles) * clusters - 1) / (u32)max(total, 1);
      const bool fresh = (int)((u32)total * first / clusters) == from;
      job.spans[b] = tiles ? make_int2(2 * first + !fresh, last) : make_int2(-1, -1);
    }
    before += __shfl_sync(~0u, upto, 31);
  }
}

extern "C" __global__ void __cluster_dims__(CL, 1, 1) __launch_bounds__(THREADS, 1)
slim_decode(const __grid_constant__ Job job, const __grid_constant__ Cache cache) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 base = shared(memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, rank = blockIdx.x;
  int* const share = (int*)(memory + AT_SHARE);

  if (warp == 0) find_share(job, share);
  if (threadIdx.x == 64) asm volatile("prefetch.tensormap [%0];" :: "l"(&cache.k) : "memory");
  if (threadIdx.x == 32) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(base + FULL + 8 * i, cache.codes ? 3 : 1);
      barrier_init(base + DONE + 8 * i, 8);
      barrier_init(base + SCORED + 8 * i, 4);
    }
    for (int i = 0; i < RING; i++) {
      barrier_init(base + SENT + 8 * i, 1);
      barrier_init(base + FREE + 8 * i, CL);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  for (int i = threadIdx.x; i < RING * SLOT / 4; i += THREADS)  // no weight, factor 1, sum 1
    ((u32*)(memory + AT_P))[i] = i % (SLOT / 4) < HPAD * T / 2 ? 0 : 0x3f800000u;
  to_tensor_cores();
  auto begin = [] {
    __syncthreads();
    cluster_arrive();  // nothing is sent to another block before its barriers stand
  };

  if (warp < SCORE) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 176;");
    begin();
    cluster_wait();
    // Sums of this warpgroup's blocks of 64 columns. Where they are odd, both sum the one in the middle.
    const int n0 = warp < 4 ? 0 : BLOCKS - MINE;
    float acc[MINE][HPAD / 2];
    // Matrix descriptors: 128-byte swizzle, 8 tokens EIGHT bytes apart; weights in 8 heads x 8 tokens of 128.
    const u32 here = base & 0xffffff;  // above it stands the block's rank
    const u64 columns = (u64)1 << 62 | (u64)(EIGHT >> 4) << 32 | (u64)1 << 16 | (here + n0 * BLOCK) >> 4;
    const u64 weights = (u64)(128 >> 4) << 32 | (u64)HPAD << 16 | (here + AT_P) >> 4;
    int stage = 0, slot = 0, parity = 0;
    walk(job, share, [&](const Piece& piece) {
      float scale[HPAD / 4];
      for (int i = 0; i < piece.tiles; i++) {
        wait(base + SENT + slot * 8, parity);
        const float2* const factors = (const float2*)(memory + AT_P + slot * SLOT + HPAD * 2 * T);
        if (i) {
          bool change = false;
#pragma unroll
          for (int m = 0; m < HPAD; m += 32)
            change |= (HPAD % 32 == 0 || m + lane < HPAD) && factors[m + lane].x != 1.f;
          if (__any_sync(~0u, change))
#pragma unroll
            for (int j = 0; j < HPAD / 4; j++) {
              const float factor = factors[j / 2 * 8 + lane % 4 * 2 + j % 2].x;
#pragma unroll
              for (int n = 0; n < MINE; n++) {
                acc[n][j / 2 * 4 + j % 2] *= factor;
                acc[n][j / 2 * 4 + j % 2 + 2] *= factor;
              }
            }
        }
        to_tensor_cores();
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int n = 0; n < MINE; n++)
          wgmma(acc[n], columns + ((stage * STAGE + n * BLOCK) >> 4), weights + (slot * SLOT >> 4), i);
        asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (i + 1 == piece.tiles)
#pragma unroll
          for (int j = 0; j < HPAD / 4; j++)
            scale[j] = piece.place < 0 ? 1.f / factors[j / 2 * 8 + lane % 4 * 2 + j % 2].y : 1.f;
        __syncwarp();
        if (lane == 0) arrive(base + DONE + stage * 8);
        if (++stage == STAGES) stage = 0;
        if (++slot == RING) slot = 0, parity ^= 1;
      }
      if (piece.place < 0) {
#pragma unroll
        for (int n = 0; n < MINE; n++)
#pragma unroll
          for (int e = 0; e < HPAD / 2; e++) {
            const Sum at = sum_at(e / 4, rank, n0 + n, warp % 4, lane, e % 4);
            float* const row = job.out + (long long)piece.row * HEADS * DR;
            if (at.there) row[at.in_row] = acc[n][e] * scale[e / 4 * 2 + e % 2];
          }
      } else {
        float4* const to = (float4*)job.part + (long long)piece.place * EIGHTS * SPOTS + rank * BLOCKS * 128 +
                           n0 * 128 + threadIdx.x % 128;
#pragma unroll
        for (int n = 0; n < MINE; n++) {
          if (BLOCKS % 2 && n0 && n == 0) continue;  // the other warpgroup has it too
#pragma unroll
          for (int g = 0; g < EIGHTS; g++) {
            const float* const x = acc[n] + g * 4;
            to[g * SPOTS + n * 128] = make_float4(x[0], x[1], x[2], x[3]);
          }
        }
      }
    });
  } else if (warp < SOFTMAX) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 96;");
    // Scores: this warp's units of a chunk of heads. A lane's share of the query is that of head lane / 4.
    const int chunk = CHUNKS == 1 ? 0 : (warp - SCORE) / WPC, part = (warp - SCORE) % WPC;
    const int mine = chunk * 8 + lane / 4;
    const int flip = HALVED && part >= WPC / 2 ? 4 : 0;  // it begins with the fifth head
    auto unit_of = [&](int u) {  // where there is none, one that counts 0
      return HALVED && u + 1 == UPW ? u * WPC + part % (WPC / 2) : min(part + u * WPC, UNITS - 1);
    };
    const bool own = mine < HPC;
    float qx[UPW][2], qy[UPW][2];
#if ROPE
    float qc[UPW][2], qs[UPW][2];
    u32 turns[UPW][4];
#endif
    u32 keys[UPW][PERIOD];
#pragma unroll
    for (int u = 0; u < UPW; u++) {
      const int unit = unit_of(u);
#if ROPE
      // The turns of a tile's tokens, seen from its middle, as the lanes of an mma hold them.
      u64 turns_in[2];
#pragma unroll
      for (int n = 0; n < 2; n++) turns_in[n] = turns_of(job.freq[unit * 8 + lane % 4 * 2 + n]);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float c[2], s[2];
#pragma unroll
        for (int n = 0; n < 2; n++) angle(turns_in[n], lane / 4 + 8 * h - T / 2, c[n], s[n]);
        turns[u][2 * h] = pack(c[0], c[1]);
        turns[u][2 * h + 1] = pack(s[0], s[1]);
      }
#endif
#pragma unroll
      for (int p = 0; p < PERIOD; p++) {
        const int column = (chunk * 8 + p) * DK + unit * 8 + lane / 16 * (DK / 2), row = lane % 16;
        keys[u][p] = base + row / 8 * EIGHT + column / 64 * BLOCK + row % 8 * 128 +
                     ((column / 8 % 8) ^ (row % 8)) * 16;
      }
    }
    begin();
    cluster_wait();
    int stage = 0, parity = 0;
    walk(job, share, [&](const Piece& piece) {
      for (int i = 0; i < piece.tiles; i++) {
        const int slot = piece.slot + i * T;
        if (i % RESEED == 0) {
#pragma unroll
          for (int u = 0; u < UPW; u++) {
            const int f = unit_of(u) * 8 + lane % 4 * 2;
            const u16* from = job.q + ((long long)piece.row * HEADS + rank * HPC + (own ? mine : 0)) * DK + f;
            const u32 x = *(const u32*)from, y = *(const u32*)(from + DK / 2);
            const float scale = own && (HALVED || part + u * WPC < UNITS) ? job.scale : 0.f;
            qx[u][0] = low(x) * scale, qx[u][1] = high(x) * scale;
            qy[u][0] = low(y) * scale, qy[u][1] = high(y) * scale;
#if ROPE
#pragma unroll
            for (int n = 0; n < 2; n++) {
              float c, s;
              if (job.turn) {
                const float* turn = job.turn + (long long)piece.row * DK + f + n;
                c = turn[0], s = -turn[DK / 2];
                const float x = qx[u][n];
                qx[u][n] = x * c - qy[u][n] * s;
                qy[u][n] = qy[u][n] * c + x * s;
              }
              const u64 turns = turns_of(job.freq[f + n]);
              angle(turns, piece.length - 1 - slot + T / 2, c, s);  // to the middle of the tile before
              const float x = qx[u][n];
              qx[u][n] = x * c - qy[u][n] * s;
              qy[u][n] = qy[u][n] * c + x * s;
              angle(turns, -T, qc[u][n], qs[u][n]);
            }
#endif
          }
        }
        u32 q[UPW][2];  // the query, turned to the middle of the tile
#pragma unroll
        for (int u = 0; u < UPW; u++) {
#if ROPE
#pragma unroll
          for (int n = 0; n < 2; n++) {
            const float x = qx[u][n];
            qx[u][n] = x * qc[u][n] - qy[u][n] * qs[u][n];
            qy[u][n] = qy[u][n] * qc[u][n] + x * qs[u][n];
          }
#endif
          q[u][0] = pack(qx[u][0], qx[u][1]);
          q[u][1] = pack(qy[u][0], qy[u][1]);
        }
        wait(base + FULL + stage * 8, parity);
        // A warp is alone with its waits, so sums do not wait for each other: each is looked at when those of
        // the next head are on their way.
        constexpr int STEP = PERIOD * DK / 64 * BLOCK;  // between heads that lie alike in their blocks
        constexpr int MOST = HPC < 8 ? HPC : 8, SUMS = UPW < 2 ? 1 : 2;
        const u32 near = stage * STAGE + flip / PERIOD * STEP, far = stage * STAGE - flip / PERIOD * STEP;
        float out[4] = {}, dot[2][SUMS][4];
        auto look = [&](int h) {  // of the eight columns of an mma, the one of this head
          const float (&d)[SUMS][4] = dot[h % 2];
          if ((lane % 4 ^ flip / 2) == h / 2)
#pragma unroll
            for (int n = h % 2; n < 4; n += 2) out[n] = SUMS < 2 ? d[0][n] : d[0][n] + d[SUMS - 1][n];
        };
#pragma unroll
        for (int h = 0; h < MOST; h++) {
#pragma unroll
          for (int u = 0; u < UPW; u++) {
            float (&sum)[4] = dot[h % 2][u % SUMS];
            if (u < SUMS) sum[0] = sum[1] = sum[2] = sum[3] = 0;
            if (HALVED && u + 1 == UPW && h >= 4) continue;
            u32 k[4];
            load4(k, keys[u][h % PERIOD] + (h < 4 ? near : far) + h / PERIOD * STEP);
#if ROPE
            turn(k[0], k[2], turns[u][0], turns[u][1]);
            turn(k[1], k[3], turns[u][2], turns[u][3]);
#endif
            mma(sum, k, q[u][0], q[u][1]);
          }
          if (h) look(h - 1);
        }
        look(MOST - 1);
        float* const scores = (float*)(memory + AT_S) + (stage * WPC + part) * HPC * HROW;
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int head = chunk * 8 + lane % 4 * 2 + e % 2;
          if (HPC % 8 == 0 || head < HPC) scores[head * HROW + lane / 4 + e / 2 * 8] = out[e];
        }
        if (slot < piece.first || slot + T > piece.length) {  // what is not of the row counts as 0
          for (int n = threadIdx.x - 32 * SCORE; n < STAGE / 16; n += 128) {
            const int token = slot + n / (EIGHT / 16) * 8 + n / 8 % 8;
            if (token < piece.first || token >= piece.length)
              *(uint4*)(memory + stage * STAGE + n * 16) = make_uint4(0, 0, 0, 0);
          }
          to_tensor_cores();
        }
        __syncwarp();
        if (lane == 0) arrive(base + SCORED + stage * 8);
        if (++stage == STAGES) stage = 0, parity ^= 1;
      }
    });
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 64;");
    begin();
    if (warp < COPY) {
      // Softmax: quarter warps with a lane per two tokens; `top` is the same in all lanes of a quarter.
      const int quarter = 4 * (warp - SOFTMAX) + lane / 8, t = lane % 8;
      // A head's weights go in four pieces to two blocks at a time.
      constexpr int TURNS = (CL + 1) / 2;
      u32 there[TURNS], told[TURNS];
#pragma unroll
      for (int m = 0; m < TURNS; m++) {
        const int to = min(m * 2 + t / 4, CL - 1);
        there[m] = remote(base + AT_P + rank * HPC * 16, to) + t % 4 / 2 * HPAD * 16 + t % 2 * 8;
        told[m] = remote(base + SENT, to);
      }
      const u32 factors = remote(base + AT_P + HPAD * 2 * T + rank * HPC * 8, min(t, CL - 1));
      const u32 told_factors = remote(base + SENT, min(t, CL - 1));
      cluster_wait();
      int stage = 0, parity = 0, slot = 0, freed = 1;
      walk(job, share, [&](const Piece& piece) {
        float top[OWN], sum[OWN] = {};
#pragma unroll
        for (int n = 0; n < OWN; n++) top[n] = NEG_INF;
        for (int i = 0; i < piece.tiles; i++) {
          const int token = piece.slot + i * T + 2 * t;
          const bool in0 = token >= piece.first && token < piece.length;
          const bool in1 = token + 1 >= piece.first && token + 1 < piece.length;
          wait(base + SCORED + stage * 8, parity);
          float x[OWN], y[OWN];  // scores of the two tokens
#pragma unroll
          for (int n = 0; n < OWN; n++) {
            const float* scores = (const float*)(memory + AT_S) +
                                  (stage * WPC * HPC + min(quarter + 8 * n, HPC - 1)) * HROW + 2 * t;
            x[n] = y[n] = 0;
#pragma unroll
            for (int w = 0; w < WPC; w++) {
              const float2 part = *(const float2*)(scores + w * HPC * HROW);
              x[n] += part.x, y[n] += part.y;
            }
          }
          if (job.cap != 0)
#pragma unroll
            for (int n = 0; n < OWN; n++)
              x[n] = job.cap * tanhf(x[n] / job.cap), y[n] = job.cap * tanhf(y[n] / job.cap);
          if (job.slopes)
#pragma unroll
            for (int n = 0; n < OWN; n++) {
              const float slope = job.slopes[rank * HPC + min(quarter + 8 * n, HPC - 1)];
              x[n] -= slope * (piece.length - 1 - token), y[n] -= slope * (piece.length - 2 - token);
            }
          u32 words[OWN][2];
          float factor[OWN], total[OWN];
#pragma unroll
          for (int n = 0; n < OWN; n++) {
            x[n] = in0 ? x[n] : NEG_INF, y[n] = in1 ? y[n] : NEG_INF;
            // The scale follows only where a weight would pass 2^8: nearly never after the first tile.
            float most = fmaxf(x[n], y[n]);
            const u32 passed = __ballot_sync(~0u, most > top[n] + 8);
            factor[n] = 1.f;
            if (passed) {
#pragma unroll
              for (int m = 4; m; m /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, m));
              if (passed >> (lane & 24) & 0xff) {
                factor[n] = exp2_fast(top[n] - most);
                top[n] = most;
              }
            }
            const float scale = top[n] == NEG_INF ? 0.f : top[n];
            const u32 word = pack(in0 ? exp2_fast(x[n] - scale) : 0.f, in1 ? exp2_fast(y[n] - scale) : 0.f);
            sum[n] = sum[n] * factor[n] + (low(word) + high(word));
#pragma unroll
            for (int m = 0; m < 2; m++) words[n][m] = __shfl_sync(~0u, word, (lane & 24) + t % 4 * 2 + m);
            total[n] = sum[n];
          }
          if (i + 1 == piece.tiles)
#pragma unroll
            for (int n = 0; n < OWN; n++)
#pragma unroll
              for (int m = 4; m; m /= 2) total[n] += __shfl_xor_sync(~0u, total[n], m);
          wait(base + FREE + slot * 8, freed);
          if (warp == SOFTMAX && lane == 0) expect(base + SENT + slot * 8, HEADS * (2 * T + 8));
#pragma unroll
          for (int n = 0; n < OWN; n++) {
            const int head = quarter + 8 * n;
            if (head >= HPC) continue;
            const u32 at = slot * SLOT;
#pragma unroll
            for (int m = 0; m < TURNS; m++)
              if (m * 2 + t / 4 < CL)
                send2(there[m] + at + head * 16, words[n][0], words[n][1], told[m] + slot * 8);
            if (t < CL)
              send2(factors + at + head * 8, __float_as_uint(factor[n]), __float_as_uint(total[n]),
                    told_factors + slot * 8);
            if (i + 1 == piece.tiles && piece.place >= 0 && t == 0)
              *(float2*)(job.norm + ((long long)piece.place * HEADS + rank * HPC + head) * 2) =
                  make_float2(top[n], total[n]);
          }
          if (++stage == STAGES) stage = 0, parity ^= 1;
          if (++slot == RING) slot = 0, freed ^= 1;
        }
      });
    } else {
      // Copies: the first of these warps asks for tiles. Residuals in 8 bits are opened by both, 8 tokens
      // each, two numbers of 64 per lane and token; what comes next is asked for before what came is written.
      constexpr int PER = RB ? RB : 1, HALF = T / 2, FAR = 16;
      const int side = warp - COPY;
      int stage = 0, parity = 1, tile = 0;
      bool joined = false;
      auto join = [&] {
        if (!joined) cluster_wait();
        joined = true;
      };
      auto free = [&] {  // the tile before in this stage is done with; so are its weights
        if (tile >= STAGES) {
          join();
          wait(base + DONE + stage * 8, parity);
          if (side == 0 && lane < CL) arrive_remote(remote(base + FREE + (tile - STAGES) % RING * 8, lane));
        }
      };
      auto next = [&] {
        tile++;
        if (++stage == STAGES) stage = 0, parity ^= 1;
      };
      auto copy = [&](const Piece& piece, int i) {
        free();
        if (tile >= FLIGHT) wait(base + FULL + (tile - FLIGHT) % STAGES * 8, (tile - FLIGHT) / STAGES & 1);
        if (side == 0 && lane == 0) {
          int slot = piece.slot + i * T, batch = piece.row;
          if (cache.table) {
            batch = cache.table[(long long)batch * cache.pages + slot / cache.page_size];
            slot %= cache.page_size;
          }
          const u32 to = base + stage * STAGE, bar = base + FULL + stage * 8;
          const int rests = cache.codes ? 0 : RB;
          expect(bar, 2 * (KB + rests) * BLOCK);
          for (int e = 0; e < 2; e++) {
            copy_keys(to + e * EIGHT, cache.k, rank * KB, slot + 8 * e, batch, bar);
            for (int n = 0; n < rests; n++)
              copy_rest(to + e * EIGHT + (KB + n) * BLOCK, cache.c, rank * RC + n * 64, slot + 8 * e, batch,
                        bar);
          }
        }
        __syncwarp();
      };
      auto open = [&](const Piece& piece) {
        const int items = piece.tiles * PER;
        auto tile_at = [&](int i) {
          long long batch = piece.row, slot = piece.slot + i * T;
          if (cache.table) {
            batch = cache.table[batch * cache.pages + (int)slot / cache.page_size];
            slot = (int)slot % cache.page_size;
          }
          return cache.codes + batch * cache.codes_batch + slot * (R + 2);
        };
        auto fetch = [&](int i) {  // into the second cache, each block of the cluster some lines of it
          const int at = (lane * CL + rank) * 128;
          if (side && i < piece.tiles && at < min(T, piece.length - piece.slot - i * T) * (R + 2))
            asm volatile("prefetch.global.L2 [%0];" :: "l"(tile_at(i) + at));
        };
        auto ask = [&](int item, u32* pairs, u32& scale) {
          if (item >= items) return;
          const int column = item % PER * 64 + lane * 2;
          const int left = piece.length - piece.slot - item / PER * T - side * HALF;  // tokens
          const int some = column < RC && rank * RC + column < R ? left : 0;
          const unsigned char* from = tile_at(item / PER) + side * (HALF * (R + 2));
          scale = __ldg((const u16*)(from + min(lane % HALF, left - 1) * (R + 2) + R));
          from += rank * RC + column;
#pragma unroll
          for (int n = 0; n < HALF; n++) pairs[n] = n < some ? __ldg((const u16*)(from + n * (R + 2))) : 0;
        };
        auto put = [&](int item, const u32* pairs, u32 scale) {
          if (item >= items) return;
          const int block = item % PER;
          if (block == 0) {
            copy(piece, item / PER);
            fetch(item / PER + FAR);
          }
          const u32 to =
              base + stage * STAGE + side * EIGHT + (KB + block) * BLOCK + lane / 4 * 16 + lane % 4 * 4;
#pragma unroll
          for (int n = 0; n < HALF; n++) {
            const float s = __uint_as_float(__shfl_sync(~0u, scale, n) << 16);
            const u32 word = pack((float)(signed char)pairs[n] * s, (float)(signed char)(pairs[n] >> 8) * s);
            asm volatile("st.shared.u32 [%0], %1;"
                         :: "r"((to ^ n * 16) + n * 128), "r"(word) : "memory");
          }
          if (block + 1 < PER) return;
          to_tensor_cores();
          __syncwarp();
          if (lane == 0) arrive(base + FULL + stage * 8);
          next();
        };
        u32 even[HALF], odd[HALF], even_scale, odd_scale;
        for (int i = 0; i < FAR; i++) fetch(i);
        ask(0, even, even_scale);
        for (int item = 0; item < items; item += 2) {
          ask(item + 1, odd, odd_scale);
          put(item, even, even_scale);
          ask(item + 2, even, even_scale);
          put(item + 1, odd, odd_scale);
        }
      };
      if (RB && cache.codes)
        walk(job, share, open);
      else if (side == 0)
        walk(job, share, [&](const Piece& piece) {
          for (int i = 0; i < piece.tiles; i++) {
            copy(piece, i);
            next();
          }
        });
      if (side == 0)
        for (int end = tile + STAGES; tile < end; next()) free();
      join();
    }
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();
}

// A row's pieces become its output: a block takes the sums that 256 threads left of 8 heads.
extern "C" __global__ void __launch_bounds__(256)
slim_combine(const float4* __restrict__ part, const float2* __restrict__ norm, const int2* __restrict__ spans,
             float* __restrict__ out) {
  constexpr int MOST = 256, AT_ONCE = 8;
  __shared__ float weight[MOST][8], whole[8];
  const int2 span = spans[blockIdx.z];
  const int first = span.x / 2, pieces = span.x < 0 ? 0 : min(span.y - first + 1, MOST);
  if (pieces == 1) return;  // a whole row is there already
  const int group = blockIdx.y, spot = blockIdx.x * 256 + threadIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto place = [&](int i) { return (long long)(i ? 2 * (first + i) : span.x); };
  float4 v[AT_ONCE];
  auto ask = [&](int i) {
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++)
      if (i + n < pieces && spot < SPOTS) v[n] = part[(place(i + n) * EIGHTS + group) * SPOTS + spot];
  };
  ask(0);
  {  // a warp for each head weighs the pieces while their sums come
    const int head = min(group * 8 + warp, HEADS - 1);
    float top = NEG_INF, sum = 0;
    for (int n = lane; n < pieces; n += 32) top = fmaxf(top, norm[place(n) * HEADS + head].x);
#pragma unroll
    for (int m = 16; m; m /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, m));
    for (int n = lane; n < pieces; n += 32) {
      const float2 given = norm[place(n) * HEADS + head];  // largest score, sum of weights
      const float w = given.x == top ? 1.f : exp2_fast(given.x - top);
      weight[n][warp] = w;
      sum += w * given.y;
    }
#pragma unroll
    for (int m = 16; m; m /= 2) sum += __shfl_xor_sync(~0u, sum, m);
    if (lane == 0) whole[warp] = pieces ? sum : 1.f;
  }
  __syncthreads();
  float x[4] = {};
  for (int i = 0; i < pieces; i += AT_ONCE) {
    if (i) ask(i);
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++)
      if (i + n < pieces) {
        const float2 w = *(const float2*)&weight[i + n][lane % 4 * 2];
        x[0] += w.x * v[n].x, x[1] += w.y * v[n].y, x[2] += w.x * v[n].z, x[3] += w.y * v[n].w;
      }
  }
#pragma unroll
  for (int e = 0; e < 4; e++) {
    const Sum at = sum_at(group, spot / 128 / BLOCKS, spot / 128 % BLOCKS, spot / 32 % 4, lane, e);
    if (spot < SPOTS && at.there)
      out[(long long)blockIdx.z * HEADS * DR + at.in_row] = x[e] / whole[at.head % 8];
  }
}
"""

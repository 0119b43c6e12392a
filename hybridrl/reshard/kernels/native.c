/* Boxes of a descriptor table on CPU: copied, cast or quantised, and summed on the way, in one pass.
 *
 * Plain C without Python: hybridrl/reshard/executors/native.py calls `hybridrl_write` through ctypes. The rows of
 * a table are those of hybridrl/reshard/descriptors.py, the checksum is that of hybridrl/reshard/checksum.py, and
 * the arithmetic of blocks is that of reference.py. Loops are written for a compiler to vectorise; where it can,
 * it makes a second version of them for AVX2 that is chosen when the library is loaded.
 * Little-endian machines only.
 */

#include <pthread.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("default", "avx2")))
#else
#define WIDE
#endif
#define INLINE static inline __attribute__((always_inline))

#define ABI 1 /* As in executors/native.py; counts changes of the structures and of hybridrl_write. */
#define BLOCK 128
#define CHUNK 1024 /* Elements that stay in the first cache between their cast, their sum and their store. */

typedef struct {
    int64_t source, target, source_offset, target_offset, source_pitch, target_pitch, rows, cols, op, row, col;
    int64_t scales, scales_pitch, scales_row, scales_col;
} Box;

typedef struct {
    int64_t box, row, rows, col, cols;
} Tile;

typedef struct {
    const Box *boxes;
    const Tile *tiles;
    int64_t num_tiles;
    const int64_t *sources, *targets;
    const uint64_t *row_factors, *col_factors;
    uint64_t *sums; /* By target; NULL: nothing is summed. */
    int64_t next;
} Work;

/* Operations: COPY + log2(element size), CAST + 4 * source + target, QUANTISE + source + flags. */
enum { COPY = 0, CAST = 16, QUANTISE = 32, POWER_OF_TWO = 4, TRANSPOSED = 8 };
enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

INLINE uint16_t bfloat16_of(uint32_t bits) {
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

/* The sum with `half` shifts the mantissa of a subnormal to its place, rounded to nearest even by the adder. */
INLINE uint16_t float16_of(uint32_t bits) {
    const uint32_t half = 126u << 23;
    uint32_t sign = bits & 0x80000000u, size = bits ^ sign;
    uint32_t normal = (size + 0xfff + ((size >> 13) & 1) - (112u << 23)) >> 13;
    uint32_t subnormal = bits_of(float_of(size) + float_of(half)) - half;
    uint32_t finite = size < (113u << 23) ? subnormal : normal;
    uint32_t outside = size > 0x7f800000 ? 0x7e00 : 0x7c00;
    return (size >= (143u << 23) ? outside : finite) | sign >> 16;
}

INLINE uint32_t bits_of_float16(uint16_t half) {
    uint32_t size = (uint32_t)(half & 0x7fff) << 13, exponent = size & (0x7c00u << 13);
    uint32_t normal = size + (112u << 23);
    uint32_t subnormal = bits_of(float_of(size + (113u << 23)) - float_of(113u << 23));
    uint32_t outside = size + (224u << 23);
    uint32_t wide = exponent == 0 ? subnormal : exponent == (0x7c00u << 13) ? outside : normal;
    return wide | (uint32_t)(half & 0x8000) << 16;
}

INLINE uint8_t float8_of(float x) {
    const uint32_t least = 141u << 23;
    uint32_t bits = bits_of(x), sign = bits & 0x80000000u, size = bits ^ sign;
    uint32_t normal = (size + 0x7ffff + ((size >> 20) & 1) - (120u << 23)) >> 20;
    uint32_t subnormal = bits_of(float_of(size) + float_of(least)) - least;
    uint32_t finite = size < (121u << 23) ? subnormal : normal;
    return (size > 0x7f800000 ? 0x7f : finite > 0x7e ? 0x7e : finite) | sign >> 24;
}

WIDE static void bfloat16_from_float32(uint16_t *restrict to, const uint32_t *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = bfloat16_of(from[i]);
}

WIDE static void float16_from_float32(uint16_t *restrict to, const uint32_t *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = float16_of(from[i]);
}

WIDE static void float32_from_bfloat16(uint32_t *restrict to, const uint16_t *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = (uint32_t)from[i] << 16;
}

WIDE static void float32_from_float16(uint32_t *restrict to, const uint16_t *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = bits_of_float16(from[i]);
}

WIDE static void float16_from_bfloat16(uint16_t *restrict to, const uint16_t *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = float16_of((uint32_t)from[i] << 16);
}

WIDE static void bfloat16_from_float16(uint16_t *restrict to, const uint16_t *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = bfloat16_of(bits_of_float16(from[i]));
}

/* The largest absolute value as bits: they order as the values do, with infinity and then NaN on top. */
WIDE static uint32_t largest(const uint32_t *from, int64_t n) {
    uint32_t found = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t size = from[i] & 0x7fffffff;
        found = size > found ? size : found;
    }
    return found;
}

WIDE static void float8_from_float32(uint8_t *restrict to, const float *restrict from, float factor, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = float8_of(from[i] * factor);
}

static void cast(void *to, const void *from, int64_t n, int64_t op) {
    switch (op - CAST) {
    case 4 * FLOAT32 + BFLOAT16: bfloat16_from_float32(to, from, n); break;
    case 4 * FLOAT32 + FLOAT16: float16_from_float32(to, from, n); break;
    case 4 * BFLOAT16 + FLOAT32: float32_from_bfloat16(to, from, n); break;
    case 4 * BFLOAT16 + FLOAT16: float16_from_bfloat16(to, from, n); break;
    case 4 * FLOAT16 + FLOAT32: float32_from_float16(to, from, n); break;
    case 4 * FLOAT16 + BFLOAT16: bfloat16_from_float16(to, from, n); break;
    }
}

/* Weighted sum of the bytes [at, at + n) of a row, as 64-bit words that begin at multiples of 8. */
WIDE static uint64_t sum_of(const uint8_t *bytes, int64_t at, int64_t n, const uint64_t *factors) {
    uint64_t total = 0, word;
    int64_t lead = at & 7;
    factors += at >> 3;
    if (lead) {
        int64_t part = 8 - lead < n ? 8 - lead : n;
        word = 0;
        memcpy((uint8_t *)&word + lead, bytes, part);
        total += word * *factors++;
        bytes += part;
        n -= part;
    }
    for (int64_t i = 0; i < n >> 3; i++) {
        memcpy(&word, bytes + 8 * i, 8);
        total += word * factors[i];
    }
    if (n & 7) {
        word = 0;
        memcpy(&word, bytes + (n & ~7), n & 7);
        total += word * factors[n >> 3];
    }
    return total;
}

/* Past the caches: a swap writes more than they hold, and a line that is written whole need not be read first. */
static void store(uint8_t *to, const uint8_t *from, int64_t n) {
#if defined(__SSE2__)
    if (n >= 256) {
        int64_t lead = -(intptr_t)to & 63;
        memcpy(to, from, lead);
        to += lead, from += lead, n -= lead;
        for (; n >= 64; to += 64, from += 64, n -= 64) {
            __m128i a = _mm_loadu_si128((const __m128i *)from), b = _mm_loadu_si128((const __m128i *)from + 1);
            __m128i c = _mm_loadu_si128((const __m128i *)from + 2), d = _mm_loadu_si128((const __m128i *)from + 3);
            _mm_stream_si128((__m128i *)to, a), _mm_stream_si128((__m128i *)to + 1, b);
            _mm_stream_si128((__m128i *)to + 2, c), _mm_stream_si128((__m128i *)to + 3, d);
        }
    }
#endif
    memcpy(to, from, n);
}

static const uint8_t *source_of(const Work *work, const Box *box, int64_t row, int64_t byte) {
    return (const uint8_t *)work->sources[box->source] + box->source_offset + row * box->source_pitch + byte;
}

static uint8_t *target_of(const Work *work, const Box *box, int64_t row, int64_t byte) {
    return (uint8_t *)work->targets[box->target] + box->target_offset + row * box->target_pitch + byte;
}

static void add(const Work *work, int64_t target, uint64_t total) {
    if (work->sums) __atomic_fetch_add(work->sums + target, total, __ATOMIC_RELAXED);
}

static void copy_tile(Work *work, const Tile *tile) {
    const Box *box = work->boxes + tile->box;
    int64_t size = (int64_t)1 << (box->op - COPY), n = tile->cols * size, first = tile->col * size;
    uint64_t total = 0;
    for (int64_t row = tile->row; row < tile->row + tile->rows; row++) {
        const uint8_t *from = source_of(work, box, row, first);
        uint8_t *to = target_of(work, box, row, first);
        uint64_t row_sum = 0;
        for (int64_t at = 0, part; at < n; at += part) {
            part = n - at < 8 * CHUNK ? n - at : 8 * CHUNK;
            if (work->sums) row_sum += sum_of(from + at, box->col * size + first + at, part, work->col_factors);
            store(to + at, from + at, part);
        }
        if (work->sums) total += row_sum * work->row_factors[box->row + row];
    }
    add(work, box->target, total);
}

static void cast_tile(Work *work, const Tile *tile) {
    const Box *box = work->boxes + tile->box;
    int64_t kind = box->op - CAST;
    int64_t from_size = kind >> 2 == FLOAT32 ? 4 : 2, to_size = (kind & 3) == FLOAT32 ? 4 : 2;
    uint64_t total = 0, values[CHUNK / 2];
    for (int64_t row = tile->row; row < tile->row + tile->rows; row++) {
        const uint8_t *from = source_of(work, box, row, tile->col * from_size);
        uint8_t *to = target_of(work, box, row, tile->col * to_size);
        uint64_t row_sum = 0;
        for (int64_t at = 0; at < tile->cols; at += CHUNK) {
            int64_t part = tile->cols - at < CHUNK ? tile->cols - at : CHUNK, n = part * to_size;
            int64_t place = (box->col + tile->col + at) * to_size;
            cast(values, from + at * from_size, part, box->op);
            if (work->sums) row_sum += sum_of((uint8_t *)values, place, n, work->col_factors);
            store(to + at * to_size, (uint8_t *)values, n);
        }
        if (work->sums) total += row_sum * work->row_factors[box->row + row];
    }
    add(work, box->target, total);
}

static float power_of_two(float scale) {
    uint32_t bits = bits_of(scale), exponent = (bits >> 23 & 0xff) + ((bits & 0x7fffff) != 0);
    return float_of((exponent < 1 ? 1 : exponent > 254 ? 254 : exponent) << 23);
}

static void store_scale(Work *work, const Box *box, int64_t block_row, int64_t block_col, float scale) {
    int transposed = (box->op & TRANSPOSED) != 0;
    int64_t row = box->scales_row + (transposed ? block_col : block_row);
    int64_t col = box->scales_col + (transposed ? block_row : block_col);
    memcpy((uint8_t *)work->targets[box->scales] + row * box->scales_pitch + 4 * col, &scale, 4);
    if (work->sums) {
        uint64_t word = (uint64_t)bits_of(scale) << (col & 1 ? 32 : 0);
        add(work, box->scales, word * work->row_factors[row] * work->col_factors[col >> 1]);
    }
}

/* One block of at most 128 x 128: its largest value first, then its values, both from a float32 copy. */
static uint64_t quantise_block(Work *work, const Box *box, int64_t row, int64_t rows, int64_t col, int64_t cols) {
    float values[BLOCK][BLOCK];
    uint8_t eights[BLOCK];
    int64_t source = (box->op - QUANTISE) & 3;
    uint32_t found = 0;
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *from = source_of(work, box, row + r, col * (source == FLOAT32 ? 4 : 2));
        if (source == FLOAT32) memcpy(values[r], from, 4 * cols);
        else cast(values[r], from, cols, CAST + 4 * source + FLOAT32);
        uint32_t size = largest((const uint32_t *)values[r], cols);
        found = size > found ? size : found;
    }
    float most = float_of(found);
    most = most < 1e-4f ? 1e-4f : most;
    float scale = most / 448.0f, factor = 1.0f / most * 448.0f;
    if (box->op & POWER_OF_TWO) {
        scale = power_of_two(scale);
        factor = 1.0f / scale;
    }
    store_scale(work, box, row / BLOCK, col / BLOCK, scale);
    uint64_t total = 0;
    for (int64_t r = 0; r < rows; r++) {
        float8_from_float32(eights, values[r], factor, cols);
        memcpy(target_of(work, box, row + r, col), eights, cols);
        if (work->sums)
            total += sum_of(eights, box->col + col, cols, work->col_factors) * work->row_factors[box->row + row + r];
    }
    return total;
}

static void quantise_tile(Work *work, const Tile *tile) {
    const Box *box = work->boxes + tile->box;
    int64_t last_row = tile->row + tile->rows, last_col = tile->col + tile->cols;
    uint64_t total = 0;
    for (int64_t row = tile->row; row < last_row; row += BLOCK)
        for (int64_t col = tile->col; col < last_col; col += BLOCK) {
            int64_t rows = last_row - row < BLOCK ? last_row - row : BLOCK;
            int64_t cols = last_col - col < BLOCK ? last_col - col : BLOCK;
            total += quantise_block(work, box, row, rows, col, cols);
        }
    add(work, box->target, total);
}

static void *run(void *argument) {
    Work *work = argument;
    int64_t at;
    while ((at = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < work->num_tiles) {
        const Tile *tile = work->tiles + at;
        int64_t op = work->boxes[tile->box].op;
        if (op >= QUANTISE) quantise_tile(work, tile);
        else if (op >= CAST) cast_tile(work, tile);
        else copy_tile(work, tile);
    }
#if defined(__SSE2__)
    _mm_sfence();
#endif
    return NULL;
}

#define MOST_THREADS 256

int64_t hybridrl_abi(void) { return ABI; }

/* Carries out the tiles, which cover the boxes, with `num_threads` threads of which the caller's is one. A thread
 * that cannot be started leaves its share to the others.
 */
void hybridrl_write(const Box *boxes, const Tile *tiles, int64_t num_tiles, const int64_t *sources,
                    const int64_t *targets, const uint64_t *row_factors, const uint64_t *col_factors, uint64_t *sums,
                    int64_t num_threads) {
    Work work = {boxes, tiles, num_tiles, sources, targets, row_factors, col_factors, sums, 0};
    pthread_t threads[MOST_THREADS];
    int64_t started = 0;
    while (started < num_threads - 1 && started < MOST_THREADS && !pthread_create(threads + started, NULL, run, &work))
        started++;
    run(&work);
    while (started) pthread_join(threads[--started], NULL);
}

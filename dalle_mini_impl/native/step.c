// Every transformer block for the next positions of some rows, on a CPU, in one call.
//
// A step of a small model is some hundred operations of a few microseconds each; run one by one, most of the time
// goes into starting them. Here one team of threads walks through all blocks. Products are of bf16 pairs, sums in
// fp32, and a row's sums have the same order whatever other rows there are.
//
// Layouts, with pairs of neighbouring bf16 numbers side by side in 32 bits:
//   weight (out, in)    [out / OUTPUTS][in / 2][OUTPUTS] pairs along `in`; or of 8-bit integers, one scale per output
//   keys of a head      [positions / LANES][size / 2][LANES] pairs along `size`
//   values of a head    [positions / 2][size] pairs along the positions

#include "vectors.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

// A tile's sums, 2 × TILE vectors, and what goes into them fit into the registers there are.
#ifdef __AVX512F__
enum { TILE = 12 };
#else
enum { TILE = 5 };
#endif
enum { OUTPUTS = 2 * LANES, LARGEST_HEAD = 256 };
static const float EPS = 1e-6f;

typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int16_t shorts __attribute__((vector_size(4 * LANES)));
typedef int8_t bytes __attribute__((vector_size(2 * LANES), aligned(1), may_alias));

typedef struct {
    const char *weight;
    const float *scale;  // NULL for a weight in bf16
} Matrix;

typedef struct {
    Matrix qkv, out, up, down;  // `up` has LANES outputs of the gate, then as many of what it gates, and so on
    const float *turn;          // [position][query, key][cosine, sine][size], with the norms' weights
} Layer;

typedef struct {
    const Layer *layers;
    int32_t count, heads, size, hidden;
} Blocks;

typedef struct Cache {
    uint16_t *keys, *values;     // [layer][row][head][capacity × size]
    const struct Cache *prompt;  // what comes before; row r continues its row r / branches
    int32_t rows, branches, capacity, length;
} Cache;

typedef enum { STORE, ADD, GATE } Then;

static inline halves to_bf16(floats x) {
    pairs bits = (pairs)x;
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, halves);
}

static inline uint32_t pair_at(const uint16_t *x) {
    uint32_t pair;
    memcpy(&pair, x, sizeof pair);
    return pair;
}

static inline float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// sum + both products of each pair with the same pair x.
static inline floats dot(floats sum, pairs weights, uint32_t x) {
#ifdef __AVX512BF16__
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512i)weights, (__m512bh)_mm512_set1_epi32((int)x));
#else
    sum += (floats)(weights << 16) * as_float(x << 16);
    return sum + (floats)(weights & 0xffff0000u) * as_float(x & 0xffff0000u);
#endif
}

// LANES pairs of weights, the `place`-th of a block of outputs.
static inline pairs weights_at(const char *weight, int place, int narrow) {
    if (!narrow) return *(const pairs *)(weight + (size_t)place * sizeof(pairs));
    integers both = (integers)__builtin_convertvector(*(const bytes *)(weight + (size_t)place * sizeof(bytes)), shorts);
    pairs first = (pairs)__builtin_convertvector((both << 16) >> 16, floats) >> 16;
    return first | ((pairs)__builtin_convertvector(both >> 16, floats) & 0xffff0000u);
}

// Products of `rows` rows x with OUTPUTS outputs. `rows` is known when this is compiled, so sums stay in registers.
static inline __attribute__((always_inline)) void tile(
    const int rows, const int narrow, const uint16_t *x, int width, const char *weight, const float *scale, Then then,
    char *y, int stride) {
    floats sum[TILE][2];
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (floats){};
    for (int k = 0; k < width / 2; k++) {
        pairs left = weights_at(weight, 2 * k, narrow), right = weights_at(weight, 2 * k + 1, narrow);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            uint32_t both = pair_at(x + (size_t)r * width + 2 * k);
            sum[r][0] = dot(sum[r][0], left, both);
            sum[r][1] = dot(sum[r][1], right, both);
        }
    }
    for (int r = 0; r < rows; r++, y += stride) {
        for (int i = 0; i < 2 && narrow; i++) sum[r][i] *= *(const floats *)(scale + i * LANES);
        if (then == GATE) {
            *(halves *)y = to_bf16(sum[r][0] / (1.0f + exponential(-sum[r][0])) * sum[r][1]);
            continue;
        }
        floats *place = (floats *)y;
        for (int i = 0; i < 2; i++) place[i] = sum[r][i] + (then == ADD ? place[i] : (floats){});
    }
}

static void tiles(
    const uint16_t *x, int rows, int width, const char *weight, const float *scale, Then then, char *y, int stride) {
    for (; rows > 0; rows -= TILE, x += (size_t)TILE * width, y += (size_t)TILE * stride) {
#define CASE(n) \
    case n: \
        if (scale) tile(n, 1, x, width, weight, scale, then, y, stride); \
        else tile(n, 0, x, width, weight, scale, then, y, stride); \
        break;
        switch (rows < TILE ? rows : TILE) {
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
#ifdef __AVX512F__
            CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
        }
#undef CASE
    }
}

// y (rows, outputs) from x (rows, width) in bf16; each thread of the team has its share of the outputs.
static void product(const uint16_t *x, int rows, int width, Matrix matrix, int outputs, Then then, void *y) {
    const int each = then == GATE ? LANES * sizeof(uint16_t) : OUTPUTS * sizeof(float);  // bytes of a block's results
    const int bytes_of = matrix.scale ? 1 : 2;
    int first, last;
    share(outputs / OUTPUTS, &first, &last);
    for (int block = first; block < last; block++)
        tiles(x, rows, width, matrix.weight + (size_t)block * OUTPUTS * width * bytes_of,
              matrix.scale ? matrix.scale + block * OUTPUTS : NULL, then, (char *)y + (size_t)block * each,
              outputs / OUTPUTS * each);
}

static float inverse_length(const float *x, int width) {
    floats squares = {};
    for (int i = 0; i < width; i += LANES) {
        floats part = *(const floats *)(x + i);
        squares += part * part;
    }
    return 1.0f / sqrtf(sum_of(squares) + (float)width * EPS);
}

// Rows of x (rows, width) at length 1, in bf16.
static void unit(const float *x, int rows, int width, uint16_t *y) {
    int first, last;
    share(rows, &first, &last);
    for (int row = first; row < last; row++) {
        const float *from = x + (size_t)row * width;
        float scale = inverse_length(from, width);
        for (int i = 0; i < width; i += LANES)
            *(halves *)(y + (size_t)row * width + i) = to_bf16(*(const floats *)(from + i) * scale);
    }
}

// A query or key of one head at length 1, weighted and turned to its position.
static void turned(const float *x, const float *turn, int size, uint16_t *y) {
    const float scale = inverse_length(x, size);
    float twice[2 * LARGEST_HEAD];  // so that the other half of a pair is always size / 2 further on
    memcpy(twice, x, size * sizeof(float));
    memcpy(twice + size, x, size * sizeof(float));
    for (int i = 0; i < size; i += LANES) {
        const floats cosine = *(const floats *)(turn + i), sine = *(const floats *)(turn + size + i);
        const floats other = *(const floats *)(twice + i + size / 2);
        *(halves *)(y + i) = to_bf16(scale * (*(const floats *)(x + i) * cosine + other * sine));
    }
}

static size_t head_at(const Cache *cache, const Blocks *blocks, int layer, int row, int head) {
    return (((size_t)layer * cache->rows + row) * blocks->heads + head) * cache->capacity * blocks->size;
}

// One key and value into the cache of their head, as its `place`-th.
static void put(uint16_t *keys_, uint16_t *values, int place, int size, const uint16_t *key, const float *value) {
    uint32_t *keys = (uint32_t *)keys_ + place / LANES * (size / 2) * LANES + place % LANES;
    for (int i = 0; i < size / 2; i++) keys[i * LANES] = pair_at(key + 2 * i);
    values += place / 2 * size * 2;
    for (int i = 0; i < size; i += LANES) {
        pairs new = __builtin_convertvector(to_bf16(*(const floats *)(value + i)), pairs), *both = (pairs *)(values + 2 * i);
        if (place % 2) new = (*both & 0xffff) | (new << 16);
        *both = new;
    }
}

// Queries, keys and values of some rows' heads: queries to `q`, keys and values into the cache.
static void remember(const Blocks *blocks, const Cache *cache, int layer, const float *qkv, int tokens, uint16_t *q) {
    const int size = blocks->size, heads = blocks->heads, width = heads * size;
    const int before = cache->length + (cache->prompt ? cache->prompt->length : 0);
    uint16_t key[LARGEST_HEAD];
    int first, last;
    share(cache->rows * heads, &first, &last);
    for (int item = first; item < last; item++) {
        int row = item / heads, head = item % heads;
        size_t start = head_at(cache, blocks, layer, row, head);
        for (int token = 0; token < tokens; token++) {
            const size_t at = (size_t)row * tokens + token;
            const float *from = qkv + at * 3 * width + head * size;
            const float *turn = blocks->layers[layer].turn + (size_t)(before + token) * 4 * size;
            turned(from, turn, size, q + at * width + head * size);
            turned(from + width, turn + 2 * size, size, key);
            put(cache->keys + start, cache->values + start, cache->length + token, size, key, from + 2 * width);
        }
    }
}

// Scores of one query against the first `count` keys; whole vectors are written, minus infinity behind the last key.
static float score(const uint16_t *query, const uint16_t *keys, int count, int size, float *scores) {
    floats largest = (floats){} - INFINITY;
    for (int place = 0; place < count; place += LANES) {
        const uint32_t *block = (const uint32_t *)keys + (size_t)place / 2 * size;
        floats sum[4] = {};  // four at a time, because each waits for the one before
        for (int i = 0; i < size / 2; i += 4)
            for (int j = 0; j < 4; j++)
                sum[j] = dot(sum[j], *(const pairs *)(block + (i + j) * LANES), pair_at(query + 2 * (i + j)));
        floats all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        for (int i = count - place; i < LANES; i++) all[i] = -INFINITY;
        *(floats *)(scores + place) = all;
        largest = larger(all, largest);
    }
    return largest_of(largest);
}

// y += values times their shares, for `vectors` vectors of a head.
static inline __attribute__((always_inline)) void add_vectors(
    const int vectors, const uint16_t *shares, const uint32_t *values, int count, int size, floats *y) {
    floats sum[2][4] = {};
    int place = 0;
    for (; place + 2 < count; place += 4, values += 2 * size)
        for (int i = 0; i < vectors; i++) {
            sum[0][i] = dot(sum[0][i], *(const pairs *)(values + i * LANES), pair_at(shares + place));
            sum[1][i] = dot(sum[1][i], *(const pairs *)(values + size + i * LANES), pair_at(shares + place + 2));
        }
    for (int i = 0; i < vectors; i++) {
        if (place < count) sum[0][i] = dot(sum[0][i], *(const pairs *)(values + i * LANES), pair_at(shares + place));
        y[i] += sum[0][i] + sum[1][i];
    }
}

static void add_values(const uint16_t *shares, const uint16_t *values, int count, int size, floats *y) {
    const uint32_t *from = (const uint32_t *)values;
    int i = 0;
    for (; i + 4 <= size / LANES; i += 4) add_vectors(4, shares, from + i * LANES, count, size, y + i);
    for (; i + 2 <= size / LANES; i += 2) add_vectors(2, shares, from + i * LANES, count, size, y + i);
    for (; i < size / LANES; i++) add_vectors(1, shares, from + i * LANES, count, size, y + i);
}

static int whole(int count) { return (count + LANES - 1) / LANES * LANES; }

// Attention of some rows' heads to the prompt and to their own positions up to and including the new one.
static void attend(
    const Blocks *blocks, const Cache *cache, int layer, const uint16_t *q, int tokens, float *scores, uint16_t *y) {
    const int size = blocks->size, heads = blocks->heads, rows = cache->rows * tokens;
    const int shared = cache->prompt ? cache->prompt->length : 0, own_start = whole(shared);
    uint16_t *shares = (uint16_t *)scores;  // each vector is read before the half of its place is written
    int first, last;
    share(rows * heads, &first, &last);
    for (int item = first; item < last; item++) {  // one head of all rows after the other: they share the prompt
        int head = item / rows, row = item % rows, own = cache->length + row % tokens + 1, all = own_start + whole(own);
        const uint16_t *query = q + ((size_t)row * heads + head) * size;
        size_t start = head_at(cache, blocks, layer, row / tokens, head), from = 0;
        float largest = score(query, cache->keys + start, own, size, scores + own_start);
        if (shared) {
            from = head_at(cache->prompt, blocks, layer, row / tokens / cache->branches, head);
            float other = score(query, cache->prompt->keys + from, shared, size, scores);
            largest = other > largest ? other : largest;
        }
        floats sum = {}, result[LARGEST_HEAD / LANES] = {};
        for (int i = 0; i < all; i += LANES) {
            floats part = exponential(*(const floats *)(scores + i) - largest);
            sum += part;
            *(halves *)(shares + i) = to_bf16(part);
        }
        if (shared) add_values(shares, cache->prompt->values + from, shared, size, result);
        add_values(shares + own_start, cache->values + start, own, size, result);
        float scale = 1.0f / sum_of(sum);
        for (int i = 0; i < size / LANES; i++)
            *(halves *)(y + ((size_t)row * heads + head) * size + i * LANES) = to_bf16(result[i] * scale);
    }
}

int lanes(void) { return LANES; }

// Bytes that `step` needs to work in.
int64_t room(const Blocks *blocks, const Cache *cache, int tokens, int threads) {
    int64_t rows = (int64_t)cache->rows * tokens, width = blocks->heads * blocks->size;
    int64_t positions = 2 * LANES + cache->length + tokens + (cache->prompt ? cache->prompt->length : 0);
    return rows * (2 * 2 * width + 4 * 3 * width + 2 * blocks->hidden) + threads * 4 * whole((int)positions);
}

// Run x (rows × tokens, width) through all blocks in place and leave each row at length 1. The cache gets the new
// keys and values; its length is for the caller to move on.
void step(const Blocks *blocks, const Cache *cache, float *x, int tokens, char *room_, int threads) {
    const int rows = cache->rows * tokens, width = blocks->heads * blocks->size, hidden = blocks->hidden;
    const int positions = whole(2 * LANES + cache->length + tokens + (cache->prompt ? cache->prompt->length : 0));
    float *qkv = (float *)room_, *scores = qkv + (size_t)rows * 3 * width;
    uint16_t *z = (uint16_t *)(scores + (size_t)threads * positions), *q = z + (size_t)rows * width;
    uint16_t *h = q + (size_t)rows * width;
#pragma omp parallel num_threads(threads)
    {
        float *own_scores = scores + (size_t)omp_get_thread_num() * positions;
        for (int i = 0; i < blocks->count; i++) {
            const Layer *layer = blocks->layers + i;
            unit(x, rows, width, z);
#pragma omp barrier
            product(z, rows, width, layer->qkv, 3 * width, STORE, qkv);
#pragma omp barrier
            remember(blocks, cache, i, qkv, tokens, q);
#pragma omp barrier
            attend(blocks, cache, i, q, tokens, own_scores, z);
#pragma omp barrier
            product(z, rows, width, layer->out, width, ADD, x);
#pragma omp barrier
            unit(x, rows, width, z);
#pragma omp barrier
            product(z, rows, width, layer->up, 2 * hidden, GATE, h);
#pragma omp barrier
            product(h, rows, hidden, layer->down, width, ADD, x);
#pragma omp barrier
        }
        int first, last;
        share(rows, &first, &last);
        for (int row = first; row < last; row++) {
            float *place = x + (size_t)row * width, scale = inverse_length(place, width);
            for (int k = 0; k < width; k += LANES) *(floats *)(place + k) *= scale;
        }
    }
}

// y (rows, outputs) = x (rows, width) times a weight; `room_` holds x in bf16.
void linear(
    const Matrix *matrix, const float *x, int rows, int width, int outputs, float *y, char *room_, int threads) {
    uint16_t *halved = (uint16_t *)room_;
#pragma omp parallel num_threads(threads)
    {
        int first, last;
        share(rows, &first, &last);
        for (size_t i = (size_t)first * width; i < (size_t)last * width; i += LANES)
            *(halves *)(halved + i) = to_bf16(*(const floats *)(x + i));
#pragma omp barrier
        product(halved, rows, width, *matrix, outputs, STORE, y);
    }
}

// Matrix products of bf16 pairs, summed in fp32. The sums of a row are added in the same order whatever other rows
// there are, so a row's result does not depend on them.

#include "blocks.h"

// Rows of a tile: its sums, 2 × TILE vectors, and their operands fit into the registers.
#ifdef __AVX512F__
enum { TILE = 12 };
#else
enum { TILE = 5 };
#endif

enum { LEAST_AHEAD = 5 };  // rows of a tile that leaves the memory idle; with fewer the weights keep it busy

typedef int16_t shorts __attribute__((vector_size(4 * LANES)));
typedef int8_t bytes __attribute__((vector_size(2 * LANES), aligned(1), may_alias));

// x times the standard normal distribution function at x: erf by 7.1.26 of Abramowitz and Stegun, to 1.5e-7.
static inline floats gelu(floats x) {
    const floats size = (floats)((pairs)x & 0x7fffffff), t = 1.0f / (1.0f + size * (0.3275911f * 0.70710678f));
    floats above = t * 1.061405429f - 1.453152027f;
    above = above * t + 1.421413741f;
    above = above * t - 0.284496736f;
    above = above * t + 0.254829592f;
    above *= 0.5f * t * exponential(size * size * -0.5f);
    return (x + size) * 0.5f - size * above;
}

// The approximation by tanh (Hendrycks and Gimpel 2016).
static inline floats gelu_tanh(floats x) {
    return x / (1.0f + exponential(x * (x * x * -0.0713548162f - 1.5957691216f)));
}

// LANES pairs of weights, the `index`-th vector of a block of outputs.
static inline pairs weights_at(const char *weight, int index, int int8) {
    if (!int8) return *(const pairs *)(weight + (size_t)index * sizeof(pairs));
    integers both = (integers)__builtin_convertvector(*(const bytes *)(weight + (size_t)index * sizeof(bytes)), shorts);
    pairs first = (pairs)__builtin_convertvector((both << 16) >> 16, floats) >> 16;
    return first | ((pairs)__builtin_convertvector(both >> 16, floats) & 0xffff0000u);
}

// Scales the sums of some rows, adds the bias, and writes them to y as `epilogue` says.
static void write_sums(
    floats (*sum)[2], int rows, const float *scale, const float *bias, Epilogue epilogue, char *y, int64_t stride) {
    for (int r = 0; r < rows; r++, y += stride) {
        floats *s = sum[r], *to = (floats *)y;
        for (int i = 0; i < 2 && scale; i++) s[i] *= *(const floats *)(scale + i * LANES);
        for (int i = 0; i < 2 && bias; i++) s[i] += *(const floats *)(bias + i * LANES);
        switch (epilogue) {
            case STORE: to[0] = s[0], to[1] = s[1]; break;
            case ADD: to[0] += s[0], to[1] += s[1]; break;
            case SWIGLU: *(halves *)y = to_bf16(s[0] / (1.0f + exponential(-s[0])) * s[1]); break;
            case GEGLU: *(halves *)y = to_bf16(gelu(s[0]) * s[1]); break;
            case GELU: for (int i = 0; i < 2; i++) ((halves *)y)[i] = to_bf16(gelu(s[i])); break;
            case GELU_TANH: for (int i = 0; i < 2; i++) ((halves *)y)[i] = to_bf16(gelu_tanh(s[i])); break;
        }
    }
}

// One block of OUTPUTS outputs.
typedef struct {
    Matrix matrix;  // beginning with the block's first output
    int width;
    Epilogue epilogue;
    int64_t stride;  // bytes between rows of results
} Task;

// `rows` rows of x times a block of outputs. `rows` is known at compile time, so the sums stay in registers. Meanwhile
// `step` bytes from `ahead` are fetched with each pair of columns.
static inline __attribute__((always_inline)) void tile(
    const int rows, const int int8, const uint16_t *x, const Task *task, const char *ahead, int64_t step, char *y) {
    const char *weight = task->matrix.weight;
    const int width = task->width;
    floats sum[TILE][2];
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (floats){};
    for (int k = 0; k < width / 2; k++) {
        pairs left = weights_at(weight, 2 * k, int8), right = weights_at(weight, 2 * k + 1, int8);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            uint32_t both = pair_at(x + (size_t)r * width + 2 * k);
            sum[r][0] = dot(sum[r][0], left, both);
            sum[r][1] = dot(sum[r][1], right, both);
        }
        if (rows < LEAST_AHEAD) continue;
        fetch(ahead + k * step, 1);
        fetch(ahead + k * step + step / 2, 1);
    }
    write_sums(sum, rows, task->matrix.scale, task->matrix.bias, task->epilogue, y, task->stride);
}

// All rows of x times a block of outputs, TILE rows at a time.
static void tiles(const uint16_t *x, int rows, const Task *task, Ahead *ahead, char *y) {
    for (; rows > 0; rows -= TILE, x += (size_t)TILE * task->width, y += TILE * task->stride) {
        const char *at = (const char *)x;
        int64_t step = 0;  // at most two lines
        if (ahead && rows >= LEAST_AHEAD) step = next_ahead(ahead, LINE * task->width, &at) / (task->width / 2);
#define CASE(n) \
    case n: \
        if (task->matrix.scale) tile(n, 1, x, task, at, step, y); \
        else tile(n, 0, x, task, at, step, y); \
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

// Bytes of a row's result from one block of outputs.
static int result_size(Epilogue epilogue) {
    if (epilogue == STORE || epilogue == ADD) return OUTPUTS * sizeof(float);
    return (epilogue == SWIGLU || epilogue == GEGLU ? LANES : OUTPUTS) * sizeof(uint16_t);
}

void product(
    Team *team, const uint16_t *x, int rows, int width, Matrix matrix, int outputs, Epilogue epilogue, void *y,
    Ahead *ahead) {
    const int each = result_size(epilogue);
    const int64_t stride = outputs / OUTPUTS * each;
    const size_t weights = (size_t)OUTPUTS * width * (matrix.scale ? 1 : 2);
    int64_t first, last;
    while (next_piece(team, outputs / OUTPUTS, &first, &last))
        for (int64_t block = first; block < last; block++) {
            const Matrix part = {
                matrix.weight + block * weights,
                matrix.scale ? matrix.scale + block * OUTPUTS : NULL,
                matrix.bias ? matrix.bias + block * OUTPUTS : NULL,
            };
            const Task task = {part, width, epilogue, stride};
            tiles(x, rows, &task, ahead, (char *)y + block * each);
        }
}

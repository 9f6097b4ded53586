// All transformer blocks for the next positions of some rows, on a CPU, in one call.
//
// A step of a small model is some hundred operations of a few microseconds each; called one by one, most of the time
// would go into starting them. Here one parallel region runs through all blocks.

#include "blocks.h"

int lanes(void) { return LANES; }

// Where the buffers of a step begin, in bytes; all have `rows` rows except the counters and the scores.
typedef struct {
    int64_t counters, qkv, added, scores, z, q, h, end;
} Layout;

// Phases of a step.
static int phase_count(const Blocks *blocks) { return 10 * blocks->count + 1; }

static int has_post_norms(const Blocks *blocks) {
    int found = 0;
    for (int i = 0; i < blocks->count; i++)
        found |= blocks->layers[i].attention_post.weight || blocks->layers[i].mlp_post.weight;
    return found;
}

static Layout lay_out(const Blocks *blocks, const Cache *cache, int tokens, int threads) {
    const int64_t rows = (int64_t)cache->rows * tokens, width = blocks->width, wide = sizeof(float), half = wide / 2;
    const int64_t inner = (int64_t)blocks->heads * blocks->size;
    Layout at = {0};
    at.qkv = counters_size(phase_count(blocks), threads);
    at.added = at.qkv + rows * 3 * inner * wide;
    at.scores = at.added + (has_post_norms(blocks) ? rows * width * wide : 0);
    at.z = at.scores + (int64_t)threads * score_count(blocks, cache, tokens) * wide;
    at.q = at.z + rows * (inner > width ? inner : width) * half;
    at.h = at.q + rows * inner * half;
    at.end = at.h + rows * blocks->hidden * half;
    return at;
}

// Bytes that `step` needs as its workspace.
int64_t workspace_size(const Blocks *blocks, const Cache *cache, int tokens, int threads) {
    return lay_out(blocks, cache, tokens, threads).end;
}

// x += z times a matrix, normalised first if `post` is a norm; `added` is a buffer for that.
static void add_product(
    Team *team, const uint16_t *z, int rows, int inner, Matrix matrix, Norm post, int width, float *added, float *x) {
    product(team, z, rows, inner, matrix, width, post.weight ? STORE : ADD, post.weight ? added : x);
    if (post.weight) add_normalised(team, added, rows, width, post, x);
}

// Scales rows of x to length 1.
static void scale_to_unit(Team *team, float *x, int rows, int width) {
    int64_t first, last;
    while (next_piece(team, rows, &first, &last))
        for (float *row = x + first * width; row < x + last * width; row += width) {
            const float scale = inverse_length(row, width, 0, EPS);
            for (int k = 0; k < width; k += LANES) *(floats *)(row + k) *= scale;
        }
}

// Runs x (rows × tokens, width) through all blocks in place; of reversible blocks both residual streams, one after the
// other. Stores the new keys and values in the cache, whose length the caller advances. `start` points to
// `workspace_size` bytes.
void step(const Blocks *blocks, const Cache *cache, float *x, int tokens, char *start, int threads) {
    const int rows = cache->rows * tokens, width = blocks->width, hidden = blocks->hidden;
    const int inner = blocks->heads * blocks->size, gates = blocks->activation <= GEGLU ? 2 : 1;
    float *const other = blocks->reversible ? x + (size_t)rows * width : x;
    const Layout at = lay_out(blocks, cache, tokens, threads);
    float *const qkv = (float *)(start + at.qkv), *const added = (float *)(start + at.added);
    uint16_t *const z = (uint16_t *)(start + at.z), *const q = (uint16_t *)(start + at.q);
    uint16_t *const h = (uint16_t *)(start + at.h);
    memset(start + at.counters, 0, at.qkv - at.counters);
#pragma omp parallel num_threads(threads)
    {
        Team team = join_team(start + at.counters);
        float *scores = (float *)(start + at.scores) + (size_t)team.thread * score_count(blocks, cache, tokens);
        for (int i = 0; i < blocks->count; i++) {
            const Layer *layer = blocks->layers + i;
            normalise(&team, blocks, cache, 2 * i, layer->attention_norm, other, tokens, z);
            product(&team, z, rows, width, layer->qkv, 3 * inner, STORE, qkv);
            store_keys_values(&team, blocks, cache, i, qkv, tokens, q);
            attend(&team, blocks, cache, i, q, tokens, scores, z);
            add_product(&team, z, rows, inner, layer->out, layer->attention_post, width, added, x);
            normalise(&team, blocks, cache, 2 * i + 1, layer->mlp_norm, x, tokens, z);
            product(&team, z, rows, width, layer->up, gates * hidden, blocks->activation, h);
            add_product(&team, h, rows, hidden, layer->down, layer->mlp_post, width, added, other);
        }
        if (blocks->unit_output) scale_to_unit(&team, x, rows, width);
    }
}

// Bytes that `linear` needs as its workspace.
int64_t linear_workspace_size(int rows, int width, int threads) {
    return counters_size(2, threads) + (int64_t)rows * width * (int64_t)sizeof(uint16_t);
}

// y (rows, outputs) = x (rows, width) times a matrix. `start` points to `linear_workspace_size` bytes.
void linear(
    const Matrix *matrix, const float *x, int rows, int width, int outputs, float *y, char *start, int threads) {
    memset(start, 0, counters_size(2, threads));
    uint16_t *x_bf16 = (uint16_t *)(start + counters_size(2, threads));
#pragma omp parallel num_threads(threads)
    {
        Team team = join_team(start);
        int64_t first, last;
        while (next_piece(&team, rows, &first, &last))
            for (int64_t i = first * width; i < last * width; i += LANES)
                *(halves *)(x_bf16 + i) = to_bf16(*(const floats *)(x + i));
        product(&team, x_bf16, rows, width, *matrix, outputs, STORE, y);
    }
}

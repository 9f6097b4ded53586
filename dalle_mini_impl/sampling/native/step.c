// All transformer blocks for the next positions of some rows, on a CPU, in one call.
//
// A step of a small model is some hundred operations of a few microseconds each; called one by one, most of the time
// would go into starting them. Here one parallel region runs through all blocks.

#include "blocks.h"

int lanes(void) { return LANES; }

// The buffers of a step, all with `rows` rows except the scores.
typedef struct {
    float *qkv, *added, *scores;
    uint16_t *z, *q, *h;
} Workspace;

// Lays the buffers out from `start` on; returns their size in bytes.
static int64_t lay_out(
    const Blocks *blocks, const Cache *cache, int tokens, int threads, char *start, Workspace *workspace) {
    const int64_t rows = (int64_t)cache->rows * tokens, inner = blocks->heads * blocks->size, width = blocks->width;
    workspace->qkv = (float *)start;
    workspace->added = workspace->qkv + rows * 3 * inner;
    workspace->scores = workspace->added + (blocks->layers[0].attention_post.weight ? rows * width : 0);
    workspace->z = (uint16_t *)(workspace->scores + (int64_t)threads * score_count(blocks, cache, tokens));
    workspace->q = workspace->z + rows * (inner > width ? inner : width);
    workspace->h = workspace->q + rows * inner;
    return (char *)(workspace->h + rows * blocks->hidden) - start;
}

// Bytes that `step` needs as its workspace.
int64_t workspace_size(const Blocks *blocks, const Cache *cache, int tokens, int threads) {
    Workspace workspace;
    return lay_out(blocks, cache, tokens, threads, NULL, &workspace);
}

// x += z times a matrix, normalised first if `post` is a norm; `added` is a buffer for that.
static void add_product(
    const uint16_t *z, int rows, int inner, Matrix matrix, Norm post, int width, float *added, float *x) {
    product(z, rows, inner, matrix, width, post.weight ? STORE : ADD, post.weight ? added : x);
    if (!post.weight) return;
#pragma omp barrier
    add_normalised(added, rows, width, post, x);
}

// Scales rows of x to length 1.
static void scale_to_unit(float *x, int rows, int width) {
    int first, last;
    thread_range(rows, &first, &last);
    for (int at = first; at < last; at++) {
        float *row = x + (size_t)at * width, scale = inverse_length(row, width, 0, EPS);
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
    Workspace space;
    lay_out(blocks, cache, tokens, threads, start, &space);
#pragma omp parallel num_threads(threads)
    {
        float *scores = space.scores + (size_t)omp_get_thread_num() * score_count(blocks, cache, tokens);
        for (int i = 0; i < blocks->count; i++) {
            const Layer *layer = blocks->layers + i;
            normalise(blocks, cache, 2 * i, layer->attention_norm, other, tokens, space.z);
#pragma omp barrier
            product(space.z, rows, width, layer->qkv, 3 * inner, STORE, space.qkv);
#pragma omp barrier
            store_keys_values(blocks, cache, i, space.qkv, tokens, space.q);
#pragma omp barrier
            attend(blocks, cache, i, space.q, tokens, scores, space.z);
#pragma omp barrier
            add_product(space.z, rows, inner, layer->out, layer->attention_post, width, space.added, x);
#pragma omp barrier
            normalise(blocks, cache, 2 * i + 1, layer->mlp_norm, x, tokens, space.z);
#pragma omp barrier
            product(space.z, rows, width, layer->up, gates * hidden, blocks->activation, space.h);
#pragma omp barrier
            add_product(space.h, rows, hidden, layer->down, layer->mlp_post, width, space.added, other);
#pragma omp barrier
        }
        if (blocks->unit_output) scale_to_unit(x, rows, width);
    }
}

// y (rows, outputs) = x (rows, width) times a matrix; `x_bf16` is a buffer for x in bf16.
void linear(
    const Matrix *matrix, const float *x, int rows, int width, int outputs, float *y, uint16_t *x_bf16, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int first, last;
        thread_range(rows, &first, &last);
        for (size_t i = (size_t)first * width; i < (size_t)last * width; i += LANES)
            *(halves *)(x_bf16 + i) = to_bf16(*(const floats *)(x + i));
#pragma omp barrier
        product(x_bf16, rows, width, *matrix, outputs, STORE, y);
    }
}

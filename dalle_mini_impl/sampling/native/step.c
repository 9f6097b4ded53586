// All transformer blocks for the next positions of some rows, on a CPU, in one call.
//
// A step of a small model is some hundred operations of a few microseconds each; called one by one, most of the time
// would go into starting them. Here one parallel region runs through all blocks.

#include "blocks.h"

int lanes(void) { return LANES; }

// Where the buffers of a step begin, in bytes; all have `rows` rows except the counters and the scores.
typedef struct {
    int64_t counters, qkv, added, scores, z, h, end;
} Layout;

// Positions that go through a layer together: some tiles of products, whose keys and values fit into a cache.
enum { GROUP = 24 };

// Groups of about equally many rows, and one of them.
static int group_count(const Cache *cache, int tokens) {
    const int rows = tokens == 0 || tokens > GROUP ? 1 : GROUP / tokens;
    return (cache->rows + rows - 1) / rows;
}

static Group group_of(const Blocks *blocks, const Cache *cache, int tokens, int number) {
    const int count = group_count(cache, tokens), first = (int)((int64_t)cache->rows * number / count);
    return (Group){blocks, cache, first, (int)((int64_t)cache->rows * (number + 1) / count) - first, tokens};
}

// Phases of a step.
static int phase_count(const Blocks *blocks, const Cache *cache, int tokens) {
    return 9 * blocks->count * group_count(cache, tokens) + 1;
}

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
    at.qkv = counters_size(phase_count(blocks, cache, tokens), threads);
    at.added = at.qkv + rows * 3 * inner * wide;
    at.scores = at.added + (has_post_norms(blocks) ? rows * width * wide : 0);
    at.z = at.scores + (int64_t)threads * score_count(blocks, cache, tokens) * wide;
    at.h = at.z + rows * (inner > width ? inner : width) * half;
    at.end = at.h + rows * blocks->hidden * half;
    return at;
}

// Bytes that `step` needs as its workspace.
int64_t workspace_size(const Blocks *blocks, const Cache *cache, int tokens, int threads) {
    return lay_out(blocks, cache, tokens, threads).end;
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

// Where a step keeps what it computes; all have a row for each position.
typedef struct {
    float *x, *other;  // the residual streams: the same one twice, unless the blocks are reversible
    float *qkv, *added;
    uint16_t *z, *h;
} Buffers;

static Buffers buffers_of(const Blocks *blocks, float *x, float *other, char *start, Layout at, int64_t row) {
    const int64_t inner = (int64_t)blocks->heads * blocks->size, widest = inner > blocks->width ? inner : blocks->width;
    return (Buffers){
        x + row * blocks->width,
        other + row * blocks->width,
        (float *)(start + at.qkv) + row * 3 * inner,
        (float *)(start + at.added) + row * blocks->width,
        (uint16_t *)(start + at.z) + row * widest,
        (uint16_t *)(start + at.h) + row * blocks->hidden,
    };
}

// Queries, keys and values of a group in a layer.
static void enter_layer(Team *team, const Group *group, int layer, Buffers at, Ahead *ahead) {
    const Blocks *blocks = group->blocks;
    const Layer *weights = blocks->layers + layer;
    const int rows = group->rows * group->tokens;
    normalise(team, group, 2 * layer, weights->attention_norm, at.other, at.z);
    product(team, at.z, rows, blocks->width, weights->qkv, 3 * blocks->heads * blocks->size, STORE, at.qkv, ahead);
}

// x += z times a matrix, normalised first if `post` is a norm; `added` is a buffer for that.
static void add_product(
    Team *team, const uint16_t *z, int rows, int inner, Matrix matrix, Norm post, int width, float *added, float *x,
    Ahead *ahead) {
    product(team, z, rows, inner, matrix, width, post.weight ? STORE : ADD, post.weight ? added : x, ahead);
    if (post.weight) add_normalised(team, added, rows, width, post, x);
}

// What follows attention in a layer.
static void leave_layer(Team *team, const Group *group, int layer, Buffers at, Ahead *ahead) {
    const Blocks *blocks = group->blocks;
    const Layer *weights = blocks->layers + layer;
    const int rows = group->rows * group->tokens, width = blocks->width, hidden = blocks->hidden;
    const int inner = blocks->heads * blocks->size, gates = blocks->activation <= GEGLU ? 2 : 1;
    add_product(team, at.z, rows, inner, weights->out, weights->attention_post, width, at.added, at.x, ahead);
    normalise(team, group, 2 * layer + 1, weights->mlp_norm, at.x, at.z);
    product(team, at.z, rows, width, weights->up, gates * hidden, blocks->activation, at.h, ahead);
    add_product(team, at.h, rows, hidden, weights->down, weights->mlp_post, width, at.added, at.other, ahead);
}

// Runs x (rows × tokens, width) through all blocks in place; of reversible blocks both residual streams, one after the
// other. Stores the new keys and values in the cache, whose length the caller advances. `start` points to
// `workspace_size` bytes.
void step(const Blocks *blocks, const Cache *cache, float *x, int tokens, char *start, int threads) {
    const int rows = cache->rows * tokens, groups = group_count(cache, tokens);
    float *const other = blocks->reversible ? x + (size_t)rows * blocks->width : x;
    const Layout layout = lay_out(blocks, cache, tokens, threads);
    memset(start + layout.counters, 0, layout.qkv - layout.counters);
#pragma omp parallel num_threads(threads)
    {
        Team team = join_team(start + layout.counters);
        float *scores = (float *)(start + layout.scores) + (size_t)team.thread * score_count(blocks, cache, tokens);
        for (int i = -1; i < blocks->count; i++)
            for (int g = 0; g < groups; g++) {
                const Group group = group_of(blocks, cache, tokens, g);
                const Buffers at = buffers_of(blocks, x, other, start, layout, (int64_t)group.first * tokens);
                const int layer_ahead = g + 1 < groups ? i : i + 1;  // where attention goes on
                Ahead ahead, *given = NULL;
                if (layer_ahead >= 0 && layer_ahead < blocks->count) {
                    ahead = look_ahead(&team, group_of(blocks, cache, tokens, (g + 1) % groups), layer_ahead);
                    given = &ahead;
                }
                if (i >= 0) {
                    attend(&team, &group, i, at.qkv, scores, at.z);
                    leave_layer(&team, &group, i, at, given);
                }
                if (i + 1 < blocks->count) enter_layer(&team, &group, i + 1, at, given);
            }
        if (blocks->unit_output) scale_to_unit(&team, x, rows, blocks->width);
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
        product(&team, x_bf16, rows, width, *matrix, outputs, STORE, y, NULL);
    }
}

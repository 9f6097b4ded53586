// Every transformer block for the next positions of some rows, on a CPU, in one call.
//
// A step of a small model is some hundred operations of a few microseconds each; run one by one, most of the time
// goes into starting them. Here one team of threads walks through all blocks.

#include "blocks.h"

int lanes(void) { return LANES; }

// What a step works in, all of `rows` rows but for the scores.
typedef struct {
    float *qkv, *added, *scores;
    uint16_t *z, *q, *h;
} Room;

// Bytes of a step's room, which begins at `start`.
static int64_t lay_out(
    const Blocks *blocks, const Cache *cache, int tokens, int threads, char *start, Room *room) {
    const int64_t rows = (int64_t)cache->rows * tokens, inner = blocks->heads * blocks->size, width = blocks->width;
    room->qkv = (float *)start;
    room->added = room->qkv + rows * 3 * inner;
    room->scores = room->added + (blocks->layers[0].attention_post.weight ? rows * width : 0);
    room->z = (uint16_t *)(room->scores + (int64_t)threads * score_room(blocks, cache, tokens));
    room->q = room->z + rows * (inner > width ? inner : width);
    room->h = room->q + rows * inner;
    return (char *)(room->h + rows * blocks->hidden) - start;
}

int64_t room(const Blocks *blocks, const Cache *cache, int tokens, int threads) {
    Room parts;
    return lay_out(blocks, cache, tokens, threads, NULL, &parts);
}

// x += z times a matrix, by way of `added` if there is a norm in between.
static void add_product(
    const uint16_t *z, int rows, int inner, Matrix matrix, Norm post, int width, float *added, float *x) {
    product(z, rows, inner, matrix, width, post.weight ? STORE : ADD, post.weight ? added : x);
    if (!post.weight) return;
#pragma omp barrier
    add_normalised(added, rows, width, post, x);
}

// Rows of x at length 1.
static void shorten(float *x, int rows, int width) {
    int first, last;
    share(rows, &first, &last);
    for (int row = first; row < last; row++) {
        float *place = x + (size_t)row * width, scale = inverse_length(place, width, 0, EPS);
        for (int k = 0; k < width; k += LANES) *(floats *)(place + k) *= scale;
    }
}

// Run x (rows × tokens, width) through all blocks in place; of reversible blocks both streams, one after the other.
// The cache gets the new keys and values; its length is for the caller to move on. `start` is what `room` asks for.
void step(const Blocks *blocks, const Cache *cache, float *x, int tokens, char *start, int threads) {
    const int rows = cache->rows * tokens, width = blocks->width, hidden = blocks->hidden;
    const int inner = blocks->heads * blocks->size, gates = blocks->activation <= GEGLU ? 2 : 1;
    float *const other = blocks->reversible ? x + (size_t)rows * width : x;
    Room room;
    lay_out(blocks, cache, tokens, threads, start, &room);
#pragma omp parallel num_threads(threads)
    {
        float *scores = room.scores + (size_t)omp_get_thread_num() * score_room(blocks, cache, tokens);
        for (int i = 0; i < blocks->count; i++) {
            const Layer *layer = blocks->layers + i;
            normalise(blocks, cache, 2 * i, layer->attention_norm, other, tokens, room.z);
#pragma omp barrier
            product(room.z, rows, width, layer->qkv, 3 * inner, STORE, room.qkv);
#pragma omp barrier
            remember(blocks, cache, i, room.qkv, tokens, room.q);
#pragma omp barrier
            attend(blocks, cache, i, room.q, tokens, scores, room.z);
#pragma omp barrier
            add_product(room.z, rows, inner, layer->out, layer->attention_post, width, room.added, x);
#pragma omp barrier
            normalise(blocks, cache, 2 * i + 1, layer->mlp_norm, x, tokens, room.z);
#pragma omp barrier
            product(room.z, rows, width, layer->up, gates * hidden, blocks->activation, room.h);
#pragma omp barrier
            add_product(room.h, rows, hidden, layer->down, layer->mlp_post, width, room.added, other);
#pragma omp barrier
        }
        if (blocks->finish) shorten(x, rows, width);
    }
}

// y (rows, outputs) = x (rows, width) times a weight; `halved` holds x in bf16.
void linear(
    const Matrix *matrix, const float *x, int rows, int width, int outputs, float *y, uint16_t *halved, int threads) {
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

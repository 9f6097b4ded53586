// Norms of rows, and the shift of their channels.

#include "blocks.h"

static const float CENTRED_EPS = 1e-5f;

float inverse_length(const float *x, int width, float mean, float eps) {
    floats squares = {};
    for (int i = 0; i < width; i += LANES) {
        floats part = *(const floats *)(x + i) - mean;
        squares += part * part;
    }
    return 1.0f / sqrtf(sum_of(squares) + (float)width * eps);
}

// What a row is changed by.
typedef struct {
    Norm norm;
    float mean, scale;
} Change;

static Change change_of(const float *x, int width, Norm norm) {
    if (!norm.bias) return (Change){norm, 0, inverse_length(x, width, 0, EPS)};
    floats sum = {};
    for (int i = 0; i < width; i += LANES) sum += *(const floats *)(x + i);
    const float mean = sum_of(sum) / (float)width;
    return (Change){norm, mean, inverse_length(x, width, mean, CENTRED_EPS)};
}

static inline floats changed(const float *x, int i, const Change *change) {
    floats y = (*(const floats *)(x + i) - change->mean) * change->scale;
    if (change->norm.weight) y *= *(const floats *)(change->norm.weight + i);
    if (change->norm.bias) y += *(const floats *)(change->norm.bias + i);
    return y;
}

static uint16_t *channels_at(const Blocks *blocks, const Cache *cache, int slot, int row, int position) {
    return cache->channels + (((size_t)slot * cache->rows + row) * cache->capacity + position) * (blocks->width / 2);
}

// The first half of a row's channels into the cache; in its place come those of its sources.
static void shift(const Blocks *blocks, const Cache *cache, int slot, int row, int token, uint16_t *z) {
    const int quarter = blocks->width / 4, before = cache->prompt ? cache->prompt->length : 0;
    const size_t size = quarter * sizeof *z;
    memcpy(channels_at(blocks, cache, slot, row, cache->length + token), z, 2 * size);
    for (int part = 0; part < 2; part++) {
        const int source = blocks->sources[2 * (before + cache->length + token) + part], start = part * quarter;
        if (source < 0)
            memset(z + start, 0, size);
        else if (source < before)
            memcpy(z + start, channels_at(blocks, cache->prompt, slot, row / cache->branches, source) + start, size);
        else
            memcpy(z + start, channels_at(blocks, cache, slot, row, source - before) + start, size);
    }
}

void normalise(
    const Blocks *blocks, const Cache *cache, int slot, Norm norm, const float *x, int tokens, uint16_t *y) {
    const int width = blocks->width, together = blocks->sources ? tokens : 1;  // later tokens look at earlier ones
    int first, last;
    share(cache->rows * tokens / together, &first, &last);
    for (int at = first * together; at < last * together; at++) {
        const float *from = x + (size_t)at * width;
        uint16_t *to = y + (size_t)at * width;
        const Change change = change_of(from, width, norm);
        for (int i = 0; i < width; i += LANES) *(halves *)(to + i) = to_bf16(changed(from, i, &change));
        if (blocks->sources) shift(blocks, cache, slot, at / tokens, at % tokens, to);
    }
}

void add_normalised(const float *added, int rows, int width, Norm norm, float *x) {
    int first, last;
    share(rows, &first, &last);
    for (int row = first; row < last; row++) {
        const size_t start = (size_t)row * width;
        const Change change = change_of(added + start, width, norm);
        for (int i = 0; i < width; i += LANES) *(floats *)(x + start + i) += changed(added + start, i, &change);
    }
}

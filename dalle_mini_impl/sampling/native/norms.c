// Norms of rows, and token shift.

#include "blocks.h"

static const float LAYER_NORM_EPS = 1e-5f;

float inverse_length(const float *x, int width, float mean, float eps) {
    floats squares = {};
    for (int i = 0; i < width; i += LANES) {
        floats part = *(const floats *)(x + i) - mean;
        squares += part * part;
    }
    return 1.0f / sqrtf(sum_of(squares) + (float)width * eps);
}

// A norm with the statistics of one row.
typedef struct {
    Norm norm;
    float mean, scale;
} RowNorm;

static RowNorm row_norm(const float *x, int width, Norm norm) {
    if (!norm.bias) return (RowNorm){norm, 0, inverse_length(x, width, 0, EPS)};
    floats sum = {};
    for (int i = 0; i < width; i += LANES) sum += *(const floats *)(x + i);
    const float mean = sum_of(sum) / (float)width;
    return (RowNorm){norm, mean, inverse_length(x, width, mean, LAYER_NORM_EPS)};
}

static inline floats apply_norm(const float *x, int i, const RowNorm *row) {
    floats y = (*(const floats *)(x + i) - row->mean) * row->scale;
    if (row->norm.weight) y *= *(const floats *)(row->norm.weight + i);
    if (row->norm.bias) y += *(const floats *)(row->norm.bias + i);
    return y;
}

static uint16_t *channels_at(const Blocks *blocks, const Cache *cache, int slot, int row, int position) {
    return cache->channels + (((size_t)slot * cache->rows + row) * cache->capacity + position) * (blocks->width / 2);
}

// Stores the first half of a row's channels in the cache and replaces it by the channels of its sources.
static void shift_tokens(const Blocks *blocks, const Cache *cache, int slot, int row, int token, uint16_t *z) {
    const int quarter = blocks->width / 4, before = cache->prompt ? cache->prompt->length : 0;
    const size_t size = quarter * sizeof *z;
    memcpy(channels_at(blocks, cache, slot, row, cache->length + token), z, 2 * size);
    for (int part = 0; part < 2; part++) {
        const int source = blocks->sources[2 * (before + cache->length + token) + part], start = part * quarter;
        if (source < 0)
            memset(z + start, 0, size);
        else if (source < before)
            memcpy(z + start, channels_at(blocks, cache->prompt, slot, cache->prompt_rows[row], source) + start, size);
        else
            memcpy(z + start, channels_at(blocks, cache, slot, row, source - before) + start, size);
    }
}

void normalise(Team *team, const Group *group, int slot, Norm norm, const float *x, uint16_t *y) {
    // With token shift one thread does all tokens of a row, as later ones need the channels of earlier ones.
    const Blocks *blocks = group->blocks;
    const int width = blocks->width, tokens = group->tokens, per_item = blocks->sources ? tokens : 1;
    int64_t first, last;
    while (next_piece(team, (int64_t)group->rows * tokens / per_item, &first, &last))
        for (int64_t at = first * per_item; at < last * per_item; at++) {
            const float *from = x + at * width;
            uint16_t *to = y + at * width;
            const RowNorm row = row_norm(from, width, norm);
            for (int i = 0; i < width; i += LANES) *(halves *)(to + i) = to_bf16(apply_norm(from, i, &row));
            if (blocks->sources)
                shift_tokens(blocks, group->cache, slot, group->first + (int)(at / tokens), (int)(at % tokens), to);
        }
}

void add_normalised(Team *team, const float *added, int rows, int width, Norm norm, float *x) {
    int64_t first, last;
    while (next_piece(team, rows, &first, &last))
        for (int64_t start = first * width; start < last * width; start += width) {
            const RowNorm row = row_norm(added + start, width, norm);
            for (int i = 0; i < width; i += LANES) *(floats *)(x + start + i) += apply_norm(added + start, i, &row);
        }
}

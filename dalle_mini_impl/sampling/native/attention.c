// Attention of the next positions, and the cache of keys and values.

#include "blocks.h"

// A query, key or value of one head, scaled to length 1 if `unit`, and rotated to its position.
static void rotate(const float *x, const float *rotary, int size, int unit, uint16_t *y) {
    const float scale = unit ? inverse_length(x, size, 0, EPS) : 1.0f;
    float twice[2 * LARGEST_HEAD];  // two copies of x: the other channel of a pair is always size / 2 further on
    memcpy(twice, x, size * sizeof(float));
    memcpy(twice + size, x, size * sizeof(float));
    for (int i = 0; i < size; i += LANES) {
        const floats cosine = *(const floats *)(rotary + i), sine = *(const floats *)(rotary + size + i);
        const floats other = *(const floats *)(twice + i + size / 2);
        *(halves *)(y + i) = to_bf16(scale * (*(const floats *)(x + i) * cosine + other * sine));
    }
}

// Index of a head's first key or value in the cache.
static size_t head_start(const Cache *cache, const Blocks *blocks, int layer, int row, int head) {
    return (((size_t)layer * cache->rows + row) * blocks->heads + head) * cache->capacity * blocks->size;
}

// Writes one key and value into the slot of their head.
static void store(
    uint16_t *head_keys, uint16_t *values, int slot, int size, const uint16_t *key, const uint16_t *value) {
    uint32_t *keys = (uint32_t *)head_keys + (size_t)(slot / LANES) * (size / 2) * LANES + slot % LANES;
    for (int i = 0; i < size / 2; i++) keys[i * LANES] = pair_at(key + 2 * i);
    values += (size_t)(slot / 2) * size * 2;
    for (int i = 0; i < size; i += LANES) {
        pairs new = __builtin_convertvector(*(const halves *)(value + i), pairs), *both = (pairs *)(values + 2 * i);
        *both = slot % 2 ? (*both & 0xffff) | (new << 16) : (*both & 0xffff0000u) | new;
    }
}

void store_keys_values(
    Team *team, const Blocks *blocks, const Cache *cache, int layer, const float *qkv, int tokens, uint16_t *q) {
    const int size = blocks->size, heads = blocks->heads, inner = heads * size;
    const int before = cache->length + (cache->prompt ? cache->prompt->length : 0);
    const int rotary_size = (blocks->rotate_values ? 3 : 2) * 2 * size, unit = blocks->qk_norm;
    const AttentionMask *mask = cache->attention_masks ? cache->attention_masks[layer] : NULL;
    uint16_t key[LARGEST_HEAD], value[LARGEST_HEAD];
    int64_t first, last;
    while (next_piece(team, (int64_t)cache->rows * heads, &first, &last))
        for (int64_t item = first; item < last; item++) {
            int row = (int)(item / heads), head = (int)(item % heads);
            size_t start = head_start(cache, blocks, layer, row, head);
            for (int token = 0; token < tokens; token++) {
                const size_t at = (size_t)row * tokens + token;
                const float *from = qkv + at * 3 * inner + head * size;
                const float *rotary = blocks->layers[layer].rotary + (size_t)(before + token) * rotary_size;
                const int position = cache->length + token, slot = mask ? mask->slots[position] : position;
                rotate(from, rotary, size, unit, q + at * inner + head * size);
                rotate(from + inner, rotary + 2 * size, size, unit, key);
                from += 2 * inner;
                if (blocks->rotate_values) rotate(from, rotary + 4 * size, size, 0, value);
                else for (int i = 0; i < size; i += LANES) *(halves *)(value + i) = to_bf16(*(const floats *)(from + i));
                store(cache->keys + start, cache->values + start, slot, size, key, value);
            }
        }
}

// Rounded up to whole vectors.
static int whole(int count) { return (count + LANES - 1) / LANES * LANES; }

// Scores are computed in whole vectors: the first slot of a run's scores, and how many there are.
static int start_of(Run run) { return run.first / LANES * LANES; }
static int scores_of(Run run) { return whole(run.end) - start_of(run); }

int score_count(const Blocks *blocks, const Cache *cache, int tokens) {
    int most = whole(2 * LANES + cache->length + tokens + (cache->prompt ? cache->prompt->length : 0));
    for (int i = 0; i < blocks->count && cache->attention_masks; i++) {
        const AttentionMask *mask = cache->attention_masks[i];
        if (mask && mask->most_scores > most) most = mask->most_scores;
    }
    return most;
}

// Scores of one query against the keys of a run, minus infinity before and after the run. Returns the largest.
static float score(const uint16_t *query, const uint16_t *keys, Run run, int size, float *scores) {
    floats largest = (floats){} - INFINITY;
    for (int slot = start_of(run); slot < run.end; slot += LANES, scores += LANES) {
        const uint32_t *block = (const uint32_t *)keys + (size_t)slot / 2 * size;
        floats sum[4] = {};  // four sums, because each addition waits for the one before
        for (int i = 0; i < size / 2; i += 4)
            for (int j = 0; j < 4; j++)
                sum[j] = dot(sum[j], *(const pairs *)(block + (i + j) * LANES), pair_at(query + 2 * (i + j)));
        floats all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        for (int i = 0; i < run.first - slot; i++) all[i] = -INFINITY;
        for (int i = run.end - slot; i < LANES; i++) all[i] = -INFINITY;
        *(floats *)scores = all;
        largest = larger(all, largest);
    }
    return largest_of(largest);
}

// y += values times their attention weights, for `vectors` vectors of a head.
static inline __attribute__((always_inline)) void add_vectors(
    const int vectors, const uint16_t *weights, const uint32_t *values, int count, int size, floats *y) {
    floats sum[2][4] = {};
    int slot = 0;
    for (; slot + 2 < count; slot += 4, values += 2 * size)
        for (int i = 0; i < vectors; i++) {
            sum[0][i] = dot(sum[0][i], *(const pairs *)(values + i * LANES), pair_at(weights + slot));
            sum[1][i] = dot(sum[1][i], *(const pairs *)(values + size + i * LANES), pair_at(weights + slot + 2));
        }
    for (int i = 0; i < vectors; i++) {
        if (slot < count) sum[0][i] = dot(sum[0][i], *(const pairs *)(values + i * LANES), pair_at(weights + slot));
        y[i] += sum[0][i] + sum[1][i];
    }
}

// The same for a whole head and the values of a run; weights are laid out as the scores were.
static void add_values(const uint16_t *weights, const uint16_t *values, Run run, int size, floats *y) {
    if (run.end == 0) return;  // of a cache without a prompt, which has no values to point to
    const int start = run.first / 2 * 2, count = run.end - start;
    const uint32_t *from = (const uint32_t *)values + (size_t)start / 2 * size;
    weights += start - start_of(run);
    int i = 0;
    for (; i + 4 <= size / LANES; i += 4) add_vectors(4, weights, from + i * LANES, count, size, y + i);
    for (; i + 2 <= size / LANES; i += 2) add_vectors(2, weights, from + i * LANES, count, size, y + i);
    for (; i < size / LANES; i++) add_vectors(1, weights, from + i * LANES, count, size, y + i);
}

// Keys and values of a head: [0] in the prompt, [1] in the cache that continues it.
typedef struct {
    const uint16_t *keys[2], *values[2];
} Head;

static Head head_of(const Blocks *blocks, const Cache *cache, int layer, int row, int head) {
    size_t own = head_start(cache, blocks, layer, row, head), from;
    if (!cache->prompt) return (Head){{NULL, cache->keys + own}, {NULL, cache->values + own}};
    from = head_start(cache->prompt, blocks, layer, cache->prompt_rows[row], head);
    return (Head){{cache->prompt->keys + from, cache->keys + own}, {cache->prompt->values + from, cache->values + own}};
}

// Attention of one query to `count` runs, the first `in_prompt` of them in the prompt.
static void attend_runs(
    const uint16_t *query, const Head *head, const Run *runs, int in_prompt, int count, int size, float *scores,
    uint16_t *y) {
    uint16_t *weights = (uint16_t *)scores;  // in place: half as wide, and written after the vector was read
    float largest = -INFINITY;
    int all = 0;
    for (int i = 0; i < count; all += scores_of(runs[i++])) {
        float one = score(query, head->keys[i >= in_prompt], runs[i], size, scores + all);
        largest = one > largest ? one : largest;
    }
    floats sum = {}, result[LARGEST_HEAD / LANES] = {};
    for (int i = 0; i < all; i += LANES) {
        floats part = exponential(*(const floats *)(scores + i) - largest);
        sum += part;
        *(halves *)(weights + i) = to_bf16(part);
    }
    for (int i = 0; i < count; weights += scores_of(runs[i++]))
        add_values(weights, head->values[i >= in_prompt], runs[i], size, result);
    float scale = 1.0f / sum_of(sum);
    for (int i = 0; i < size / LANES; i++) *(halves *)(y + i * LANES) = to_bf16(result[i] * scale);
}

void attend(
    Team *team, const Blocks *blocks, const Cache *cache, int layer, const uint16_t *q, int tokens, float *scores,
    uint16_t *y) {
    const int size = blocks->size, heads = blocks->heads, rows = cache->rows * tokens;
    const AttentionMask *mask = cache->attention_masks ? cache->attention_masks[layer] : NULL;
    int64_t first, last;
    while (next_piece(team, (int64_t)rows * heads, &first, &last))
        // All rows of one head, then the next head: rows share the prompt.
        for (int64_t item = first; item < last; item++) {
            const int number = (int)(item / rows), row = (int)(item % rows), position = cache->length + row % tokens;
            const size_t at = ((size_t)row * heads + number) * size;
            const Head head = head_of(blocks, cache, layer, row / tokens, number);
            if (mask) {
                const int32_t *starts = mask->starts + 2 * position;
                attend_runs(q + at, &head, mask->runs + starts[0], starts[1] - starts[0], starts[2] - starts[0], size,
                            scores, y + at);
            } else {
                const Run runs[] = {{0, cache->prompt ? cache->prompt->length : 0}, {0, position + 1}};
                attend_runs(q + at, &head, runs, 1, 2, size, scores, y + at);
            }
        }
}

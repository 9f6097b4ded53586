// Attention of the next positions, and the cache of keys and values.

#include "blocks.h"

// A query, key or value of one head, maybe brought to length 1, turned to its position.
static void turned(const float *x, const float *turn, int size, int unit, uint16_t *y) {
    const float scale = unit ? inverse_length(x, size, 0, EPS) : 1.0f;
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

// One key and value into the cache of their head.
static void put(uint16_t *keys_, uint16_t *values, int place, int size, const uint16_t *key, const uint16_t *value) {
    uint32_t *keys = (uint32_t *)keys_ + place / LANES * (size / 2) * LANES + place % LANES;
    for (int i = 0; i < size / 2; i++) keys[i * LANES] = pair_at(key + 2 * i);
    values += place / 2 * size * 2;
    for (int i = 0; i < size; i += LANES) {
        pairs new = __builtin_convertvector(*(const halves *)(value + i), pairs), *both = (pairs *)(values + 2 * i);
        *both = place % 2 ? (*both & 0xffff) | (new << 16) : (*both & 0xffff0000u) | new;
    }
}

void remember(const Blocks *blocks, const Cache *cache, int layer, const float *qkv, int tokens, uint16_t *q) {
    const int size = blocks->size, heads = blocks->heads, inner = heads * size;
    const int before = cache->length + (cache->prompt ? cache->prompt->length : 0);
    const int turns = (blocks->rotate_values ? 3 : 2) * 2 * size, unit = blocks->qk_norm;
    const AttentionMask *mask = cache->attention_masks ? cache->attention_masks[layer] : NULL;
    uint16_t key[LARGEST_HEAD], value[LARGEST_HEAD];
    int first, last;
    share(cache->rows * heads, &first, &last);
    for (int item = first; item < last; item++) {
        int row = item / heads, head = item % heads;
        size_t start = head_at(cache, blocks, layer, row, head);
        for (int token = 0; token < tokens; token++) {
            const size_t at = (size_t)row * tokens + token;
            const float *from = qkv + at * 3 * inner + head * size;
            const float *turn = blocks->layers[layer].turn + (size_t)(before + token) * turns;
            const int position = cache->length + token, place = mask ? mask->places[position] : position;
            turned(from, turn, size, unit, q + at * inner + head * size);
            turned(from + inner, turn + 2 * size, size, unit, key);
            from += 2 * inner;
            if (blocks->rotate_values) turned(from, turn + 4 * size, size, 0, value);
            else for (int i = 0; i < size; i += LANES) *(halves *)(value + i) = to_bf16(*(const floats *)(from + i));
            put(cache->keys + start, cache->values + start, place, size, key, value);
        }
    }
}

static int whole(int count) { return (count + LANES - 1) / LANES * LANES; }

// Scores are computed in whole vectors: where those of a run begin, and how many there are.
static int start_of(Run run) { return run.first / LANES * LANES; }
static int scores_of(Run run) { return whole(run.end) - start_of(run); }

int score_room(const Blocks *blocks, const Cache *cache, int tokens) {
    int most = whole(2 * LANES + cache->length + tokens + (cache->prompt ? cache->prompt->length : 0));
    for (int i = 0; i < blocks->count && cache->attention_masks; i++)
        if (cache->attention_masks[i] && cache->attention_masks[i]->most > most) most = cache->attention_masks[i]->most;
    return most;
}

// Scores of one query against the keys of a run, minus infinity before and behind it. Gives the largest.
static float score(const uint16_t *query, const uint16_t *keys, Run run, int size, float *scores) {
    floats largest = (floats){} - INFINITY;
    for (int place = start_of(run); place < run.end; place += LANES, scores += LANES) {
        const uint32_t *block = (const uint32_t *)keys + (size_t)place / 2 * size;
        floats sum[4] = {};  // four at a time, because each waits for the one before
        for (int i = 0; i < size / 2; i += 4)
            for (int j = 0; j < 4; j++)
                sum[j] = dot(sum[j], *(const pairs *)(block + (i + j) * LANES), pair_at(query + 2 * (i + j)));
        floats all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        for (int i = 0; i < run.first - place; i++) all[i] = -INFINITY;
        for (int i = run.end - place; i < LANES; i++) all[i] = -INFINITY;
        *(floats *)scores = all;
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

// The same for a whole head and the values of a run, whose shares lie as its scores did.
static void add_values(const uint16_t *shares, const uint16_t *values, Run run, int size, floats *y) {
    const int start = run.first / 2 * 2, count = run.end - start;
    const uint32_t *from = (const uint32_t *)values + (size_t)start / 2 * size;
    shares += start - start_of(run);
    int i = 0;
    for (; i + 4 <= size / LANES; i += 4) add_vectors(4, shares, from + i * LANES, count, size, y + i);
    for (; i + 2 <= size / LANES; i += 2) add_vectors(2, shares, from + i * LANES, count, size, y + i);
    for (; i < size / LANES; i++) add_vectors(1, shares, from + i * LANES, count, size, y + i);
}

// Keys and values of a head, of the prompt and of what came after it.
typedef struct {
    const uint16_t *keys[2], *values[2];
} Head;

static Head head_of(const Blocks *blocks, const Cache *cache, int layer, int row, int head) {
    size_t own = head_at(cache, blocks, layer, row, head), from;
    if (!cache->prompt) return (Head){{NULL, cache->keys + own}, {NULL, cache->values + own}};
    from = head_at(cache->prompt, blocks, layer, row / cache->branches, head);
    return (Head){{cache->prompt->keys + from, cache->keys + own}, {cache->prompt->values + from, cache->values + own}};
}

// Attention of one query to `count` runs, the first `shared` of them in the prompt.
static void attend_runs(
    const uint16_t *query, const Head *head, const Run *runs, int shared, int count, int size, float *scores,
    uint16_t *y) {
    uint16_t *shares = (uint16_t *)scores;  // each vector is read before the half of its place is written
    float largest = -INFINITY;
    int all = 0;
    for (int i = 0; i < count; all += scores_of(runs[i++])) {
        float one = score(query, head->keys[i >= shared], runs[i], size, scores + all);
        largest = one > largest ? one : largest;
    }
    floats sum = {}, result[LARGEST_HEAD / LANES] = {};
    for (int i = 0; i < all; i += LANES) {
        floats part = exponential(*(const floats *)(scores + i) - largest);
        sum += part;
        *(halves *)(shares + i) = to_bf16(part);
    }
    for (int i = 0; i < count; shares += scores_of(runs[i++]))
        add_values(shares, head->values[i >= shared], runs[i], size, result);
    float scale = 1.0f / sum_of(sum);
    for (int i = 0; i < size / LANES; i++) *(halves *)(y + i * LANES) = to_bf16(result[i] * scale);
}

void attend(
    const Blocks *blocks, const Cache *cache, int layer, const uint16_t *q, int tokens, float *scores, uint16_t *y) {
    const int size = blocks->size, heads = blocks->heads, rows = cache->rows * tokens;
    const AttentionMask *mask = cache->attention_masks ? cache->attention_masks[layer] : NULL;
    int first, last;
    share(rows * heads, &first, &last);
    for (int item = first; item < last; item++) {  // one head of all rows after the other: they share the prompt
        const int number = item / rows, row = item % rows, position = cache->length + row % tokens;
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

// Attention of the next positions, and the cache of keys and values.

#include "blocks.h"

enum { AHEAD = 12 << 20 };  // bytes of keys and values that products fetch; most last-level caches are larger

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

// The mask of a layer, NULL for full attention.
static const AttentionMask *mask_of(const Cache *cache, int layer) {
    return cache->attention_masks ? cache->attention_masks[layer] : NULL;
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

// Rounded up to whole vectors.
static int whole(int count) { return (count + LANES - 1) / LANES * LANES; }

// Scores are computed in whole vectors: the first slot of a run's scores, and how many there are.
static int start_of(Run run) { return run.first / LANES * LANES; }
static int scores_of(Run run) { return whole(run.end) - start_of(run); }

int score_count(const Blocks *blocks, const Cache *cache, int tokens) {
    int most = whole(2 * LANES + cache->length + tokens + (cache->prompt ? cache->prompt->length : 0));
    for (int i = 0; i < blocks->count; i++) {
        const AttentionMask *mask = mask_of(cache, i);
        if (mask && mask->most_scores > most) most = mask->most_scores;
    }
    return most;
}

// Scores of one query against the keys of a run, minus infinity before and after the run. Returns the largest. Meanwhile
// the values are fetched.
static float score(
    const uint16_t *query, const uint16_t *keys, const uint16_t *values, Run run, int size, float *scores) {
    floats largest = (floats){} - INFINITY;
    for (int slot = start_of(run); slot < run.end; slot += LANES, scores += LANES) {
        const uint32_t *block = (const uint32_t *)keys + (size_t)slot / 2 * size;
        fetch((const char *)(values + (size_t)slot * size), LANES * size * (int64_t)sizeof *values);
        floats sum[4] = {};  // four sums, because each addition waits for the one before
        for (int i = 0; i < size / 2; i += 4)
#pragma GCC unroll 4
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

// y += values times their attention weights, for `vectors` vectors of a head. Meanwhile as many bytes from `next` are
// fetched, unless it is NULL.
static inline __attribute__((always_inline)) void add_vectors(
    const int vectors, const uint16_t *weights, const uint32_t *values, int count, int size, const char *next,
    floats *y) {
    const int64_t bytes = size * (int64_t)sizeof *values;  // of two slots
    floats sum[2][4] = {};
    int slot = 0;
    for (; slot + 2 < count; slot += 4, values += 2 * size) {
        if (next) fetch(next + slot / 2 * bytes, 2 * bytes);
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++) {
            sum[0][i] = dot(sum[0][i], *(const pairs *)(values + i * LANES), pair_at(weights + slot));
            sum[1][i] = dot(sum[1][i], *(const pairs *)(values + size + i * LANES), pair_at(weights + slot + 2));
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < vectors; i++) {
        if (slot < count) sum[0][i] = dot(sum[0][i], *(const pairs *)(values + i * LANES), pair_at(weights + slot));
        y[i] += sum[0][i] + sum[1][i];
    }
}

// The same for a whole head and the values of a run; weights are laid out as the scores were. Keys of the same slots of
// the next head are fetched.
static void add_values(
    const uint16_t *weights, const uint16_t *values, Run run, int size, const uint16_t *next_keys, floats *y) {
    if (run.end == 0) return;  // of a cache without a prompt, which has no values to point to
    const int start = run.first / 2 * 2, count = run.end - start;
    const uint32_t *from = (const uint32_t *)values + (size_t)start / 2 * size;
    const char *next = next_keys ? (const char *)(next_keys + (size_t)start * size) : NULL;
    weights += start - start_of(run);
    int i = 0;
    for (; i + 4 <= size / LANES; i += 4, next = NULL) add_vectors(4, weights, from + i * LANES, count, size, next, y + i);
    for (; i + 2 <= size / LANES; i += 2, next = NULL) add_vectors(2, weights, from + i * LANES, count, size, next, y + i);
    for (; i < size / LANES; i++, next = NULL) add_vectors(1, weights, from + i * LANES, count, size, next, y + i);
}

// Keys and values of a head: [0] in the prompt, [1] in the cache that continues it.
typedef struct {
    uint16_t *keys[2], *values[2];
} Head;

static Head head_of(const Blocks *blocks, const Cache *cache, int layer, int row, int head) {
    size_t own = head_start(cache, blocks, layer, row, head), from;
    if (!cache->prompt) return (Head){{NULL, cache->keys + own}, {NULL, cache->values + own}};
    from = head_start(cache->prompt, blocks, layer, cache->prompt_rows[row], head);
    return (Head){{cache->prompt->keys + from, cache->keys + own}, {cache->prompt->values + from, cache->values + own}};
}

// Attention of one query to `count` runs, the first `in_prompt` of them in the prompt. `next_keys` are those that will be
// read after it, NULL for none.
static void attend_runs(
    const uint16_t *query, const Head *head, const Run *runs, int in_prompt, int count, int size,
    const uint16_t *next_keys, float *scores, uint16_t *y) {
    uint16_t *weights = (uint16_t *)scores;  // in place: half as wide, and written after the vector was read
    float largest = -INFINITY;
    int all = 0;
    for (int i = 0; i < count; all += scores_of(runs[i++])) {
        const int own = i >= in_prompt;
        float one = score(query, head->keys[own], head->values[own], runs[i], size, scores + all);
        largest = one > largest ? one : largest;
    }
    floats sum = {}, result[LARGEST_HEAD / LANES] = {};
    for (int i = 0; i < all; i += LANES) {
        floats part = exponential(*(const floats *)(scores + i) - largest);
        sum += part;
        *(halves *)(weights + i) = to_bf16(part);
    }
    for (int i = 0; i < count; weights += scores_of(runs[i++]))
        add_values(weights, head->values[i >= in_prompt], runs[i], size, i >= in_prompt ? next_keys : NULL, result);
    float scale = 1.0f / sum_of(sum);
    for (int i = 0; i < size / LANES; i++) *(halves *)(y + i * LANES) = to_bf16(result[i] * scale);
}

Ahead look_ahead(const Team *team, Group group, int layer) {
    const Cache *cache = group.cache;
    const AttentionMask *mask = mask_of(cache, layer);
    Ahead ahead = {.group = group, .layer = layer, .all = {0, cache->length}, .count = 1, .budget = AHEAD / team->threads};
    if (mask) {
        const int32_t *starts = mask->starts + 2 * cache->length;
        ahead.runs = mask->runs + starts[1];
        ahead.count = starts[2] - starts[1];
    }
    const int64_t items = (int64_t)group.rows * group.blocks->heads;
    ahead.next = items * team->thread / team->threads * 2 * ahead.count;
    ahead.end = items * (team->thread + 1) / team->threads * 2 * ahead.count;
    return ahead;
}

int64_t next_ahead(Ahead *ahead, int64_t most, const char **at) {
    while (!ahead->left) {
        if (ahead->next == ahead->end || ahead->budget <= 0) return 0;
        const Blocks *blocks = ahead->group.blocks;
        const Cache *cache = ahead->group.cache;
        const int item = (int)(ahead->next / (2 * ahead->count)), within = (int)(ahead->next % (2 * ahead->count));
        const Run run = ahead->runs ? ahead->runs[within % ahead->count] : ahead->all;
        const int row = ahead->group.first + item % ahead->group.rows;
        const uint16_t *from = within < ahead->count ? cache->keys : cache->values;
        from += head_start(cache, blocks, ahead->layer, row, item / ahead->group.rows);
        ahead->at = (const char *)(from + (size_t)start_of(run) * blocks->size);
        ahead->left = (int64_t)(whole(run.end) - start_of(run)) * blocks->size * (int64_t)sizeof *from;
        ahead->budget -= ahead->left;
        ahead->next++;
    }
    const int64_t bytes = ahead->left < most ? ahead->left : most;
    *at = ahead->at;
    ahead->at += bytes;
    ahead->left -= bytes;
    return bytes;
}

// Heads of a group, all rows of one head, then the next head: rows share the prompt.
static Head head_at(const Group *group, int layer, int64_t item) {
    const int row = group->first + (int)(item % group->rows);
    return head_of(group->blocks, group->cache, layer, row, (int)(item / group->rows));
}

// Stores the key and the value of a head's token, and rotates its query; all three are `inner` numbers apart in `qkv`.
static void split(const Group *group, int layer, const float *qkv, const Head *head, int token, uint16_t *query) {
    const Blocks *blocks = group->blocks;
    const Cache *cache = group->cache;
    const int size = blocks->size, inner = blocks->heads * size, position = cache->length + token;
    const int rotary_size = (blocks->rotate_values ? 3 : 2) * 2 * size;
    const size_t before = cache->prompt ? cache->prompt->length : 0;
    const float *rotary = blocks->layers[layer].rotary + (before + position) * rotary_size, *from = qkv + 2 * inner;
    const AttentionMask *mask = mask_of(cache, layer);
    uint16_t key[LARGEST_HEAD], value[LARGEST_HEAD];
    rotate(qkv, rotary, size, blocks->qk_norm, query);
    rotate(qkv + inner, rotary + 2 * size, size, blocks->qk_norm, key);
    if (blocks->rotate_values) rotate(from, rotary + 4 * size, size, 0, value);
    else for (int i = 0; i < size; i += LANES) *(halves *)(value + i) = to_bf16(*(const floats *)(from + i));
    store(head->keys[1], head->values[1], mask ? mask->slots[position] : position, size, key, value);
}

// Attention of all tokens of one head of a row; rows of `qkv` and y are those of the first token.
static void attend_head(
    const Group *group, int layer, const float *qkv, const Head *head, const uint16_t *next_keys, float *scores,
    uint16_t *y) {
    const Cache *cache = group->cache;
    const int size = group->blocks->size, inner = group->blocks->heads * size;
    const AttentionMask *mask = mask_of(cache, layer);
    uint16_t query[LARGEST_HEAD];
    for (int token = 0; token < group->tokens; token++, qkv += 3 * inner, y += inner) {
        const int position = cache->length + token;
        split(group, layer, qkv, head, token, query);
        if (mask) {
            const int32_t *starts = mask->starts + 2 * position;
            attend_runs(query, head, mask->runs + starts[0], starts[1] - starts[0], starts[2] - starts[0], size,
                        next_keys, scores, y);
        } else {
            const Run runs[] = {{0, cache->prompt ? cache->prompt->length : 0}, {0, position + 1}};
            attend_runs(query, head, runs, 1, 2, size, next_keys, scores, y);
        }
    }
}

void attend(Team *team, const Group *group, int layer, const float *qkv, float *scores, uint16_t *y) {
    const Blocks *blocks = group->blocks;
    const int size = blocks->size, rows = group->rows;
    const size_t inner = (size_t)blocks->heads * size;
    int64_t first, last;
    while (next_piece(team, (int64_t)rows * blocks->heads, &first, &last))
        for (int64_t item = first; item < last; item++) {
            const size_t at = item % rows * group->tokens * inner, channel = item / rows * size;
            const Head head = head_at(group, layer, item);
            const uint16_t *next_keys = item + 1 < last ? head_at(group, layer, item + 1).keys[1] : NULL;
            attend_head(group, layer, qkv + 3 * at + channel, &head, next_keys, scores, y + at + channel);
        }
}

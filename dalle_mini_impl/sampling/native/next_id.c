// Samples the next id of each row from its logits.

#include <float.h>

#include "team.h"
#include "vectors.h"

// NaN counts as minus infinity, infinity as the largest number: differences between logits are then never NaN.
static inline floats clean(floats x) {
    const floats lowest = (floats){} - INFINITY, highest = (floats){} + FLT_MAX;
    return select_lanes((pairs)(x > highest), highest, select_lanes((pairs)(x == x), x, lowest));
}

static int count_from(const float *x, int count, float least) {
    integers found = {};
    for (int i = 0; i < count; i += LANES) found -= *(const floats *)(x + i) >= least;
    int all = 0;
    for (int i = 0; i < LANES; i++) all += found[i];
    return all;
}

// A float as an integer of the same order, and back.
static int32_t order_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

static float from_order(int32_t order) {
    order ^= order >> 31 & 0x7fffffff;
    float x;
    memcpy(&x, &order, sizeof x);
    return x;
}

// The `k`-th largest value, by bisection of the range between minus infinity and the largest.
static float kth_largest(const float *x, int count, int k, float largest) {
    int64_t low = order_of(-INFINITY), high = order_of(largest);
    while (low < high) {
        int64_t middle = high - (high - low) / 2;
        if (count_from(x, count, from_order((int32_t)middle)) >= k) low = middle;
        else high = middle - 1;
    }
    return from_order((int32_t)low);
}

// Floats of a row in whole vectors.
static int64_t row_size(int vocab) { return ((int64_t)vocab + LANES - 1) / LANES * LANES; }

// The id whose interval of the cumulative distribution over [0, 1) holds `uniform`, among the `top_k` likeliest. Of
// equal logits the lower id counts as the likelier. Always an id in [0, vocab): 0 if all logits are minus infinity.
static int sample(
    const float *logits, int vocab, float inverse_temperature, int top_k, float uniform, float *weights) {
    const int count = (int)row_size(vocab);
    memcpy(weights, logits, vocab * sizeof *weights);
    for (int i = vocab; i < count; i++) weights[i] = -INFINITY;
    floats largest = (floats){} - INFINITY, sum = {};
    for (int i = 0; i < count; i += LANES) {
        floats *part = (floats *)(weights + i);
        *part = clean(*part);
        largest = larger(*part, largest);
    }
    const float top = largest_of(largest);
    if (top == -INFINITY) return 0;
    const float lowest = top_k < vocab ? kth_largest(weights, count, top_k, top) : -INFINITY;
    // Ids tied at the lowest logit. At minus infinity, which the padding has too, all ids have weight 0 anyway.
    int surplus = lowest > -INFINITY ? count_from(weights, count, lowest) - top_k : 0;
    for (int i = 0; i < count; i += LANES) {
        floats *part = (floats *)(weights + i);
        floats below = (*part - top) * inverse_temperature;
        *part = select_lanes((pairs)(*part >= lowest) & (pairs)(below > -87.0f), exponential(below), (floats){});
    }
    for (int i = vocab - 1; i >= 0 && surplus > 0; i--)
        if ((logits[i] > FLT_MAX ? FLT_MAX : logits[i]) == lowest) weights[i] = 0, surplus--;
    for (int i = 0; i < count; i += LANES) sum += *(const floats *)(weights + i);
    float left = uniform * sum_of(sum);
    for (int i = 0; i < count; i += LANES) {
        float part = sum_of(*(const floats *)(weights + i));
        if (left >= part) {
            left -= part;
            continue;
        }
        for (int j = i; j < i + LANES; left -= weights[j++])
            if (left < weights[j]) return j;
    }
    // Rounding may put a number just below 1 beyond the last interval.
    int id = vocab - 1;
    while (id > 0 && !(weights[id] > 0)) id--;
    return id;
}

// Bytes that `sample_ids` needs as its workspace.
int64_t sampling_workspace_size(int vocab, int threads) {
    return counters_size(1, threads) + (int64_t)threads * row_size(vocab) * (int64_t)sizeof(float);
}

// ids (rows) from logits (rows, vocab); temperature, top_k and random number are those of each row. `start` points to
// `sampling_workspace_size` bytes.
void sample_ids(
    const float *logits, int rows, int vocab, const float *inverse_temperature, const int32_t *top_k,
    const float *uniform, int64_t *ids, char *start, int threads) {
    memset(start, 0, counters_size(1, threads));
    float *workspace = (float *)(start + counters_size(1, threads));
#pragma omp parallel num_threads(threads)
    {
        Team team = join_team(start);
        float *weights = workspace + team.thread * row_size(vocab);
        int64_t first, last;
        while (next_piece(&team, rows, &first, &last))
            for (int64_t row = first; row < last; row++)
                ids[row] = sample(
                    logits + row * vocab, vocab, inverse_temperature[row], top_k[row], uniform[row], weights);
    }
}

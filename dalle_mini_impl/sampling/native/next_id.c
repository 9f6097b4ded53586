// Samples the next id of each row from its logits.

#include "vectors.h"

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

// The id whose interval of the cumulative distribution over [0, 1) holds `uniform`, among the `top_k` likeliest. Of
// equal logits the lower id counts as the likelier.
static int sample(
    const float *logits, int vocab, float inverse_temperature, int top_k, float uniform, float *weights) {
    const int count = (vocab + LANES - 1) / LANES * LANES;
    memcpy(weights, logits, vocab * sizeof *weights);
    for (int i = vocab; i < count; i++) weights[i] = -INFINITY;
    floats largest = *(const floats *)weights, sum = {};
    for (int i = LANES; i < count; i += LANES) largest = larger(*(const floats *)(weights + i), largest);
    const float top = largest_of(largest);
    const float lowest = top_k < vocab ? kth_largest(weights, count, top_k, top) : -INFINITY;
    int surplus = top_k < vocab ? count_from(weights, count, lowest) - top_k : 0;  // ids tied at the lowest logit
    for (int i = 0; i < count; i += LANES) {
        floats *part = (floats *)(weights + i);
        floats below = (*part - top) * inverse_temperature;
        *part = select_lanes((pairs)(*part >= lowest) & (pairs)(below > -87.0f), exponential(below), (floats){});
    }
    for (int i = vocab - 1; surplus > 0; i--)
        if (logits[i] == lowest) weights[i] = 0, surplus--;
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

// ids (rows) from logits (rows, vocab). `workspace` holds for each thread as many floats as a row, rounded up to whole
// vectors.
void sample_ids(
    const float *logits, int rows, int vocab, float inverse_temperature, int top_k, const float *uniform, int64_t *ids,
    float *workspace, int threads) {
    const int row_size = (vocab + LANES - 1) / LANES * LANES;
#pragma omp parallel num_threads(threads)
    {
        int first, last;
        thread_range(rows, &first, &last);
        for (int row = first; row < last; row++)
            ids[row] = sample(logits + (size_t)row * vocab, vocab, inverse_temperature, top_k, uniform[row],
                              workspace + (size_t)omp_get_thread_num() * row_size);
    }
}

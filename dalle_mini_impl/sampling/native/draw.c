// Draws the next id of each row from its logits.

#include "vectors.h"

static int count_from(const float *x, int count, float least) {
    integers found = {};
    for (int i = 0; i < count; i += LANES) found -= *(const floats *)(x + i) >= least;
    int all = 0;
    for (int i = 0; i < LANES; i++) all += found[i];
    return all;
}

// Numbers in an order of whole numbers, and back.
static int32_t place_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

static float at_place(int32_t place) {
    place ^= place >> 31 & 0x7fffffff;
    float x;
    memcpy(&x, &place, sizeof x);
    return x;
}

// The `kept`-th largest, found by halving the range in which it must lie.
static float lowest_kept(const float *x, int count, int kept, float largest) {
    int64_t low = place_of(-INFINITY), high = place_of(largest);
    while (low < high) {
        int64_t middle = high - (high - low) / 2;
        if (count_from(x, count, at_place((int32_t)middle)) >= kept) low = middle;
        else high = middle - 1;
    }
    return at_place((int32_t)low);
}

// The id whose stretch of [0, 1) holds `uniform`. Of equal logits the lower id counts as the likelier.
static int drawn(const float *logits, int vocab, float colder, int kept, float uniform, float *shares) {
    const int count = (vocab + LANES - 1) / LANES * LANES;
    memcpy(shares, logits, vocab * sizeof *shares);
    for (int i = vocab; i < count; i++) shares[i] = -INFINITY;
    floats largest = *(const floats *)shares, sum = {};
    for (int i = LANES; i < count; i += LANES) largest = larger(*(const floats *)(shares + i), largest);
    const float top = largest_of(largest), lowest = kept < vocab ? lowest_kept(shares, count, kept, top) : -INFINITY;
    int ties = kept < vocab ? count_from(shares, count, lowest) - kept : 0;  // too many
    for (int i = 0; i < count; i += LANES) {
        floats *part = (floats *)(shares + i);
        floats below = (*part - top) * colder;
        *part = chosen((pairs)(*part >= lowest) & (pairs)(below > -87.0f), exponential(below), (floats){});
    }
    for (int i = vocab - 1; ties > 0; i--)
        if (logits[i] == lowest) shares[i] = 0, ties--;
    for (int i = 0; i < count; i += LANES) sum += *(const floats *)(shares + i);
    float left = uniform * sum_of(sum);
    for (int i = 0; i < count; i += LANES) {
        float part = sum_of(*(const floats *)(shares + i));
        if (left >= part) {
            left -= part;
            continue;
        }
        for (int j = i; j < i + LANES; left -= shares[j++])
            if (left < shares[j]) return j;
    }
    // Rounding may put a number just below 1 behind the last stretch.
    int id = vocab - 1;
    while (id > 0 && !(shares[id] > 0)) id--;
    return id;
}

// One id (rows) from logits (rows, vocab) divided by a temperature, of which `colder` is the inverse. `room` holds
// as many floats as a row, rounded up to whole vectors, for each thread.
void draw(
    const float *logits, int rows, int vocab, float colder, int kept, const float *uniform, int64_t *ids, float *room,
    int threads) {
    const int each = (vocab + LANES - 1) / LANES * LANES;
#pragma omp parallel num_threads(threads)
    {
        int first, last;
        share(rows, &first, &last);
        for (int row = first; row < last; row++)
            ids[row] = drawn(logits + (size_t)row * vocab, vocab, colder, kept, uniform[row],
                             room + (size_t)omp_get_thread_num() * each);
    }
}

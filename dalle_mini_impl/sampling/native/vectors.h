// SIMD vectors as long as this CPU's registers, and the operations on them that all of the compiled code uses.

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

// Number of 32-bit values in a vector.
#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t pairs __attribute__((vector_size(4 * LANES), aligned(4), may_alias));  // of bf16 values, first one low
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));  // bf16 values

static inline float sum_of(floats x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

static inline float largest_of(floats x) {
    float largest = x[0];
    for (int i = 1; i < LANES; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

// In each lane `yes` where the mask's bits are set, else `no`.
static inline floats select_lanes(pairs mask, floats yes, floats no) {
    return (floats)(((pairs)yes & mask) | ((pairs)no & ~mask));
}

static inline floats larger(floats x, floats y) { return select_lanes((pairs)(x > y), x, y); }

// e^x for x from -87 to 88: 2^whole times a polynomial of the rest (the coefficients of Cephes' expf).
static inline floats exponential(floats x) {
    const floats magic = (floats){} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number in the low bits
    x = -larger(-larger(x, (floats){} - 87.0f), (floats){} - 88.0f);
    floats whole = x * 1.44269504f + magic;
    pairs shift = (pairs)whole << 23;
    whole -= magic;
    floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    floats y = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1.0f;
    return (floats)((pairs)y + shift);
}

// Rounded to the nearest bf16 value, ties to even.
static inline halves to_bf16(floats x) {
    pairs bits = (pairs)x;
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, halves);
}

// Two neighbouring bf16 values as 32 bits.
static inline uint32_t pair_at(const uint16_t *x) {
    uint32_t pair;
    memcpy(&pair, x, sizeof pair);
    return pair;
}

static inline float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// sum + the dot product of each pair of weights with the same pair x.
static inline floats dot(floats sum, pairs weights, uint32_t x) {
#ifdef __AVX512BF16__
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512i)weights, (__m512bh)_mm512_set1_epi32((int)x));
#else
    sum += (floats)(weights << 16) * as_float(x << 16);
    return sum + (floats)(weights & 0xffff0000u) * as_float(x & 0xffff0000u);
#endif
}

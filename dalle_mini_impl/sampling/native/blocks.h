// What blocks and caches are made of, and what the files that run them know of each other.
//
// Layouts, with pairs of neighbouring bf16 numbers side by side in 32 bits:
//   weight (out, in)    [out / OUTPUTS][in / 2][OUTPUTS] pairs along `in`; or of 8-bit integers, one scale per output
//   keys of a head      [places / LANES][size / 2][LANES] pairs along `size`
//   values of a head    [places / 2][size] pairs along the places

#include "vectors.h"

enum { OUTPUTS = 2 * LANES, LARGEST_HEAD = 256 };
static const float EPS = 1e-6f;

typedef struct {
    const char *weight;
    const float *scale;  // NULL for a weight in bf16
    const float *bias;   // NULL for none
} Matrix;

// Rows at length 1, times a weight, plus a bias; either may be NULL. With a bias their mean is taken off before.
typedef struct {
    const float *weight, *bias;
} Norm;

typedef struct {
    Matrix qkv, out, up, down;  // of a gated `up` LANES outputs of the gate, then as many of what it gates, and so on
    Norm attention_norm, mlp_norm, attention_post, mlp_post;  // the last two have no weight where there is none
    const float *turn;  // [position][query, key, maybe value][cosine, sine][size], with the weights of their norms
} Layer;

// What is done with a product. The last four make bf16 of it; the first two of them gate.
typedef enum { STORE, ADD, SWIGLU, GEGLU, GELU, GELU_TANH } Then;

typedef struct {
    const Layer *layers;
    const int32_t *sources;  // [position][first, second quarter]: whence those channels come; NULL for no shift
    int32_t count, heads, size, width, hidden;
    int32_t activation;             // a Then
    int32_t qk_norm, rotate_values;  // whether queries and keys get length 1, and whether values are turned
    int32_t reversible, finish;    // whether there are two streams, and whether one is left at length 1
} Blocks;

// Places from `first` to before `end`.
typedef struct {
    int32_t first, end;
} Run;

// What the positions of a cache may look at in one layer.
typedef struct {
    const int32_t *places;  // of each position, where its key and value are
    const Run *runs;
    const int32_t *starts;  // [position][in the prompt, here]: first of its runs
    int32_t most;           // scores of a position, in whole vectors
} AttentionMask;

typedef struct Cache {
    uint16_t *keys, *values;     // [layer][row][head][capacity × size]
    uint16_t *channels;          // [layer][attention, feed-forward][row][capacity][width / 2], where they are shifted
    const struct Cache *prompt;  // what comes before; row r continues its row r / branches
    const AttentionMask *const *attention_masks;  // [layer], NULL for one that looks at all before; NULL if all do
    int32_t rows, branches, capacity, length;
} Cache;

// 1 / length of x with `mean` taken off, where `eps` is added to the mean square.
float inverse_length(const float *x, int width, float mean, float eps);

// Floats in which a thread can keep the scores of a query.
int score_room(const Blocks *blocks, const Cache *cache, int tokens);

// Of what follows each thread of the team does its share.

// y (rows, outputs) from x (rows, width) in bf16.
void product(const uint16_t *x, int rows, int width, Matrix matrix, int outputs, Then then, void *y);

// Normalised rows of x (rows × tokens, width) in bf16, their channels shifted; `slot` is 2 × layer, 1 more for the
// feed-forward layer.
void normalise(
    const Blocks *blocks, const Cache *cache, int slot, Norm norm, const float *x, int tokens, uint16_t *y);

// x += normalised rows of `added`, both (rows, width).
void add_normalised(const float *added, int rows, int width, Norm norm, float *x);

// Of queries, keys and values (rows × tokens, 3, heads, size) queries to `q`, keys and values into the cache.
void remember(const Blocks *blocks, const Cache *cache, int layer, const float *qkv, int tokens, uint16_t *q);

// Attention of queries (rows × tokens, heads, size) to the prompt, to positions before and to themselves.
void attend(
    const Blocks *blocks, const Cache *cache, int layer, const uint16_t *q, int tokens, float *scores, uint16_t *y);

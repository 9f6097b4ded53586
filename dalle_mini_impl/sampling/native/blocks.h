// The data structures of blocks and caches, and the functions that the C files share.
//
// Layouts; a pair is two neighbouring bf16 values in 32 bits:
//   weight (out, in)    [out / OUTPUTS][in / 2][OUTPUTS] pairs along `in`; in int8 bytes instead of bf16 values
//   keys of a head      [slots / LANES][size / 2][LANES] pairs along `size`
//   values of a head    [slots / 2][size] pairs along the slots
// A slot is where the key and the value of a position lie in a cache. Without attention masks it is the position.

#include "team.h"
#include "vectors.h"

enum {
    OUTPUTS = 2 * LANES,
    LARGEST_HEAD = 256,
    LINE = 64  // bytes that a CPU's caches fetch at a time
};
static const float EPS = 1e-6f;  // added to the mean square by RMSNorm, as in attention.py

typedef struct {
    const char *weight;
    const float *scale;  // of each output, if the weight is in int8; NULL if it is in bf16
    const float *bias;   // NULL for none
} Matrix;

// Rows scaled to length 1, times a weight, plus a bias; either may be NULL. With a bias the mean is subtracted first.
typedef struct {
    const float *weight, *bias;
} Norm;

typedef struct {
    Matrix qkv, out, up, down;  // the outputs of a gated `up` alternate: LANES of the gate, LANES of the gated values
    Norm attention_norm, mlp_norm, attention_post, mlp_post;  // the last two have no weight if the block lacks them
    const float *rotary;  // [position][query, key, maybe value][cosine, sine][size], times the weights of their norms
} Layer;

// What is done with a product before it is stored. The last four store bf16; SWIGLU and GEGLU gate.
typedef enum { STORE, ADD, SWIGLU, GEGLU, GELU, GELU_TANH } Epilogue;

typedef struct {
    const Layer *layers;
    // [position][2]: the positions that the first two quarters of its channels come from, -1 for zeros; NULL for no
    // token shift.
    const int32_t *sources;
    int32_t count, heads;         // of layers, and of heads in each
    int32_t size, width, hidden;  // widths of a head, of the residual stream and inside the MLP
    int32_t activation;           // the Epilogue of `up`
    int32_t qk_norm;              // whether queries and keys are scaled to length 1
    int32_t rotate_values;        // whether values are rotated like queries and keys
    int32_t reversible;           // whether there are two residual streams
    int32_t unit_output;          // whether rows of the result are scaled to length 1
} Blocks;

// Slots from `first` to before `end`.
typedef struct {
    int32_t first, end;
} Run;

// Which slots the positions of a cache may attend to in one layer.
typedef struct {
    const int32_t *slots;   // of each position
    const Run *runs;
    const int32_t *starts;  // [position][in the prompt, in this cache]: index of the first of its runs
    int32_t most_scores;    // largest number of scores of a position, in whole vectors
} AttentionMask;

typedef struct Cache {
    uint16_t *keys, *values;     // [layer][row][head][capacity × size]
    uint16_t *channels;          // [layer][attention, MLP][row][capacity][width / 2], with token shift
    const struct Cache *prompt;  // earlier positions; NULL for none
    const int32_t *prompt_rows;  // of each row the row of the prompt that it continues
    const AttentionMask *const *attention_masks;  // [layer], NULL for full attention; NULL if all layers have that
    int32_t rows, capacity, length;
} Cache;

// Neighbouring rows of a cache that go through a layer together, with `tokens` next positions each.
typedef struct {
    const Blocks *blocks;
    const Cache *cache;
    int first, rows, tokens;
} Group;

// Keys and values that attention will read soon. Products fetch them into the CPU's caches while they compute, because
// their own operands leave the memory idle.
typedef struct {
    Group group;
    int layer;
    Run all;           // slots that attention without a mask reads
    const Run *runs;   // those that it reads with a mask, else NULL
    int count;         // of runs
    int64_t next;      // index of the next run: [head][row][keys, values][run]
    int64_t end;       // index of the one after this thread's last
    const char *at;    // what is left of the current run
    int64_t left;      // bytes of that
    int64_t budget;    // bytes that may still be fetched
} Ahead;

// Has the CPU fetch some bytes into its second-level cache while it goes on.
static inline void fetch(const char *from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch(from + i, 0, 2);
}

// 1 / √(Σ (x - mean)² + width · eps).
float inverse_length(const float *x, int width, float mean, float eps);

// How many floats a thread needs for the scores of a query.
int score_count(const Blocks *blocks, const Cache *cache, int tokens);

// What a thread will read of a group's keys and values in a layer.
Ahead look_ahead(const Team *team, Group group, int layer);

// At most `most` neighbouring bytes of what is ahead; returns their number, 0 at the end.
int64_t next_ahead(Ahead *ahead, int64_t most, const char **at);

// The following functions are called by all threads of a parallel region, and are one phase of their work.

// y (rows, outputs) from x (rows, width) in bf16. `ahead` may be NULL.
void product(
    Team *team, const uint16_t *x, int rows, int width, Matrix matrix, int outputs, Epilogue epilogue, void *y,
    Ahead *ahead);

// Normalised rows of x (rows × tokens, width) in bf16, their channels shifted if there is a token shift; `slot` is
// 2 × layer before attention, 2 × layer + 1 before the MLP.
void normalise(Team *team, const Group *group, int slot, Norm norm, const float *x, uint16_t *y);

// x += normalised rows of `added`, both (rows, width).
void add_normalised(Team *team, const float *added, int rows, int width, Norm norm, float *x);

// Attention to the prompt and to the cache up to each one's own position, (rows × tokens, heads, size), from queries,
// keys and values (rows × tokens, 3, heads, size); the latter two are stored in the cache.
void attend(Team *team, const Group *group, int layer, const float *qkv, float *scores, uint16_t *y);

/* Scores of m candidate destinations for each of n events, each candidate as it is just before the event; and the
   cross-entropy of the destination among them. Called through ctypes by scoring.py.

   A candidate is a fixed row (width s) and a state (width d), which events change: event e makes `changes` states,
   rows 2e + 2 - changes ... 2e + 1 of `states`; changed[e * changes + c] is the candidate that the c-th is of, -1 for
   none. The state of candidate j at the start is row 2n + j. Widths are multiples of 16.

   Candidates are taken in tiles that stay in the first-level cache, each through all events in blocks of eight: a
   product of small matrices, with the tile's states as they are at the block's first event. Where a candidate changes
   inside a block, the few scores of the block's later events are done one by one. */

#include "vector.h"

#define BLOCK 8
#define TILE 32

typedef struct {
    int64_t events, candidates, stride, fixed, width, changes;
    const float *asked; /* n x (s + d) */
    const float *rows;  /* m x s */
    const float *states;
    const int32_t *changed;
    const int32_t *seen; /* n x 2: the row of each end's state before the event */
    const int32_t *last; /* the row of each candidate's state in the end */
    float *logits;       /* n x stride, or their gradient; stride: m, rounded up to a multiple of TILE */
    float *d_asked, *d_rows, *d_states; /* backward: zeros, to be added to */
    double scale;                       /* backward: what the gradient is multiplied with */
} Scores;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t made(const Scores *t, int64_t e, int64_t c) { return 2 * e + 2 - t->changes + c; }

static float dot(const float *a, const float *b, int64_t width) {
    vector sum = {0};
    for (int64_t k = 0; k < width; k += 16) sum += *(const vector *)(a + k) * *(const vector *)(b + k);
    float total = 0;
    for (int k = 0; k < 16; k++) total += sum[k];
    return total;
}

/* Write values[k] of a candidate into its column of a tile of `width` lines. */
static void put(float *tile, int64_t place, const float *values, int64_t width) {
    for (int64_t k = 0; k < width; k++) tile[k * TILE + place] = values[k];
}

/* The queries in blocks, transposed: block, k, event. */
static float *pack(const Scores *t) {
    int64_t depth = t->fixed + t->width, blocks = (t->events + BLOCK - 1) / BLOCK;
    float *packed = calloc((size_t)(blocks * BLOCK * depth), sizeof(float));
    for (int64_t e = 0; e < t->events; e++) {
        float *into = packed + e / BLOCK * BLOCK * depth + e % BLOCK;
        for (int64_t k = 0; k < depth; k++) into[k * BLOCK] = t->asked[e * depth + k];
    }
    return packed;
}

static void forward_tile(const Scores *t, int64_t low, int64_t high, float *tile, const float *packed) {
    int64_t s = t->fixed, d = t->width, depth = s + d, n = t->events;
    memset(tile, 0, (size_t)(TILE * depth) * sizeof(float));
    for (int64_t j = low; j < high; j++) {
        put(tile, j - low, t->rows + j * s, s);
        put(tile + s * TILE, j - low, t->states + (2 * n + j) * d, d);
    }
    for (int64_t e = 0; e < n; e += BLOCK) {
        int64_t count = least(BLOCK, n - e);
        const float *block = packed + e * depth;
        vector first[BLOCK] = {{0}}, second[BLOCK] = {{0}};
        for (int64_t k = 0; k < depth; k++) {
            vector left = *(const vector *)(tile + k * TILE), right = *(const vector *)(tile + k * TILE + 16);
#pragma GCC unroll 8
            for (int b = 0; b < BLOCK; b++) {
                first[b] += block[k * BLOCK + b] * left;
                second[b] += block[k * BLOCK + b] * right;
            }
        }
#pragma GCC unroll 8
        for (int b = 0; b < BLOCK; b++) {
            if (b >= count) continue;
            float *out = t->logits + (e + b) * t->stride + low;
            *(vector *)out = first[b];
            *(vector *)(out + 16) = second[b];
        }
        for (int64_t b = 0; b < count; b++)
            for (int64_t c = 0; c < t->changes; c++) {
                int64_t j = t->changed[(e + b) * t->changes + c];
                if (j < low || j >= high) continue;
                const float *state = t->states + made(t, e + b, c) * d;
                put(tile + s * TILE, j - low, state, d);
                for (int64_t later = b + 1; later < count; later++) { /* later changes of j write over these */
                    const float *asked = t->asked + (e + later) * depth;
                    t->logits[(e + later) * t->stride + j] = dot(asked, t->rows + j * s, s) + dot(asked + s, state, d);
                }
            }
    }
}

/* A tile backward: columns of sixteen of the candidates' rows and states as `tile`, of their gradients as `sums`. */
static void backward_tile(const Scores *t, int64_t low, int64_t high, float *tile, float *sums, float *packed,
                          float *d_asked) {
    int64_t s = t->fixed, d = t->width, depth = s + d, n = t->events, count = high - low, groups = depth / 16;
    float scale = (float)t->scale;
#define AT(table, j, k) ((table) + ((k) / 16 * TILE + (j)) * 16)
    memset(sums, 0, (size_t)(TILE * depth) * sizeof(float));
    for (int64_t j = 0; j < count; j++) {
        for (int64_t k = 0; k < s; k += 16) memcpy(AT(tile, j, k), t->rows + (low + j) * s + k, 64);
        const float *state = t->states + t->last[low + j] * d;
        for (int64_t k = 0; k < d; k += 16) memcpy(AT(tile, j, s + k), state + k, 64);
    }
    for (int64_t e = (n - 1) / BLOCK * BLOCK; e >= 0; e -= BLOCK) {
        int64_t size = least(BLOCK, n - e);
        memset(packed, 0, (size_t)(BLOCK * count) * sizeof(float));
        for (int64_t b = 0; b < size; b++) {
            const float *given = t->logits + (e + b) * t->stride + low;
            for (int64_t j = 0; j < count; j++) packed[j * BLOCK + b] = given[j] * scale;
        }
        for (int64_t b = size - 1; b >= 0; b--)
            for (int64_t c = t->changes - 1; c >= 0; c--) {
                int64_t j = t->changed[(e + b) * t->changes + c] - low;
                if (j < 0 || j >= count) continue;
                int64_t row = made(t, e + b, c), before = t->seen[2 * (e + b) + 2 - t->changes + c];
                float *into = t->d_states + row * d;
                const float *state = t->states + row * d, *old = t->states + before * d;
                for (int64_t k = 0; k < d; k += 16) {
                    *(vector *)(into + k) += *(vector *)AT(sums, j, s + k);
                    *(vector *)AT(sums, j, s + k) = (vector){0};
                    memcpy(AT(tile, j, s + k), old + k, 64);
                }
                for (int64_t later = b + 1; later < size; later++) { /* the block's events that saw this state */
                    float g = packed[j * BLOCK + later];
                    if (g == 0) continue;
                    packed[j * BLOCK + later] = 0;
                    const float *asked = t->asked + (e + later) * depth, *fixed = t->rows + (low + j) * s;
                    float *out = d_asked + (e + later) * depth;
                    for (int64_t k = 0; k < s; k++) out[k] += g * fixed[k];
                    for (int64_t k = 0; k < d; k++) out[s + k] += g * state[k], into[k] += g * asked[s + k];
                    for (int64_t k = 0; k < s; k += 16)
                        *(vector *)AT(sums, j, k) += g * *(const vector *)(asked + k);
                }
            }
        for (int64_t group = 0; group < groups; group++) {
            vector asked[BLOCK] = {{0}}, out[BLOCK] = {{0}};
#pragma GCC unroll 8
            for (int b = 0; b < BLOCK; b++)
                if (b < size) asked[b] = *(const vector *)(t->asked + (e + b) * depth + group * 16);
            float *values = tile + group * TILE * 16, *into = sums + group * TILE * 16;
            for (int64_t j = 0; j < count; j++) {
                vector value = *(vector *)(values + j * 16), even = *(vector *)(into + j * 16), odd = {0};
#pragma GCC unroll 8
                for (int b = 0; b < BLOCK; b++) {
                    float g = packed[j * BLOCK + b];
                    out[b] += g * value;
                    if (b & 1)
                        odd += g * asked[b];
                    else
                        even += g * asked[b];
                }
                *(vector *)(into + j * 16) = even + odd;
            }
#pragma GCC unroll 8
            for (int b = 0; b < BLOCK; b++)
                if (b < size) *(vector *)(d_asked + (e + b) * depth + group * 16) += out[b];
        }
    }
    for (int64_t j = 0; j < count; j++) {
        for (int64_t k = 0; k < s; k += 16) memcpy(t->d_rows + (low + j) * s + k, AT(sums, j, k), 64);
        float *into = t->d_states + (2 * n + low + j) * d;
        for (int64_t k = 0; k < d; k += 16) *(vector *)(into + k) += *(vector *)AT(sums, j, s + k);
    }
#undef AT
}

void edge_logits(const Scores *t, int threads) {
    int64_t tiles = (t->candidates + TILE - 1) / TILE, depth = t->fixed + t->width;
    threads = (int)least(threads, tiles);
    float *packed = pack(t);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *tile = malloc((size_t)(TILE * depth) * sizeof(float));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < tiles; i++)
            forward_tile(t, i * TILE, least((i + 1) * TILE, t->candidates), tile, packed);
        free(tile);
    }
    free(packed);
}

void edge_logits_backward(const Scores *t, int threads) {
    int64_t tiles = (t->candidates + TILE - 1) / TILE, depth = t->fixed + t->width, size = t->events * depth;
    threads = (int)least(threads, tiles);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *tile = malloc((size_t)(2 * TILE * depth + TILE * BLOCK) * sizeof(float));
        float *own = threads > 1 ? calloc((size_t)size, sizeof(float)) : t->d_asked;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < tiles; i++)
            backward_tile(t, i * TILE, least((i + 1) * TILE, t->candidates), tile, tile + TILE * depth,
                          tile + 2 * TILE * depth, own);
        if (threads > 1) {
#pragma omp critical
            for (int64_t k = 0; k < size; k++) t->d_asked[k] += own[k];
            free(own);
        }
        free(tile);
    }
}

/* In place, for each of n rows of m logits: add -correction (by candidate; may be null) and values[r] at candidate
   places[r] (-1: nowhere), `recent` each; make them logarithms of probabilities or, where there is a target,
   the gradient of its cross-entropy. Returns the sum of the cross-entropies. */
double edge_softmax(int64_t n, int64_t m, int64_t stride, int64_t recent, const float *correction,
                    const float *values, const int32_t *places, const int32_t *target, float *logits) {
    double total = 0;
    float *scratch = malloc((size_t)stride * sizeof(float));
    for (int64_t e = 0; e < n; e++) {
        float *row = logits + e * stride, top = -INFINITY, sum = 0;
        if (correction)
            for (int64_t j = 0; j < m; j++) row[j] -= correction[j];
        for (int64_t r = e * recent; r < (e + 1) * recent; r++)
            if (places[r] >= 0) row[places[r]] += values[r];
        float wanted = target ? row[target[e]] : 0;
        for (int64_t j = m; j < stride; j++) row[j] = -INFINITY; /* whole vectors from here on */
        vector tops = (vector){0} - INFINITY, sums = {0};
        for (int64_t j = 0; j < stride; j += 16) tops = larger(tops, *(vector *)(row + j));
        for (int k = 0; k < 16; k++) top = tops[k] > top ? tops[k] : top;
        float *powers = target ? row : scratch;
        for (int64_t j = 0; j < stride; j += 16) {
            vector power = exp16(*(vector *)(row + j) - top);
            *(vector *)(powers + j) = power;
            sums += power;
        }
        for (int k = 0; k < 16; k++) sum += sums[k];
        float shift = top + logf(sum), scale = 1.0f / sum;
        total += (double)(shift - wanted);
        if (target) {
            for (int64_t j = 0; j < m; j++) row[j] *= scale;
            row[target[e]] -= 1.0f;
        } else
            for (int64_t j = 0; j < m; j++) row[j] -= shift;
    }
    free(scratch);
    return total;
}

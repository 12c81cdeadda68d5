/* Scores of m candidate destinations for each of n events, each candidate as it is just before the event; and the
   cross-entropy of the destination among them. Called through ctypes by scoring.py.

   A candidate is a fixed row (width s) and a state (width d), which events change: event e makes `changes` states,
   rows 2e + 2 - changes ... 2e + 1 of `states`; changed[e * changes + c] is the candidate that the c-th is of, -1 for
   none. The state of candidate j at the start is row 2n + j. Widths are multiples of 16.

   Events may come in groups, each with candidates of its own, chosen from the m: candidate i of group g is number
   chosen[starts[g] + i]; its state is row first[...] before the group's events and row last[...] after them, and
   place[g * m + j] is where j is among the group's, -1 for nowhere. Groups begin at multiples of BLOCK events. Scores
   of an event are against its group's candidates.

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
    int64_t groups;      /* 0: all events, all candidates; the following are null then */
    const int32_t *bounds, *starts, *chosen, *place, *first; /* events and candidates of groups end where others begin */
    float *logits;       /* n x stride, or their gradient; stride: m, rounded up to a multiple of TILE */
    float *d_asked, *d_rows, *d_states; /* backward: zeros, to be added to */
    double scale;                       /* backward: what the gradient is multiplied with */
} Scores;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
/* A group: events begin ... end - 1, candidates start ... start + count - 1 of those chosen. */
typedef struct {
    int64_t begin, end, start, count;
    const int32_t *place;
} Group;

static Group group_of(const Scores *t, int64_t g) {
    if (!t->groups) return (Group){0, t->events, 0, t->candidates, 0};
    return (Group){t->bounds[g], t->bounds[g + 1], t->starts[g], t->starts[g + 1] - t->starts[g],
                   t->place + g * t->candidates};
}

static inline int64_t number(const Scores *t, const Group *g, int64_t j) {
    return t->groups ? t->chosen[g->start + j] : j;
}
static inline int64_t first(const Scores *t, const Group *g, int64_t j) {
    return t->groups ? t->first[g->start + j] : 2 * t->events + j;
}
static inline int64_t inside(const Group *g, int64_t j) { return j >= 0 && g->place ? g->place[j] : j; }
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

static void forward_tile(const Scores *t, const Group *g, int64_t low, int64_t high, float *tile,
                         const float *packed) {
    int64_t s = t->fixed, d = t->width, depth = s + d;
    memset(tile, 0, (size_t)(TILE * depth) * sizeof(float));
    for (int64_t j = low; j < high; j++) {
        put(tile, j - low, t->rows + number(t, g, j) * s, s);
        put(tile + s * TILE, j - low, t->states + first(t, g, j) * d, d);
    }
    for (int64_t e = g->begin; e < g->end; e += BLOCK) {
        int64_t count = least(BLOCK, g->end - e);
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
                int64_t j = inside(g, t->changed[(e + b) * t->changes + c]);
                if (j < low || j >= high) continue;
                const float *state = t->states + made(t, e + b, c) * d;
                put(tile + s * TILE, j - low, state, d);
                for (int64_t later = b + 1; later < count; later++) { /* later changes of j write over these */
                    const float *asked = t->asked + (e + later) * depth;
                    t->logits[(e + later) * t->stride + j] =
                        dot(asked, t->rows + number(t, g, j) * s, s) + dot(asked + s, state, d);
                }
            }
    }
}

/* A tile backward: columns of sixteen of the candidates' rows and states as `tile`, of their gradients as `sums`. */
static void backward_tile(const Scores *t, const Group *g, int64_t low, int64_t high, float *tile, float *sums,
                          float *packed, float *d_asked) {
    int64_t s = t->fixed, d = t->width, depth = s + d, count = high - low, columns = depth / 16;
    float scale = (float)t->scale;
#define AT(table, j, k) ((table) + ((k) / 16 * TILE + (j)) * 16)
    memset(sums, 0, (size_t)(TILE * depth) * sizeof(float));
    for (int64_t j = 0; j < count; j++) {
        for (int64_t k = 0; k < s; k += 16) memcpy(AT(tile, j, k), t->rows + number(t, g, low + j) * s + k, 64);
        const float *state = t->states + t->last[g->start + low + j] * d;
        for (int64_t k = 0; k < d; k += 16) memcpy(AT(tile, j, s + k), state + k, 64);
    }
    for (int64_t e = g->begin + (g->end - g->begin - 1) / BLOCK * BLOCK; e >= g->begin; e -= BLOCK) {
        int64_t size = least(BLOCK, g->end - e);
        memset(packed, 0, (size_t)(BLOCK * count) * sizeof(float));
        for (int64_t b = 0; b < size; b++) {
            const float *given = t->logits + (e + b) * t->stride + low;
            for (int64_t j = 0; j < count; j++) packed[j * BLOCK + b] = given[j] * scale;
        }
        for (int64_t b = size - 1; b >= 0; b--)
            for (int64_t c = t->changes - 1; c >= 0; c--) {
                int64_t j = inside(g, t->changed[(e + b) * t->changes + c]) - low;
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
                    float given = packed[j * BLOCK + later];
                    if (given == 0) continue;
                    packed[j * BLOCK + later] = 0;
                    const float *asked = t->asked + (e + later) * depth;
                    const float *fixed = t->rows + number(t, g, low + j) * s;
                    float *out = d_asked + (e + later) * depth;
                    for (int64_t k = 0; k < s; k++) out[k] += given * fixed[k];
                    for (int64_t k = 0; k < d; k++) out[s + k] += given * state[k], into[k] += given * asked[s + k];
                    for (int64_t k = 0; k < s; k += 16)
                        *(vector *)AT(sums, j, k) += given * *(const vector *)(asked + k);
                }
            }
        for (int64_t column = 0; column < columns; column++) {
            vector asked[BLOCK] = {{0}}, out[BLOCK] = {{0}};
#pragma GCC unroll 8
            for (int b = 0; b < BLOCK; b++)
                if (b < size) asked[b] = *(const vector *)(t->asked + (e + b) * depth + column * 16);
            float *values = tile + column * TILE * 16, *into = sums + column * TILE * 16;
            for (int64_t j = 0; j < count; j++) {
                vector value = *(vector *)(values + j * 16), even = *(vector *)(into + j * 16), odd = {0};
#pragma GCC unroll 8
                for (int b = 0; b < BLOCK; b++) {
                    float given = packed[j * BLOCK + b];
                    out[b] += given * value;
                    if (b & 1)
                        odd += given * asked[b];
                    else
                        even += given * asked[b];
                }
                *(vector *)(into + j * 16) = even + odd;
            }
#pragma GCC unroll 8
            for (int b = 0; b < BLOCK; b++)
                if (b < size) *(vector *)(d_asked + (e + b) * depth + column * 16) += out[b];
        }
    }
    for (int64_t j = 0; j < count; j++) {
        float *fixed = t->d_rows + number(t, g, low + j) * s, *into = t->d_states + first(t, g, low + j) * d;
        for (int64_t k = 0; k < s; k += 16) *(vector *)(fixed + k) += *(vector *)AT(sums, j, k);
        for (int64_t k = 0; k < d; k += 16) *(vector *)(into + k) += *(vector *)AT(sums, j, s + k);
    }
#undef AT
}

/* The tiles of all groups, one after the other; `tiles` gets where each group's end. */
static int64_t count_tiles(const Scores *t, int64_t *tiles) {
    int64_t total = 0, groups = t->groups ? t->groups : 1;
    for (int64_t g = 0; g < groups; g++) tiles[g] = total += (group_of(t, g).count + TILE - 1) / TILE;
    return total;
}

/* Tile `i` of all: its group, and where it begins among the group's candidates. */
static Group find_tile(const Scores *t, const int64_t *tiles, int64_t i, int64_t *low) {
    int64_t g = 0;
    while (i >= tiles[g]) g++;
    *low = (i - (g ? tiles[g - 1] : 0)) * TILE;
    return group_of(t, g);
}

void edge_logits(const Scores *t, int threads) {
    int64_t depth = t->fixed + t->width, *tiles = malloc((size_t)(t->groups + 1) * sizeof *tiles);
    int64_t total = count_tiles(t, tiles), low;
    threads = (int)least(threads, total);
    float *packed = pack(t);
#pragma omp parallel num_threads(threads) private(low) if (threads > 1)
    {
        float *tile = malloc((size_t)(TILE * depth) * sizeof(float));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < total; i++) {
            Group group = find_tile(t, tiles, i, &low);
            forward_tile(t, &group, low, least(low + TILE, group.count), tile, packed);
        }
        free(tile);
    }
    free(packed);
    free(tiles);
}

/* With groups one thread: candidates of several groups share rows. */
void edge_logits_backward(const Scores *t, int threads) {
    int64_t depth = t->fixed + t->width, size = t->events * depth, low;
    int64_t *tiles = malloc((size_t)(t->groups + 1) * sizeof *tiles), total = count_tiles(t, tiles);
    threads = t->groups > 1 ? 1 : (int)least(threads, total);
#pragma omp parallel num_threads(threads) private(low) if (threads > 1)
    {
        float *tile = malloc((size_t)(2 * TILE * depth + TILE * BLOCK) * sizeof(float));
        float *own = threads > 1 ? calloc((size_t)size, sizeof(float)) : t->d_asked;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < total; i++) {
            Group group = find_tile(t, tiles, i, &low);
            backward_tile(t, &group, low, least(low + TILE, group.count), tile, tile + TILE * depth,
                          tile + 2 * TILE * depth, own);
        }
        if (threads > 1) {
#pragma omp critical
            for (int64_t k = 0; k < size; k++) t->d_asked[k] += own[k];
            free(own);
        }
        free(tile);
    }
    free(tiles);
}

/* The rows of the states of each group's candidates before its events and after them. place: n x 2, which of the m
   nodes (whose states at the start are rows 2n, 2n + 1, ...) an event's ends are; newest: m, scratch. */
void edge_group_rows(int64_t n, int64_t m, int64_t groups, const int32_t *bounds, const int32_t *starts,
                     const int32_t *chosen, const int32_t *place, int32_t *newest, int32_t *before, int32_t *after) {
    for (int64_t i = 0; i < m; i++) newest[i] = (int32_t)(2 * n + i);
    for (int64_t g = 0; g < groups; g++) {
        for (int64_t i = starts[g]; i < starts[g + 1]; i++) before[i] = newest[chosen[i]];
        for (int64_t row = 2 * (int64_t)bounds[g]; row < 2 * (int64_t)bounds[g + 1]; row++)
            newest[place[row]] = (int32_t)row;
        for (int64_t i = starts[g]; i < starts[g + 1]; i++) after[i] = newest[chosen[i]];
    }
}

/* In place, for each event's logits: add -correction (by chosen candidate; may be null) and values[r] at candidate
   places[r] (-1: nowhere), `recent` each; make them logarithms of probabilities or, where there is a target, the
   gradient of its cross-entropy, of which d_values[r] gets what is at places[r]. Returns the sum of the
   cross-entropies. */
double edge_softmax(const Scores *t, int64_t recent, const float *correction, const float *values,
                    const int32_t *places, const int32_t *target, float *d_values) {
    double total = 0;
    float *scratch = malloc((size_t)t->stride * sizeof(float));
    int64_t groups = t->groups ? t->groups : 1;
    for (int64_t g = 0; g < groups; g++) {
        Group group = group_of(t, g);
        int64_t m = group.count, stride = (m + TILE - 1) / TILE * TILE;
        const float *shifts = correction ? correction + group.start : 0;
        for (int64_t e = group.begin; e < group.end; e++) {
            float *row = t->logits + e * t->stride, top = -INFINITY, sum = 0;
            int64_t wanted = target ? inside(&group, target[e]) : -1;
            if (shifts)
                for (int64_t j = 0; j < m; j++) row[j] -= shifts[j];
            for (int64_t r = e * recent; r < (e + 1) * recent; r++) {
                int64_t j = inside(&group, places[r]);
                if (j >= 0) row[j] += values[r];
            }
            float found = target ? row[wanted] : 0;
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
            total += (double)(shift - found);
            if (!target) {
                for (int64_t j = 0; j < m; j++) row[j] -= shift;
                continue;
            }
            for (int64_t j = 0; j < stride; j += 16) *(vector *)(row + j) *= scale;
            row[wanted] -= 1.0f;
            for (int64_t r = e * recent; r < (e + 1) * recent; r++) {
                int64_t j = inside(&group, places[r]);
                d_values[r] = j >= 0 ? row[j] : 0.0f;
            }
        }
    }
    free(scratch);
    return total;
}

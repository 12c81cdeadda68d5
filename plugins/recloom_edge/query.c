/* What an event's source asks with: features of spans of time, its state at the time of the event beside its last
   destination, dropped out; and scores of the ages of its recent destinations. Called through ctypes by query.py. */

#include "vector.h"

#define FEATURES 7

/* Features of n spans in ticks, -1 for none; see query.time_features. */
void edge_time_features(int64_t n, int64_t ticks, const int64_t *spans, float *out) {
    static const float scales[5] = {60, 3600, 86400, 604800, 2592000};
    for (int64_t i = 0; i < n; i++, out += FEATURES) {
        if (spans[i] < 0) {
            memset(out, 0, FEATURES * sizeof(float));
            continue;
        }
        double seconds = (double)spans[i] / (double)ticks;
        out[0] = log1pf((float)seconds) / 10;
        for (int k = 0; k < 5; k++) out[1 + k] = 1.0f / (1.0f + (float)seconds / scales[k]);
        out[6] = 1;
    }
}

/* Random bits from a seed and a place: splitmix64 (Steele et al. 2014). */
static inline uint64_t bits(uint64_t seed, uint64_t place) {
    uint64_t z = seed + place * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* keep[k] of `width`: 0 for values of event e that are dropped, else what they are multiplied with. */
static void kept(int64_t e, int64_t width, uint64_t seed, int64_t dropped, float *keep) {
    float scale = 65536.0f / (float)(65536 - dropped);
    int64_t words = (width + 3) / 4;
    for (int64_t w = 0; w < words; w++) {
        uint64_t word = dropped ? bits(seed, (uint64_t)(e * words + w)) : 0;
        for (int64_t k = 0; k < 4; k++)
            keep[4 * w + k] = dropped && (int64_t)(word >> (16 * k) & 0xFFFF) < dropped ? 0.0f : scale;
    }
}

typedef struct {
    int64_t events, width, fixed, dropped; /* dropped: of 65,536 */
    uint64_t seed;
    const int32_t *seen;  /* n x 2: the row of each end's state before the event */
    const float *states, *before, *gap; /* rows x d; n x s: of the last destination; n x 7 */
    const float *project;               /* d x 7 */
    float *out;                         /* n x (d + s + 7), or its gradient */
    float *d_states, *d_before, *d_project; /* backward; the first and the last to be added to */
} Query;

/* moved[k] = 1 + project[k] . gap, with `turned` the transposed project. */
static void project(int64_t d, const float *restrict turned, const float *gap, float *restrict moved) {
    for (int64_t k = 0; k < d; k++) moved[k] = 1;
    for (int i = 0; i < FEATURES; i++)
        for (int64_t k = 0; k < d; k++) moved[k] += turned[i * d + k] * gap[i];
}

/* Scratch: what is kept, what states are multiplied with, and project transposed; `more` floats behind them. */
static float *scratch(const Query *t, int64_t more) {
    int64_t d = t->width, size = 4 + 2 * d + t->fixed + FEATURES;
    float *floats = malloc((size_t)(size + FEATURES * d + more) * sizeof(float)), *turned = floats + size;
    for (int64_t k = 0; k < d; k++)
        for (int i = 0; i < FEATURES; i++) turned[i * d + k] = t->project[k * FEATURES + i];
    return floats;
}

/* out = dropout([state (1 + project gap), before, gap]) */
void edge_query(const Query *t) {
    int64_t d = t->width, s = t->fixed, size = d + s + FEATURES;
    float *restrict keep = scratch(t, 0), *restrict moved = keep + size + 4, *turned = moved + d;
    for (int64_t e = 0; e < t->events; e++) {
        const float *state = t->states + t->seen[2 * e] * d, *gap = t->gap + e * FEATURES;
        float *restrict out = t->out + e * size;
        kept(e, size, t->seed, t->dropped, keep);
        project(d, turned, gap, moved);
        for (int64_t k = 0; k < d; k++) out[k] = state[k] * moved[k] * keep[k];
        for (int64_t k = 0; k < s; k++) out[d + k] = t->before[e * s + k] * keep[d + k];
        for (int64_t k = 0; k < FEATURES; k++) out[d + s + k] = gap[k] * keep[d + s + k];
    }
    free(keep);
}

void edge_query_backward(const Query *t) {
    int64_t d = t->width, s = t->fixed, size = d + s + FEATURES;
    float *restrict keep = scratch(t, FEATURES * d), *restrict moved = keep + size + 4, *turned = moved + d;
    float *restrict sums = turned + FEATURES * d; /* the gradient of project, transposed */
    memset(sums, 0, (size_t)(FEATURES * d) * sizeof(float));
    for (int64_t e = 0; e < t->events; e++) {
        const float *state = t->states + t->seen[2 * e] * d, *gap = t->gap + e * FEATURES, *given = t->out + e * size;
        float *into = t->d_states + t->seen[2 * e] * d;
        kept(e, size, t->seed, t->dropped, keep);
        project(d, turned, gap, moved);
        for (int64_t k = 0; k < d; k++) into[k] += given[k] * keep[k] * moved[k];
        for (int64_t k = 0; k < s; k++) t->d_before[e * s + k] = given[d + k] * keep[d + k];
        for (int64_t k = 0; k < d; k++) moved[k] = given[k] * keep[k] * state[k];
        for (int i = 0; i < FEATURES; i++)
            for (int64_t k = 0; k < d; k++) sums[i * d + k] += moved[k] * gap[i];
    }
    for (int64_t k = 0; k < d; k++)
        for (int i = 0; i < FEATURES; i++) t->d_project[k * FEATURES + i] = sums[i * d + k];
    free(keep);
}

#define HIDDEN 32

typedef struct {
    int64_t events, recent;
    const int32_t *places;              /* n x K: -1: no score is wanted */
    const float *ages;                  /* n x K x 7 */
    const float *first, *bias;          /* 14 x 32: input-major; 32 */
    const float *second, *shift;        /* K x 32; K */
    float *out;                         /* n x K, or its gradient */
    float *d_first, *d_bias, *d_second, *d_shift; /* backward: zeros, to be added to */
} Ages;

static void layer(const Ages *t, const float *base, const float *age, float *hidden) {
    memcpy(hidden, base, HIDDEN * sizeof(float));
    for (int i = 0; i < FEATURES; i++)
        for (int k = 0; k < HIDDEN; k++) hidden[k] += age[i] * t->first[i * HIDDEN + k];
}

/* out[e][r] = second[r] . relu(first [age r, age 0] + bias) + shift[r], where places[e][r] >= 0; 0 elsewhere. */
static void ages(const Ages *t, int backward) {
    int64_t width = t->recent;
    for (int64_t e = 0; e < t->events; e++) {
        const float *newest = t->ages + e * width * FEATURES;
        float base[HIDDEN], hidden[HIDDEN], newest_sum[HIDDEN] = {0};
        int any = 0;
        for (int64_t r = 0; r < width; r++) {
            const float *age = newest + r * FEATURES, *line = t->second + r * HIDDEN;
            float *out = t->out + e * width + r;
            if (t->places[e * width + r] < 0) {
                if (!backward) *out = 0;
                continue;
            }
            if (!any) {
                memcpy(base, t->bias, sizeof base);
                for (int i = 0; i < FEATURES; i++)
                    for (int k = 0; k < HIDDEN; k++) base[k] += newest[i] * t->first[(FEATURES + i) * HIDDEN + k];
                any = 1;
            }
            layer(t, base, age, hidden);
            if (!backward) {
                vector sum = {0};
                for (int k = 0; k < HIDDEN; k++) hidden[k] = hidden[k] > 0 ? hidden[k] * line[k] : 0;
                for (int k = 0; k < HIDDEN; k += 16) sum += *(vector *)(hidden + k);
                *out = t->shift[r];
                for (int k = 0; k < 16; k++) *out += sum[k];
                continue;
            }
            float given = *out, inner[HIDDEN];
            t->d_shift[r] += given;
            for (int k = 0; k < HIDDEN; k++) {
                t->d_second[r * HIDDEN + k] += hidden[k] > 0 ? given * hidden[k] : 0;
                inner[k] = hidden[k] > 0 ? given * line[k] : 0;
                newest_sum[k] += inner[k];
            }
            for (int i = 0; i < FEATURES; i++)
                for (int k = 0; k < HIDDEN; k++) t->d_first[i * HIDDEN + k] += age[i] * inner[k];
        }
        if (!any || !backward) continue;
        for (int k = 0; k < HIDDEN; k++) t->d_bias[k] += newest_sum[k];
        for (int i = 0; i < FEATURES; i++)
            for (int k = 0; k < HIDDEN; k++) t->d_first[(FEATURES + i) * HIDDEN + k] += newest[i] * newest_sum[k];
    }
}

void edge_ages(const Ages *t) { ages(t, 0); }
void edge_ages_backward(const Ages *t) { ages(t, 1); }

/* The recurrence over the levels of a window, forward and backward: every event updates the states of both its ends
   from both their states. Levels are done one after the other, the events of a level in blocks.

   States are rows of width d, a multiple of 16. Row 2e + s is what event e makes of its end s; `read` has the row that
   is read of each end. Cells:
     gates 1, RNN: h' = tanh(x + A h + B g), where h is the end's own state, g the other's and x (d) comes from outside;
     with `norms`, h' is divided by its length, which is kept there.
     gates 3, GRU: r, z = sigmoid(x + A h + B g), n = tanh(x_n + B_n g + r (A_n h + c)), h' = (1 - z) n + z h.
   Weights of end s: forward, self and other input-major (d x gates d each); backward, output-major (gates d x d). */

#include "vector.h"

#define MOST 8 /* events of a block */

typedef struct {
    int64_t width, gates, events, levels;
    const int32_t *order, *bounds, *read;
    float *states;                       /* (2n + nodes) x d */
    const float *inputs;                 /* 2n x gates d */
    const float *self[2], *other[2];     /* by end, see above */
    const float *bias[2];                /* c, by end; GRU only */
    float *saved;                        /* 2n x 4d: r, z, n, A_n h + c; GRU only */
    float *norms;                        /* 2n: lengths before they are brought to 1; RNN only, or NULL */
    float *gradient;                     /* of states, (2n + nodes) x d; backward only */
    float *pre, *hidden;                 /* backward: gradients of x (2n x gates d), and of A_n h + c (2n x d) */
    float *scratch;                      /* backward: 2n x 2d */
} Task;

/* sums[b] (width) += rows[b] (depth) times weights (depth x width), for `count` rows; width a multiple of 16. */
#define PRODUCT(COUNT)                                                                                             \
    for (int64_t j = 0; j < width; j += 16) {                                                                      \
        vector total[COUNT];                                                                                       \
        for (int b = 0; b < COUNT; b++) total[b] = *(const vector *)(sums[b] + j);                                 \
        const float *w = weights + j;                                                                              \
        for (int64_t k = 0; k < depth; k++, w += width) {                                                          \
            vector line = *(const vector *)w;                                                                      \
            for (int b = 0; b < COUNT; b++) total[b] += rows[b][k] * line;                                         \
        }                                                                                                          \
        for (int b = 0; b < COUNT; b++) *(vector *)(sums[b] + j) = total[b];                                       \
    }

static void product(int count, const float *const *rows, int64_t depth, const float *weights, int64_t width,
                    float *const *sums) {
    int done = 0;
    if (count == 8) {
        PRODUCT(8)
        return;
    }
    if (count >= 4) {
        PRODUCT(4)
        done = 4;
    }
    for (; done < count; done++) {
        const float *const *left = rows + done;
        float *const *into = sums + done;
        {
            const float *const *rows = left;
            float *const *sums = into;
            PRODUCT(1)
        }
    }
}

static void forward_block(const Task *t, int side, int count, const int32_t *events, float *buffer) {
    int64_t d = t->width, g = t->gates * d;
    const float *own[MOST], *others[MOST];
    float *input[MOST], *hidden[MOST];
    for (int b = 0; b < count; b++) {
        int64_t row = 2 * (int64_t)events[b] + side;
        own[b] = t->states + t->read[row] * d;
        others[b] = t->states + t->read[row ^ 1] * d;
        input[b] = buffer + b * 2 * g;
        hidden[b] = t->gates == 1 ? input[b] : input[b] + g;
        memcpy(input[b], t->inputs + row * g, (size_t)g * sizeof(float));
        if (t->gates == 3) {
            memset(hidden[b], 0, (size_t)(2 * d) * sizeof(float));
            memcpy(hidden[b] + 2 * d, t->bias[side], (size_t)d * sizeof(float));
        }
    }
    product(count, own, d, t->self[side], g, hidden);
    product(count, others, d, t->other[side], g, input);
    for (int b = 0; b < count; b++) {
        int64_t row = 2 * (int64_t)events[b] + side;
        float *out = t->states + row * d, *x = input[b], *h = hidden[b];
        if (t->gates == 1) {
            vector squares = {0};
            for (int64_t j = 0; j < d; j += 16) {
                vector y = tanh16(*(const vector *)(x + j));
                squares += y * y;
                *(vector *)(out + j) = y;
            }
            if (t->norms) {
                t->norms[row] = fmaxf(sqrtf(sum16(squares)), 1e-12f);
                for (int64_t j = 0; j < d; j += 16) *(vector *)(out + j) /= t->norms[row];
            }
            continue;
        }
        float *saved = t->saved + row * 4 * d;
#define AT(array, gate) (*(vector *)((array) + (gate) * d + j))
        for (int64_t j = 0; j < d; j += 16) {
            vector r = sigmoid16(AT(x, 0) + AT(h, 0)), z = sigmoid16(AT(x, 1) + AT(h, 1));
            vector n = tanh16(AT(x, 2) + r * AT(h, 2));
            AT(out, 0) = (1.0f - z) * n + z * *(const vector *)(own[b] + j);
            AT(saved, 0) = r, AT(saved, 1) = z, AT(saved, 2) = n, AT(saved, 3) = AT(h, 2);
        }
#undef AT
    }
}

static void backward_block(const Task *t, int side, int count, const int32_t *events, float *buffer) {
    int64_t d = t->width, g = t->gates * d;
    const float *pre[MOST], *hidden[MOST];
    float *own[MOST], *others[MOST];
    for (int b = 0; b < count; b++) {
        int64_t row = 2 * (int64_t)events[b] + side;
        const float *given = t->gradient + row * d, *out = t->states + row * d;
        float *x = t->pre + row * g, *h = buffer + b * 3 * d;
        own[b] = t->scratch + row * 2 * d;
        others[b] = own[b] + d;
        memset(own[b], 0, (size_t)(2 * d) * sizeof(float));
        pre[b] = x;
        hidden[b] = t->gates == 1 ? x : h;
        if (t->gates == 1) {
            float norm = t->norms ? t->norms[row] : 1.0f, along = 0;
            if (t->norms)
                for (int64_t j = 0; j < d; j++) along += given[j] * out[j];
            for (int64_t j = 0; j < d; j++)
                x[j] = (given[j] - along * out[j]) / norm * (1.0f - out[j] * out[j] * norm * norm);
            continue;
        }
        const float *saved = t->saved + row * 4 * d, *state = t->states + t->read[row] * d;
        float *last = t->hidden + row * d;
        for (int64_t j = 0; j < d; j++) {
            float r = saved[j], z = saved[d + j], n = saved[2 * d + j], inner = saved[3 * d + j];
            float dn = given[j] * (1.0f - z) * (1.0f - n * n), dz = given[j] * (state[j] - n) * z * (1.0f - z);
            float dr = dn * inner * r * (1.0f - r);
            x[j] = h[j] = dr;
            x[d + j] = h[d + j] = dz;
            x[2 * d + j] = dn;
            h[2 * d + j] = last[j] = dn * r;
            own[b][j] = given[j] * z;
        }
    }
    product(count, hidden, g, t->self[side], d, own);
    product(count, pre, g, t->other[side], d, others);
}

static void run_level(const Task *t, int64_t start, int64_t stop, int threads, int backward) {
    int64_t blocks = (stop - start + MOST - 1) / MOST, size = MOST * 6 * t->width;
    threads = blocks >= 16 ? threads : 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *buffer = malloc((size_t)size * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t i = 0; i < 2 * blocks; i++) {
            int64_t from = start + i / 2 * MOST, count = stop - from < MOST ? stop - from : MOST;
            if (backward)
                backward_block(t, (int)(i & 1), (int)count, t->order + from, buffer);
            else
                forward_block(t, (int)(i & 1), (int)count, t->order + from, buffer);
        }
        free(buffer);
    }
}

void edge_forward(const Task *t, int threads) {
    for (int64_t l = 0; l < t->levels; l++) run_level(t, t->bounds[l], t->bounds[l + 1], threads, 0);
}

void edge_backward(const Task *t, int threads) {
    int64_t d = t->width;
    for (int64_t l = t->levels - 1; l >= 0; l--) {
        run_level(t, t->bounds[l], t->bounds[l + 1], threads, 1);
        for (int64_t i = t->bounds[l]; i < t->bounds[l + 1]; i++)
            for (int64_t row = 2 * (int64_t)t->order[i]; row < 2 * (int64_t)t->order[i] + 2; row++) {
                const float *own = t->scratch + row * 2 * d, *other = own + d;
                float *a = t->gradient + t->read[row] * d, *b = t->gradient + t->read[row ^ 1] * d;
                for (int64_t j = 0; j < d; j++) a[j] += own[j];
                for (int64_t j = 0; j < d; j++) b[j] += other[j];
            }
    }
}

/* Σ |what an event made of its end - what is read of that end|² over the ends with free[row], row of 2n. Backward:
   adds scale (made - read) to the gradient of what was made, and subtracts it from that of what is read, if wanted. */
double edge_matching(int64_t n, int64_t d, const uint8_t *free, const int32_t *read, const float *states, double scale,
                     int made, int wanted, float *gradient) {
    double total = 0;
    for (int64_t row = 0; row < 2 * n; row++) {
        if (!free[row]) continue;
        vector sum = {0};
        for (int64_t j = 0; j < d; j += 16) {
#define AT(array, row) (*(vector *)((array) + (int64_t)(row) * d + j))
            vector gap = AT(states, row) - AT(states, read[row]);
            sum += gap * gap;
            if (gradient && made) AT(gradient, row) += (float)scale * gap;
            if (gradient && wanted) AT(gradient, read[row]) -= (float)scale * gap;
#undef AT
        }
        total += (double)sum16(sum);
    }
    return total;
}

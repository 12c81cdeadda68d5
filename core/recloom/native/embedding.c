/* Embedding kernels: pooled lookup, gradient of value weights, and row updates (SGD, Adagrad by row or by element).
 *
 * The weight is R x D float32 and holds the rows of several tables; ids are int64, key-major, each within its
 * feature's table. Row updates give the same bits for any number of threads: each row belongs to one thread, which
 * adds up the row's gradients in the batch's order.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

enum { SUM = 0, MEAN = 1, WEIGHTED = 2 };
enum { SGD = 0, ROWWISE_ADAGRAD = 1, ADAGRAD = 2 };
enum { BAD_OFFSETS = -2 }; /* result of recloom_pool */
enum { AHEAD = 16 }; /* how many values ahead rows are prefetched */

typedef struct { /* the same fields, in the same order, as _Bags in rowkernels.py */
    const int64_t *ids;     /* N */
    const int64_t *offsets; /* F*B + 1, or NULL: one id a bag */
    const float *weights;   /* N, or NULL */
    float *bags;            /* B x F x D: the output of a lookup, the gradients of an update */
    int64_t row_stride, feature_stride; /* of bags, in floats; the last dimension is contiguous */
    const int64_t *base, *rows, *mode, *table; /* F each */
    int64_t features, batch, values; /* F, B, N */
} Bags;

#define INLINE static inline __attribute__((always_inline))
typedef float vec __attribute__((vector_size(32), aligned(4)));
enum { LANES = 8 };

INLINE void prefetch(const float *row, int64_t dim, int writes) {
    for (int64_t i = 0; i < dim; i += 16) {
        if (writes) __builtin_prefetch(row + i, 1);
        else __builtin_prefetch(row + i, 0);
    }
}

/* y += a x */
INLINE void axpy(float *y, const float *x, float a, int64_t dim) {
    if (dim % LANES == 0) {
        for (int64_t i = 0; i < dim; i += LANES) *(vec *)(y + i) += a * *(const vec *)(x + i);
    } else {
        for (int64_t i = 0; i < dim; i++) y[i] += a * x[i];
    }
}

INLINE float dot(const float *x, const float *y, int64_t dim) {
    float sum = 0;
    int64_t i = 0;
    if (dim >= LANES) {
        vec acc = {0};
        for (; i + LANES <= dim; i += LANES) acc += *(const vec *)(x + i) * *(const vec *)(y + i);
        for (int j = 0; j < LANES; j++) sum += acc[j];
    }
    for (; i < dim; i++) sum += x[i] * y[i];
    return sum;
}

/* The first bag of thread t of n: bags are split evenly by values. */
static int64_t first_bag(const Bags *b, int t, int n) {
    int64_t count = b->features * b->batch;
    if (!b->offsets) return count * t / n;
    if (t == 0 || t == n) return t ? count : 0;
    int64_t target = b->offsets[count] * t / n, low = 0, high = count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (b->offsets[middle] < target) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* ---- lookup ---- */

/* Sum of a bag's rows into out, the accumulators in registers where dim is a constant up to 128. */
INLINE int64_t sum_bag(const Bags *b, const float *table, int64_t rows, int weighted, int64_t start, int64_t end,
                       int64_t limit, float *restrict out, int64_t dim, int constant) {
    if (constant) {
        vec acc[16];
        for (int64_t v = 0; v < dim / LANES; v++) acc[v] = (vec){0};
        for (int64_t n = start; n < end; n++) {
            int64_t id = b->ids[n];
            if ((uint64_t)id >= (uint64_t)rows) return n;
            if (n + AHEAD < limit) prefetch(table + b->ids[n + AHEAD] * dim, dim, 0);
            const float *row = table + id * dim;
            if (weighted) {
                float w = b->weights[n];
                for (int64_t v = 0; v < dim / LANES; v++) acc[v] += w * *(const vec *)(row + v * LANES);
            } else {
                for (int64_t v = 0; v < dim / LANES; v++) acc[v] += *(const vec *)(row + v * LANES);
            }
        }
        for (int64_t v = 0; v < dim / LANES; v++) *(vec *)(out + v * LANES) = acc[v];
        return -1;
    }
    for (int64_t i = 0; i < dim; i++) out[i] = 0;
    for (int64_t n = start; n < end; n++) {
        int64_t id = b->ids[n];
        if ((uint64_t)id >= (uint64_t)rows) return n;
        if (n + AHEAD < limit) prefetch(table + b->ids[n + AHEAD] * dim, dim, 0);
        axpy(out, table + id * dim, weighted ? b->weights[n] : 1.0f, dim);
    }
    return -1;
}

/* Bags first..last-1 (index f*B + sample); returns the first position with a bad id, BAD_OFFSETS, or -1. */
INLINE int64_t pool_range(const Bags *b, const float *weight, int64_t first, int64_t last, int64_t dim, int constant) {
    for (int64_t k = first; k < last;) {
        int64_t f = k / b->batch, stop = (f + 1) * b->batch < last ? (f + 1) * b->batch : last;
        const float *table = weight + b->base[f] * dim;
        int64_t rows = b->rows[f], mode = b->mode[f], limit = b->offsets ? b->offsets[stop] : stop;
        if (limit > b->values) return BAD_OFFSETS;
        float *out = b->bags + (k - f * b->batch) * b->row_stride + f * b->feature_stride;
        for (; k < stop; k++, out += b->row_stride) {
            int64_t start = b->offsets ? b->offsets[k] : k, end = b->offsets ? b->offsets[k + 1] : k + 1;
            if (start < 0 || start > end || end > limit) return BAD_OFFSETS;
            int64_t bad = mode == WEIGHTED ? sum_bag(b, table, rows, 1, start, end, limit, out, dim, constant)
                                           : sum_bag(b, table, rows, 0, start, end, limit, out, dim, constant);
            if (bad >= 0) return bad;
            if (mode == MEAN && end - start > 1) {
                float share = 1.0f / (float)(end - start);
                for (int64_t i = 0; i < dim; i++) out[i] *= share;
            }
        }
    }
    return -1;
}

/* ---- gradient of the value weights ---- */

INLINE void weight_gradient_range(const Bags *b, const float *weight, float *out, int64_t first, int64_t last,
                                  int64_t dim) {
    for (int64_t k = first; k < last; k++) {
        int64_t f = k / b->batch;
        const float *table = weight + b->base[f] * dim;
        const float *gradient = b->bags + (k - f * b->batch) * b->row_stride + f * b->feature_stride;
        int64_t start = b->offsets ? b->offsets[k] : k, end = b->offsets ? b->offsets[k + 1] : k + 1;
        for (int64_t n = start; n < end; n++)
            out[n] = b->mode[f] == WEIGHTED ? dot(gradient, table + b->ids[n] * dim, dim) : 0.0f;
    }
}

/* ---- row updates ---- */

typedef struct {
    const Bags *bags; /* one entry for each backward pass since the last step */
    int64_t count;
    float *weight, *state;
    float lr, eps;
    int rule;
    const int32_t *owner; /* the thread of each table, or NULL: rows are dealt out by hash */
    int64_t tables;
} Update;

INLINE uint64_t hash(int64_t row) { return (uint64_t)row * 0x9E3779B97F4A7C15ull; }

INLINE int owns(const Update *u, int64_t row, int thread, int threads) {
    return u->owner || threads == 1 || (int)((hash(row >> 3) >> 40) % (uint64_t)threads) == thread;
}

INLINE float coefficient(const Bags *b, int64_t mode, int64_t n, int64_t length) {
    return mode == WEIGHTED ? b->weights[n] : mode == MEAN ? 1.0f / (float)length : 1.0f;
}

/* w[row] -= lr * gradient, value by value */
INLINE void sgd(const Update *u, int thread, int threads, int64_t dim) {
    for (int64_t s = 0; s < u->count; s++) {
        const Bags *b = u->bags + s;
        for (int64_t f = 0; f < b->features; f++) {
            if (u->owner && u->owner[b->table[f]] != thread) continue;
            float *table = u->weight + b->base[f] * dim;
            int64_t first = f * b->batch, stop = first + b->batch, mode = b->mode[f];
            int64_t limit = b->offsets ? b->offsets[stop] : stop;
            for (int64_t k = first; k < stop; k++) {
                const float *gradient = b->bags + (k - first) * b->row_stride + f * b->feature_stride;
                int64_t start = b->offsets ? b->offsets[k] : k, end = b->offsets ? b->offsets[k + 1] : k + 1;
                for (int64_t n = start; n < end; n++) {
                    int64_t row = b->ids[n];
                    if (!owns(u, row, thread, threads)) continue;
                    if (n + AHEAD < limit) prefetch(table + b->ids[n + AHEAD] * dim, dim, 1);
                    axpy(table + row * dim, gradient, -u->lr * coefficient(b, mode, n, end - start), dim);
                }
            }
        }
    }
}

/* The gradients of one table's touched rows, sorted by row: group i is row[i], its gradients, in the batch's order,
 * are links[start[i]] .. links[start[i + 1] - 1]. A value's slot is its row in a table that is small for the batch,
 * else the place in the order of first appearance, found by a hash table. */
typedef struct {
    const float *gradient;
    float coefficient;
} Link;
typedef struct {
    int64_t *row;
    int32_t *start, *slot_of_value, *cursor, *map;
    Link *links;
    int64_t groups, slots, mask; /* mask < 0: the slots are rows */
} Groups;

static int64_t values_of_table(const Update *u, int64_t table) {
    int64_t count = 0;
    for (int64_t s = 0; s < u->count; s++) {
        const Bags *b = u->bags + s;
        for (int64_t f = 0; f < b->features; f++)
            if (b->table[f] == table)
                count += b->offsets ? b->offsets[(f + 1) * b->batch] - b->offsets[f * b->batch] : b->batch;
    }
    return count;
}

static int64_t rows_of_table(const Update *u, int64_t table) {
    for (int64_t s = 0; s < u->count; s++)
        for (int64_t f = 0; f < u->bags[s].features; f++)
            if (u->bags[s].table[f] == table) return u->bags[s].rows[f];
    return 0;
}

INLINE int small_for(int64_t rows, int64_t values) { return rows <= 8 * values; }

INLINE int32_t *place_of(const Groups *g, int64_t row) { return g->map + ((hash(row) >> 24) & (uint64_t)g->mask); }

INLINE int32_t slot_of(Groups *g, int64_t row) {
    if (g->mask < 0) return (int32_t)row;
    for (int32_t *place = place_of(g, row);; place = place == g->map + g->mask ? g->map : place + 1) {
        if (*place < 0) {
            *place = (int32_t)g->slots++;
            g->row[*place] = row;
            g->cursor[*place] = 0;
        }
        if (g->row[*place] == row) return *place;
    }
}

/* One pass over the table's values: the first one counts the values of each slot, the second one places their links. */
INLINE void group_pass(const Update *u, Groups *g, int64_t table, int thread, int threads, int second) {
    int64_t value = 0;
    for (int64_t s = 0; s < u->count; s++) {
        const Bags *b = u->bags + s;
        for (int64_t f = 0; f < b->features; f++) {
            if (b->table[f] != table) continue;
            int64_t first = f * b->batch, stop = first + b->batch, mode = b->mode[f];
            int64_t limit = b->offsets ? b->offsets[stop] : stop;
            for (int64_t k = first; k < stop; k++) {
                const float *gradient = b->bags + (k - first) * b->row_stride + f * b->feature_stride;
                int64_t start = b->offsets ? b->offsets[k] : k, end = b->offsets ? b->offsets[k + 1] : k + 1;
                for (int64_t n = start; n < end; n++) {
                    if (!owns(u, b->ids[n], thread, threads)) continue;
                    if (second) {
                        float scale = coefficient(b, mode, n, end - start);
                        g->links[g->cursor[g->slot_of_value[value++]]++] = (Link){gradient, scale};
                        continue;
                    }
                    if (g->mask >= 0 && n + AHEAD < limit) __builtin_prefetch(place_of(g, b->ids[n + AHEAD]), 1);
                    g->cursor[g->slot_of_value[value++] = slot_of(g, b->ids[n])]++;
                }
            }
        }
    }
}

/* Sort the gradients of `count` values by row. */
INLINE void group(const Update *u, Groups *g, int64_t table, int64_t count, int thread, int threads) {
    int64_t rows = rows_of_table(u, table), size = 2;
    int small = small_for(rows, count);
    while (size < 2 * count) size *= 2;
    g->mask = small ? -1 : size - 1;
    g->slots = small ? rows : 0;
    if (small) memset(g->cursor, 0, (size_t)rows * sizeof(int32_t));
    else memset(g->map, -1, (size_t)size * sizeof(int32_t));
    group_pass(u, g, table, thread, threads, 0);
    int32_t position = 0;
    g->groups = 0;
    for (int64_t slot = 0; slot < g->slots; slot++) {
        int32_t values = g->cursor[slot];
        g->cursor[slot] = position;
        if (!values) continue;
        if (small) g->row[g->groups] = slot;
        g->start[g->groups++] = position;
        position += values;
    }
    g->start[g->groups] = position;
    group_pass(u, g, table, thread, threads, 1);
}

INLINE void prefetch_row(const Update *u, int64_t row, int64_t dim) {
    prefetch(u->weight + row * dim, dim, 1);
    if (u->rule == ADAGRAD) prefetch(u->state + row * dim, dim, 1);
    else __builtin_prefetch(u->state + row, 1);
}

/* by row: s += mean(g^2), w -= lr g / (sqrt(s) + eps); by element: the same with a state for each element */
INLINE void adagrad_row(const Update *u, int64_t row, const float *sum, int64_t dim) {
    float *w = u->weight + row * dim;
    if (u->rule == ROWWISE_ADAGRAD) {
        float s = u->state[row] += dot(sum, sum, dim) / (float)dim;
        axpy(w, sum, -u->lr / (sqrtf(s) + u->eps), dim);
        return;
    }
    float *s = u->state + row * dim;
    for (int64_t d = 0; d < dim; d++) {
        s[d] += sum[d] * sum[d];
        w[d] -= u->lr * sum[d] / (sqrtf(s[d]) + u->eps);
    }
}

INLINE void adagrad_rows(const Update *u, const Groups *g, int64_t base, float *scratch, int64_t dim, int constant) {
    for (int64_t i = 0; i < g->groups; i++) {
        if (i + AHEAD < g->groups) prefetch_row(u, base + g->row[i + AHEAD], dim);
        const Link *link = g->links + g->start[i], *end = g->links + g->start[i + 1];
        if (constant) { /* the sum in registers */
            vec sum[16];
            for (int64_t v = 0; v < dim / LANES; v++)
                sum[v] = link->coefficient * *(const vec *)(link->gradient + v * LANES);
            while (++link < end)
                for (int64_t v = 0; v < dim / LANES; v++)
                    sum[v] += link->coefficient * *(const vec *)(link->gradient + v * LANES);
            adagrad_row(u, base + g->row[i], (const float *)sum, dim);
        } else {
            for (int64_t d = 0; d < dim; d++) scratch[d] = 0;
            for (; link < end; link++) axpy(scratch, link->gradient, link->coefficient, dim);
            adagrad_row(u, base + g->row[i], scratch, dim);
        }
    }
}

static int64_t base_of_table(const Update *u, int64_t table) {
    for (int64_t s = 0; s < u->count; s++)
        for (int64_t f = 0; f < u->bags[s].features; f++)
            if (u->bags[s].table[f] == table) return u->bags[s].base[f];
    return 0;
}

/* Returns 0, or -1 when memory ran out; nothing was changed then. */
INLINE int adagrad(const Update *u, int thread, int threads, int64_t dim, int constant) {
    int64_t most = 0, slots = 0, size = 2;
    for (int64_t t = 0; t < u->tables; t++) {
        if (u->owner && u->owner[t] != thread) continue;
        int64_t count = values_of_table(u, t), rows = rows_of_table(u, t);
        int64_t needed = small_for(rows, count) ? rows : count;
        most = count > most ? count : most;
        slots = needed > slots ? needed : slots;
    }
    while (size < 2 * most) size *= 2;
    Groups g = {.row = malloc((size_t)(most + 1) * sizeof(int64_t)),
                .start = malloc((size_t)(most + 2) * sizeof(int32_t)),
                .slot_of_value = malloc((size_t)(most + 1) * sizeof(int32_t)),
                .cursor = malloc((size_t)(slots + 1) * sizeof(int32_t)),
                .map = malloc((size_t)size * sizeof(int32_t)),
                .links = malloc((size_t)(most + 1) * sizeof(Link))};
    float *scratch = malloc((size_t)dim * sizeof(float));
    int ok = g.row && g.start && g.slot_of_value && g.cursor && g.map && g.links && scratch && most < INT32_MAX / 8;
    for (int64_t t = 0; ok && t < u->tables; t++) {
        int64_t count = u->owner && u->owner[t] != thread ? 0 : values_of_table(u, t);
        if (!count) continue;
        group(u, &g, t, count, thread, threads);
        adagrad_rows(u, &g, base_of_table(u, t), scratch, dim, constant);
    }
    free(g.row), free(g.start), free(g.slot_of_value), free(g.cursor), free(g.map), free(g.links), free(scratch);
    return ok ? 0 : -1;
}

/* Tables to threads, the largest first to the least loaded; returns whether the loads came out even enough. */
static int deal_tables(const Update *u, int32_t *owner, int threads) {
    int64_t total = 0, worst = 0, *load = calloc((size_t)threads, sizeof(int64_t));
    int64_t *size = malloc((size_t)u->tables * sizeof(int64_t));
    if (load && size) {
        for (int64_t t = 0; t < u->tables; t++) total += size[t] = values_of_table(u, t);
        for (int64_t round = 0; round < u->tables; round++) {
            int64_t largest = 0;
            int least = 0;
            for (int64_t t = 1; t < u->tables; t++)
                if (size[t] > size[largest]) largest = t;
            for (int n = 1; n < threads; n++)
                if (load[n] < load[least]) least = n;
            owner[largest] = least;
            load[least] += size[largest];
            size[largest] = -1;
        }
        for (int n = 0; n < threads; n++) worst = load[n] > worst ? load[n] : worst;
    }
    int even = load && size && worst * threads * 4 <= total * 5;
    free(load), free(size);
    return even;
}

/* ---- one copy of each kernel for each width ---- */

#define KERNELS(NAME, DIM, CONSTANT)                                                                                   \
    static int64_t pool_##NAME(const Bags *b, const float *w, int64_t first, int64_t last, int64_t dim) {              \
        (void)dim;                                                                                                     \
        return pool_range(b, w, first, last, DIM, CONSTANT);                                                           \
    }                                                                                                                  \
    static void weight_gradient_##NAME(const Bags *b, const float *w, float *out, int64_t first, int64_t last,         \
                                       int64_t dim) {                                                                  \
        (void)dim;                                                                                                     \
        weight_gradient_range(b, w, out, first, last, DIM);                                                            \
    }                                                                                                                  \
    static int update_##NAME(const Update *u, int thread, int threads, int64_t dim) {                                  \
        (void)dim;                                                                                                     \
        if (u->rule != SGD) return adagrad(u, thread, threads, DIM, CONSTANT);                                         \
        sgd(u, thread, threads, DIM);                                                                                  \
        return 0;                                                                                                      \
    }
KERNELS(8, 8, 1)
KERNELS(16, 16, 1)
KERNELS(32, 32, 1)
KERNELS(64, 64, 1)
KERNELS(128, 128, 1)
KERNELS(any, dim, 0)
#define PICK(kernel, dim)                                                                                              \
    ((dim) == 8 ? kernel##_8 : (dim) == 16 ? kernel##_16 : (dim) == 32 ? kernel##_32 : (dim) == 64 ? kernel##_64       \
     : (dim) == 128 ? kernel##_128 : kernel##_any)

/* ---- what rowkernels.py calls ---- */

int64_t recloom_pool(const Bags *b, const float *weight, int64_t dim, int threads) {
    int64_t bad = INT64_MAX;
    if (b->features * b->batch == 0) return -1;
#pragma omp parallel num_threads(threads) reduction(min : bad) if (threads > 1)
    {
        int t = omp_get_thread_num(), n = omp_get_num_threads();
        int64_t found = PICK(pool, dim)(b, weight, first_bag(b, t, n), first_bag(b, t + 1, n), dim);
        if (found != -1) bad = found;
    }
    return bad == INT64_MAX ? -1 : bad;
}

void recloom_weight_gradient(const Bags *b, const float *weight, float *out, int64_t dim, int threads) {
    if (b->features * b->batch == 0) return;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), n = omp_get_num_threads();
        PICK(weight_gradient, dim)(b, weight, out, first_bag(b, t, n), first_bag(b, t + 1, n), dim);
    }
}

int recloom_update(const Bags *bags, int64_t count, float *weight, float *state, int64_t dim, int64_t tables, int rule,
                   float lr, float eps, int threads) {
    Update u = {bags, count, weight, state, lr, eps, rule, NULL, tables};
    int32_t *owner = malloc((size_t)(tables + 1) * sizeof(int32_t));
    if (!owner) return -1;
    if (threads > 1 && deal_tables(&u, owner, threads)) u.owner = owner;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(min : failed) if (threads > 1)
    /* the runtime may give fewer threads than asked for: the shares are still `threads` */
    for (int share = omp_get_thread_num(); share < threads; share += omp_get_num_threads()) {
        int result = PICK(update, dim)(&u, share, threads, dim);
        failed = result < failed ? result : failed;
    }
    free(owner);
    return failed;
}

/* Ask for huge pages: random rows of a large table then miss the TLB far less. Call before the memory is written. */
void recloom_advise_huge_pages(void *start, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    uintptr_t page = 1 << 21, first = ((uintptr_t)start + page - 1) & ~(page - 1);
    uintptr_t last = ((uintptr_t)start + (uintptr_t)bytes) & ~(page - 1);
    if (last > first) madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

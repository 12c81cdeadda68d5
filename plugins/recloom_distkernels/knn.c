/* The k nearest targets of each query, by direct differences: squared distances, ascending, no cancellation.
 *
 * A job is a range of queries and a range of target sets. A block of WIDTH queries is transposed once, then held against
 * every target of the sets in turn; the k least distances of each lane stay in registers for k up to 5, in the
 * first-level cache above. `both` keeps the k least of each target beside those of each query: of two sets, every
 * distance is computed once for both directions. The file includes itself for float and double.
 */
#ifndef REAL

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#define INLINE static inline __attribute__((always_inline))
enum { QUERY_START, QUERY_END, SET_START, SET_END, QUERY_SET, JOB_FIELDS };

#define REAL float
#define NAME(x) x##_f32
enum { LANES_f32 = 16, LANES_f64 = 8, BLOCKS = 4, TARGETS = 3 };
#include __FILE__
#undef REAL
#undef NAME
#define REAL double
#define NAME(x) x##_f64
#include __FILE__

#else

typedef REAL NAME(vec) __attribute__((vector_size(64), aligned(64)));
#define vec NAME(vec)
#define LANES NAME(LANES)
#define WIDTH (LANES * BLOCKS)

typedef struct { /* the same fields, in the same order, as _Arguments in knn_native.py */
    const REAL *queries, *targets;
    const int64_t *bounds, *jobs; /* of the target sets; JOB_FIELDS numbers a job */
    int64_t jobs_count, dim, k;
    int64_t excludes, first; /* whether query q is target first + q, and no neighbour of its own */
    REAL *out; /* out[set * set_stride + rank * rank_stride + query] */
    int64_t set_stride, rank_stride;
    REAL *back; /* `both` only: back[query set * back_set_stride + rank * back_rank_stride + target] */
    int64_t back_set_stride, back_rank_stride;
} NAME(Arguments);

INLINE vec NAME(least)(vec a, vec b) {
    vec r;
    for (int l = 0; l < LANES; l++) r[l] = a[l] < b[l] ? a[l] : b[l];
    return r;
}

INLINE vec NAME(most)(vec a, vec b) {
    vec r;
    for (int l = 0; l < LANES; l++) r[l] = a[l] > b[l] ? a[l] : b[l];
    return r;
}

/* Put `found` in its place among the k least, which ascend: held[0], held[stride], ...; the first `from` are less. */
INLINE void NAME(insert)(vec *held, int64_t stride, int64_t from, int64_t k, vec found) {
    for (int64_t rank = from; rank < k; rank++) {
        vec old = held[rank * stride];
        held[rank * stride] = NAME(least)(old, found);
        found = NAME(most)(old, found);
    }
}

INLINE int NAME(any_less)(vec a, vec b) {
    int found = 0;
    for (int l = 0; l < LANES; l++) found |= a[l] < b[l];
    return found;
}

/* Squared distances of `count` targets from y on to the queries: the loads of the queries serve all of them. */
INLINE void NAME(distances)(const REAL *y, int count, const REAL *block, int blocks, int64_t dim,
                            vec sum[TARGETS][BLOCKS]) {
    for (int t = 0; t < count; t++)
        for (int r = 0; r < blocks; r++) sum[t][r] = (vec){0};
    for (int64_t i = 0; i < dim; i++)
        for (int r = 0; r < blocks; r++) {
            vec x = *(const vec *)(block + i * WIDTH + r * LANES);
            for (int t = 0; t < count; t++) {
                vec difference = x - y[t * dim + i];
                sum[t][r] += difference * difference;
            }
        }
}

/* Hold `count` targets from y on against the block of queries. */
INLINE void NAME(hold)(const REAL *y, int count, const REAL *block, int64_t dim, vec *best, int64_t k,
                       int in_registers, int excluded_lane) {
    vec sum[TARGETS][BLOCKS];
    NAME(distances)(y, count, block, BLOCKS, dim, sum);
    if (excluded_lane >= 0) ((REAL *)sum)[excluded_lane] = INFINITY;
    for (int t = 0; t < count; t++)
        for (int r = 0; r < BLOCKS; r++)
            if (in_registers || NAME(any_less)(sum[t][r], best[(k - 1) * BLOCKS + r]))
                NAME(insert)(best + r, BLOCKS, 0, k, sum[t][r]);
}

/* Targets lo .. hi-1. excluded: the target that is lane 0's own, if `excludes`. */
INLINE void NAME(pass)(const REAL *targets, int64_t lo, int64_t hi, const REAL *block, int64_t dim, vec *best,
                       int64_t k, int in_registers, int excludes, int64_t excluded) {
    int64_t j = lo;
    if (!excludes)
        for (; j + TARGETS <= hi; j += TARGETS)
            NAME(hold)(targets + j * dim, TARGETS, block, dim, best, k, in_registers, -1);
    for (; j < hi; j++)
        NAME(hold)(targets + j * dim, 1, block, dim, best, k, in_registers, excludes ? (int)(j - excluded) : -1);
}

/* One block of queries, from query q on, and one target set. */
INLINE void NAME(search_block)(const NAME(Arguments) *a, const REAL *block, int64_t q, int64_t set, vec *best,
                               int64_t dim, int64_t k, int in_registers) {
    int64_t lo = a->bounds[set], hi = a->bounds[set + 1], from = hi, to = hi, own = a->first + q;
    if (a->excludes) { /* targets that are queries of this block */
        from = own < lo ? lo : own < hi ? own : hi;
        to = own + WIDTH < from ? from : own + WIDTH < hi ? own + WIDTH : hi;
    }
    for (int64_t i = 0; i < k * BLOCKS; i++)
        for (int l = 0; l < LANES; l++) best[i][l] = INFINITY;
    NAME(pass)(a->targets, lo, from, block, dim, best, k, in_registers, 0, 0);
    if (from < to) NAME(pass)(a->targets, from, to, block, dim, best, k, in_registers, 1, own);
    NAME(pass)(a->targets, to, hi, block, dim, best, k, in_registers, 0, 0);
}

INLINE void NAME(choose)(const NAME(Arguments) *a, const REAL *block, int64_t q, int64_t set, vec *scratch,
                         int64_t dim) {
    vec best[5 * BLOCKS];
    vec *found = best;
    if (a->k == 1) NAME(search_block)(a, block, q, set, best, dim, 1, 1);
    else if (a->k <= 3) NAME(search_block)(a, block, q, set, best, dim, 3, 1);
    else if (a->k <= 5) NAME(search_block)(a, block, q, set, best, dim, 5, 1);
    else NAME(search_block)(a, block, q, set, found = scratch, dim, a->k, 0);
    for (int64_t i = 0; i < a->k * BLOCKS; i++) scratch[i] = found[i];
}

/* Transpose WIDTH queries from q on; lanes without a query are infinitely far away. */
static void NAME(transpose)(const NAME(Arguments) *a, int64_t q, int64_t count, REAL *block) {
    for (int64_t l = 0; l < WIDTH; l++)
        for (int64_t i = 0; i < a->dim; i++)
            block[i * WIDTH + l] = l < count ? a->queries[(q + l) * a->dim + i] : INFINITY;
}

static void NAME(write)(const NAME(Arguments) *a, int64_t set, int64_t q, int64_t count, const vec *best) {
    for (int64_t rank = 0; rank < a->k; rank++) {
        REAL *out = a->out + set * a->set_stride + rank * a->rank_stride + q;
        const REAL *found = (const REAL *)(best + rank * BLOCKS);
        for (int64_t l = 0; l < count; l++) out[l] = found[l];
    }
}

static void NAME(job)(const NAME(Arguments) *a, const int64_t *job, REAL *block, vec *best) {
    int64_t dim = a->dim;
    for (int64_t q = job[QUERY_START]; q < job[QUERY_END]; q += WIDTH) {
        int64_t count = job[QUERY_END] - q < WIDTH ? job[QUERY_END] - q : WIDTH;
        NAME(transpose)(a, q, count, block);
        for (int64_t set = job[SET_START]; set < job[SET_END]; set++) {
            if (dim == 1) NAME(choose)(a, block, q, set, best, 1);
            else if (dim == 2) NAME(choose)(a, block, q, set, best, 2);
            else if (dim == 3) NAME(choose)(a, block, q, set, best, 3);
            else NAME(choose)(a, block, q, set, best, dim);
            NAME(write)(a, set, q, count, best);
        }
    }
}

/* A block of queries and the targets lo .. hi-1: the k least of each lane in `best`, of each target, by lane, in `near`. */
INLINE void NAME(pass_both)(const NAME(Arguments) *a, int64_t lo, int64_t hi, const REAL *block, int blocks, vec *best,
                            vec *near, int64_t k) {
    for (int64_t j = lo; j < hi;) {
        int count = j + TARGETS <= hi ? TARGETS : 1;
        vec sum[TARGETS][BLOCKS];
        const REAL *y = a->targets + j * a->dim;
        if (count == TARGETS) NAME(distances)(y, TARGETS, block, blocks, a->dim, sum);
        else NAME(distances)(y, 1, block, blocks, a->dim, sum);
        for (int t = 0; t < count; t++)
            for (int r = 0; r < blocks; r++) {
                NAME(insert)(best + r, BLOCKS, 0, k, sum[t][r]);
                NAME(insert)(near + (j - lo + t) * k, 1, 0, k, sum[t][r]);
            }
        j += count;
    }
}

/* Leave in lane 0 the k least of all lanes. */
INLINE void NAME(merge)(vec *near, int64_t k) {
    for (int half = LANES / 2; half; half /= 2) {
        vec other[5];
        for (int64_t rank = 0; rank < k; rank++)
            for (int l = 0; l < LANES; l++) other[rank][l] = near[rank][(l + half) % LANES];
        for (int64_t rank = 0; rank < k; rank++) NAME(insert)(near, 1, rank, k, other[rank]);
    }
}

/* One set of queries, already transposed, and one target set. near: k for each target. */
INLINE void NAME(search_both)(const NAME(Arguments) *a, const int64_t *job, int64_t set, const REAL *transposed,
                              vec *best, vec *near, int64_t k) {
    int64_t lo = a->bounds[set], hi = a->bounds[set + 1];
    for (int64_t i = 0; i < (hi - lo) * k; i++)
        for (int l = 0; l < LANES; l++) near[i][l] = INFINITY;
    for (int64_t q = job[QUERY_START]; q < job[QUERY_END]; q += WIDTH) {
        int64_t count = job[QUERY_END] - q < WIDTH ? job[QUERY_END] - q : WIDTH;
        const REAL *block = transposed + (q - job[QUERY_START]) * a->dim;
        for (int64_t i = 0; i < k * BLOCKS; i++)
            for (int l = 0; l < LANES; l++) best[i][l] = INFINITY;
        if (count <= LANES) NAME(pass_both)(a, lo, hi, block, 1, best, near, k);
        else if (count <= 2 * LANES) NAME(pass_both)(a, lo, hi, block, 2, best, near, k);
        else NAME(pass_both)(a, lo, hi, block, BLOCKS, best, near, k);
        NAME(write)(a, set, q, count, best);
    }
    for (int64_t j = lo; j < hi; j++) {
        NAME(merge)(near + (j - lo) * k, k);
        REAL *back = a->back + job[QUERY_SET] * a->back_set_stride + j;
        for (int64_t rank = 0; rank < a->k; rank++) back[rank * a->back_rank_stride] = near[(j - lo) * k + rank][0];
    }
}

static int NAME(job_both)(const NAME(Arguments) *a, const int64_t *job) {
    int64_t most = 0, count = job[QUERY_END] - job[QUERY_START], blocks = (count + WIDTH - 1) / WIDTH;
    for (int64_t set = job[SET_START]; set < job[SET_END]; set++)
        if (a->bounds[set + 1] - a->bounds[set] > most) most = a->bounds[set + 1] - a->bounds[set];
    REAL *transposed = aligned_alloc(64, sizeof(REAL) * (size_t)(blocks * WIDTH * a->dim));
    vec *near = aligned_alloc(64, sizeof(vec) * (size_t)(most > 0 ? most * 5 : 1));
    vec best[5 * BLOCKS];
    int failed = transposed == NULL || near == NULL;
    if (!failed) {
        for (int64_t b = 0; b < blocks; b++) {
            int64_t left = count - b * WIDTH;
            NAME(transpose)(a, job[QUERY_START] + b * WIDTH, left < WIDTH ? left : WIDTH,
                            transposed + b * WIDTH * a->dim);
        }
        for (int64_t set = job[SET_START]; set < job[SET_END]; set++) {
            if (a->k <= 3) NAME(search_both)(a, job, set, transposed, best, near, 3);
            else NAME(search_both)(a, job, set, transposed, best, near, 5);
        }
    }
    free(transposed);
    free(near);
    return failed;
}

/* Both directions: a job is one set of queries and a range of target sets; k is at most 5; 1 if there is no memory. */
int NAME(knn_both)(const NAME(Arguments) *a, int threads) {
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) reduction(| : failed)
    for (int64_t job = 0; job < a->jobs_count; job++) failed |= NAME(job_both)(a, a->jobs + job * JOB_FIELDS);
    return failed;
}

/* Do all jobs; 1 if there is no memory. */
int NAME(knn)(const NAME(Arguments) *a, int threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        size_t block_bytes = sizeof(REAL) * (size_t)a->dim * WIDTH;
        REAL *block = aligned_alloc(64, block_bytes);
        vec *best = aligned_alloc(64, sizeof(vec) * (size_t)(a->k > 5 ? a->k : 5) * BLOCKS);
        failed = block == NULL || best == NULL;
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < a->jobs_count; job++)
            if (!failed) NAME(job)(a, a->jobs + job * JOB_FIELDS, block, best);
        free(block);
        free(best);
    }
    return failed;
}

#undef vec
#undef LANES
#undef WIDTH
#endif

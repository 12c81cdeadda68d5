/* Dot interaction: [x_0, <x_i, x_j> for j < i (or j <= i)] of each sample, and its gradient.
 *
 * Vectors are B x F x D float32, D a multiple of 8; the output, B x (D + pairs), and its gradient are float32 or
 * bfloat16. Products are added up in float32. A sample's vectors stay in the first-level cache throughout.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float vec __attribute__((vector_size(32), aligned(4)));
typedef uint32_t bits __attribute__((vector_size(32), aligned(4)));
typedef uint16_t half __attribute__((vector_size(16), aligned(2)));
enum { LANES = 8 };
#define INLINE static inline __attribute__((always_inline))

typedef struct { /* the same fields, in the same order, as _Arguments in interactions.py */
    const float *vectors;
    int64_t batch, count, dim; /* B, F, D */
    int64_t sample_stride, vector_stride; /* of vectors */
    void *output; /* forward: written; backward: the gradient, read */
    int64_t output_stride;
    float *gradient; /* backward: B x F x D, written */
    int64_t bfloat16, itself;
} Arguments;

INLINE vec load(const float *p) { return *(const vec *)p; }

/* out[0..n-1] = source, as bfloat16, rounded to nearest even */
static void to_bfloat16(uint16_t *out, const float *source, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        bits b = (bits)load(source + i);
        b = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
        *(half *)(out + i) = __builtin_convertvector(b, half);
    }
    for (; i < n; i++) {
        uint32_t b;
        memcpy(&b, source + i, 4);
        out[i] = (uint16_t)((b + 0x7fff + ((b >> 16) & 1)) >> 16);
    }
}

static void from_bfloat16(float *out, const uint16_t *source, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t b = (uint32_t)source[i] << 16;
        memcpy(out + i, &b, 4);
    }
}

/* First place of row i among the pairs. */
INLINE int64_t row_start(int64_t i, int64_t itself) { return itself ? i * (i + 1) / 2 : i * (i - 1) / 2; }

/* Rows i .. i+ROWS-1 of T T^t, columns c .. c+8*BLOCKS-1; transposed is D x width. */
#define TILE(ROWS, BLOCKS)                                                                                             \
    {                                                                                                                  \
        vec sum[ROWS][BLOCKS];                                                                                         \
        for (int r = 0; r < ROWS; r++)                                                                                 \
            for (int b = 0; b < BLOCKS; b++) sum[r][b] = (vec){0};                                                     \
        for (int64_t d = 0; d < dim; d++)                                                                              \
            for (int r = 0; r < ROWS; r++) {                                                                           \
                float x = row[r * stride + d];                                                                         \
                for (int b = 0; b < BLOCKS; b++) sum[r][b] += x * load(transposed + d * width + c + b * LANES);        \
            }                                                                                                          \
        for (int r = 0; r < ROWS; r++)                                                                                 \
            for (int b = 0; b < BLOCKS; b++) *(vec *)(products + r * width + c + b * LANES) = sum[r][b];               \
    }

INLINE void tile_rows(const float *row, int64_t stride, const float *transposed, int64_t width, int64_t dim, int rows,
                      int64_t columns, float *products) {
    for (int64_t c = 0; c < columns;) {
        int64_t left = (columns - c + LANES - 1) / LANES;
        if (rows == 2) {
            if (left >= 4) TILE(2, 4) else if (left == 3) TILE(2, 3) else if (left == 2) TILE(2, 2) else TILE(2, 1)
        } else {
            if (left >= 4) TILE(1, 4) else if (left == 3) TILE(1, 3) else if (left == 2) TILE(1, 2) else TILE(1, 1)
        }
        c += LANES * (left >= 4 ? 4 : left);
    }
}

/* scratch: transposed D x width, products 2 x width, packed D + pairs + width */
INLINE void forward_sample(const Arguments *a, int64_t sample, float *scratch, int64_t width, int64_t dim) {
    const float *vectors = a->vectors + sample * a->sample_stride;
    float *transposed = scratch, *products = transposed + dim * width, *packed = products + 2 * width;
    int64_t itself = a->itself, pairs = row_start(a->count, itself), stride = a->vector_stride;
    for (int64_t f = 0; f < a->count; f++)
        for (int64_t d = 0; d < dim; d++) transposed[d * width + f] = vectors[f * stride + d];
    memcpy(packed, vectors, (size_t)dim * sizeof(float));
    float *out = packed + dim;
    for (int64_t i = 0; i < a->count; i += 2) {
        int rows = i + 1 < a->count ? 2 : 1;
        int64_t columns = i + rows - 1 + itself;
        tile_rows(vectors + i * stride, stride, transposed, width, dim, rows, columns, products);
        for (int r = 0; r < rows; r++) { /* whole lanes: what is too much is overwritten by the next row */
            int64_t n = i + r + itself;
            for (int64_t c = 0; c < n; c += LANES) *(vec *)(out + c) = load(products + r * width + c);
            out += n;
        }
    }
    if (a->bfloat16) to_bfloat16((uint16_t *)a->output + sample * a->output_stride, packed, dim + pairs);
    else memcpy((float *)a->output + sample * a->output_stride, packed, (size_t)(dim + pairs) * sizeof(float));
}

/* Gradients of vectors r .. r+ROWS-1, columns c .. c+8*BLOCKS-1: sum over the others of pair gradient times vector. */
#define GRADIENT_TILE(ROWS, BLOCKS)                                                                                    \
    {                                                                                                                  \
        vec sum[ROWS][BLOCKS];                                                                                         \
        const float *lower[ROWS];                                                                                      \
        for (int k = 0; k < ROWS; k++) {                                                                               \
            lower[k] = g + row_start(r + k, itself);                                                                   \
            for (int b = 0; b < BLOCKS; b++) sum[k][b] = (vec){0};                                                     \
        }                                                                                                              \
        for (int64_t j = 0; j < r; j++)                                                                                \
            for (int k = 0; k < ROWS; k++)                                                                             \
                for (int b = 0; b < BLOCKS; b++) sum[k][b] += lower[k][j] * load(vectors + j * stride + c + b * LANES);\
        for (int64_t j = r; j < r + ROWS; j++)                                                                         \
            for (int k = 0; k < ROWS; k++) {                                                                           \
                int64_t i = r + k, high = i > j ? i : j, low = i > j ? j : i;                                          \
                if (i == j && !itself) continue;                                                                       \
                float x = g[row_start(high, itself) + low] * (i == j ? 2.0f : 1.0f);                                   \
                for (int b = 0; b < BLOCKS; b++) sum[k][b] += x * load(vectors + j * stride + c + b * LANES);          \
            }                                                                                                          \
        const float *upper = g + row_start(r + ROWS, itself) + r;                                                      \
        for (int64_t j = r + ROWS; j < count; upper += j + itself, j++)                                                \
            for (int k = 0; k < ROWS; k++)                                                                             \
                for (int b = 0; b < BLOCKS; b++) sum[k][b] += upper[k] * load(vectors + j * stride + c + b * LANES);   \
        for (int k = 0; k < ROWS; k++)                                                                                 \
            for (int b = 0; b < BLOCKS; b++) *(vec *)(out + (r + k) * dim + c + b * LANES) = sum[k][b];                \
    }

INLINE void backward_sample(const Arguments *a, int64_t sample, float *scratch, int64_t dim) {
    const float *vectors = a->vectors + sample * a->sample_stride, *g;
    float *out = a->gradient + sample * a->count * dim;
    int64_t itself = a->itself, count = a->count, stride = a->vector_stride;
    if (a->bfloat16) {
        from_bfloat16(scratch, (const uint16_t *)a->output + sample * a->output_stride, dim + row_start(count, itself));
        g = scratch;
    } else {
        g = (const float *)a->output + sample * a->output_stride;
    }
    const float *first = g;
    g += dim;
    for (int64_t r = 0; r < count;) {
        int rows = count - r >= 4 ? 4 : 1;
        for (int64_t c = 0; c < dim;) {
            int blocks = dim - c >= 2 * LANES ? 2 : 1;
            if (rows == 4 && blocks == 2) GRADIENT_TILE(4, 2)
            else if (rows == 4) GRADIENT_TILE(4, 1)
            else if (blocks == 2) GRADIENT_TILE(1, 2)
            else GRADIENT_TILE(1, 1)
            c += blocks * LANES;
        }
        r += rows;
    }
    for (int64_t d = 0; d < dim; d++) out[d] += first[d];
}

static int run(const Arguments *a, int backward, int threads) {
    int64_t width = (a->count + 4 * LANES - 1) / LANES * LANES, pairs = row_start(a->count, a->itself);
    size_t floats = (size_t)(a->dim * width + 2 * width + a->dim + pairs + width);
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed) if (threads > 1)
    {
        float *scratch = calloc(floats, sizeof(float));
        failed = scratch == NULL;
#pragma omp for schedule(static)
        for (int64_t s = 0; s < a->batch; s++) {
            if (failed) continue;
            if (backward) {
                if (a->dim == 16) backward_sample(a, s, scratch, 16);
                else backward_sample(a, s, scratch, a->dim);
            } else {
                if (a->dim == 16) forward_sample(a, s, scratch, width, 16);
                else forward_sample(a, s, scratch, width, a->dim);
            }
        }
        free(scratch);
    }
    return failed;
}

int dots_forward(const Arguments *a, int threads) { return run(a, 0, threads); }
int dots_backward(const Arguments *a, int threads) { return run(a, 1, threads); }

/* TGN's decoder over all pairs: out[i, j] = Σ_k weight[k] relu(left[i, k] + right[j, k]), and its gradients.

   `right` is d x M, M a multiple of 16, as are the rows of `out` and of its gradient. */

#include "vector.h"

#define AT(array, row) (*(vector *)((array) + (row) * m + j))

void edge_pairs(int64_t n, int64_t m, int64_t d, const float *left, const float *right, const float *weight,
                float *out, int threads) {
    const vector zero = {0};
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < m; j += 16) {
            vector total = {0};
            for (int64_t k = 0; k < d; k++)
                total += weight[k] * larger(left[i * d + k] + *(const vector *)(right + k * m + j), zero);
            AT(out, i) = total;
        }
}

/* With g = the gradient where left + right > 0, and 0 elsewhere: by_left (n x d) gets Σ_j g, and by_right (d x M, zeros
   before) Σ_i g, from which the gradients of left, right and weight are products. */
void edge_pairs_backward(int64_t n, int64_t m, int64_t d, const float *left, const float *right, const float *gradient,
                         float *by_left, float *by_right, int threads) {
    const vector zero = {0};
#pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < d; k++)
        for (int64_t i = 0; i < n; i++) {
            vector total = {0};
            for (int64_t j = 0; j < m; j += 16) {
                integers there = left[i * d + k] + *(const vector *)(right + k * m + j) > zero;
                vector g = (vector)((integers) * (const vector *)(gradient + i * m + j) & there);
                total += g;
                AT(by_right, k) += g;
            }
            by_left[i * d + k] = sum16(total);
        }
}

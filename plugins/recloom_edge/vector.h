/* What the kernels share: vectors of sixteen floats, and exp without a call, so that loops over it become vector code. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float vector __attribute__((vector_size(64), aligned(4)));

typedef int32_t integers __attribute__((vector_size(64), aligned(4)));

/* The larger one of each pair; a NaN in `a` stays, one in `b` does not count. */
static inline vector larger(vector a, vector b) {
    integers less = a < b;
    return (vector)(((integers)b & less) | ((integers)a & ~less));
}

/* e^x, relative error below 2e-7; x is brought to -87 .. 87 before. */
static inline vector exp16(vector x) {
    const vector zero = {0}, magic = zero + 12582912.0f; /* 1.5 * 2^23: adding it rounds to the nearest integer */
    x = larger(x, zero - 87.0f);
    x = -larger(-x, zero - 87.0f);
    vector n = (x * 1.44269504f + magic) - magic, r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vector p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vector)((__builtin_convertvector(n, integers) + 127) << 23);
}

static inline vector sigmoid16(vector x) { return 1.0f / (1.0f + exp16(-x)); }
static inline vector tanh16(vector x) { return 1.0f - 2.0f / (exp16(2.0f * x) + 1.0f); }

static inline float sum16(vector x) {
    float total = 0;
    for (int k = 0; k < 16; k++) total += x[k];
    return total;
}

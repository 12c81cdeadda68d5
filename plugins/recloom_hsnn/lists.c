/* Inverted lists of faiss, chosen for each of several users: copied whole, rated item by item, the best copied. */
#include <stdint.h>
#include <string.h>

/* For user u the lists nodes[u * wide .. ] (-1: none) one after the other, while they fit into `room` items: codes to
   out_codes (users x room x dim floats), ids to out_ids (users x room, -1 behind the last) and the place of the list
   among the user's lists to out_list. Returns nothing; counts[u] is the number of items copied. */
void gather_lists(const float *const *codes, const int64_t *const *ids, const int64_t *sizes, const int64_t *nodes,
                  int64_t users, int64_t wide, int64_t room, int64_t dim, float *out_codes, int64_t *out_ids,
                  int32_t *out_list, int64_t *counts) {
    for (int64_t u = 0; u < users; u++) {
        int64_t filled = 0;
        for (int64_t j = 0; j < wide; j++) {
            int64_t node = nodes[u * wide + j];
            if (node < 0 || sizes[node] == 0) continue;
            int64_t take = sizes[node] < room - filled ? sizes[node] : room - filled;
            memcpy(out_codes + (u * room + filled) * dim, codes[node], take * dim * sizeof(float));
            memcpy(out_ids + u * room + filled, ids[node], take * sizeof(int64_t));
            for (int64_t i = 0; i < take; i++) out_list[u * room + filled + i] = (int32_t)j;
            filled += take;
            if (filled == room) break;
        }
        counts[u] = filled;
        for (int64_t i = filled; i < room; i++) { out_ids[u * room + i] = -1; out_list[u * room + i] = 0; }
        memset(out_codes + (u * room + filled) * dim, 0, (room - filled) * dim * sizeof(float));
    }
}

typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef float v8 __attribute__((vector_size(32)));
typedef float v4 __attribute__((vector_size(16)));

/* The inner product: sums of every 16th product, added up by halves (one after the other each would wait). */
static inline float product(const float *left, const float *right, int64_t dim) {
    union { v16 whole; v8 half[2]; } sixteen = {{0}};
    int64_t d = 0;
    for (; d + 16 <= dim; d += 16) sixteen.whole += *(const v16 *)(left + d) * *(const v16 *)(right + d);
    union { v8 whole; v4 half[2]; } eight = {sixteen.half[0] + sixteen.half[1]};
    v4 four = eight.half[0] + eight.half[1];
    float sum = (four[0] + four[2]) + (four[1] + four[3]);
    for (; d < dim; d++) sum += left[d] * right[d];
    return sum;
}

/* For user u the items of the lists nodes[u * wide .. ] one after the other, up to `room`: rates[u * room + n] is
   bases[u * wide + j] + slopes[u * wide + j] . code for the list's place j. -inf behind the last. Where out_ids is not
   null the items' ids, -1 behind the last. */
void rate_lists(const float *const *codes, const int64_t *const *ids, const int64_t *sizes, const int64_t *nodes,
                const float *bases, const float *slopes, int64_t users, int64_t wide, int64_t room, int64_t dim,
                float *rates, int64_t *out_ids) {
    for (int64_t u = 0; u < users; u++) {
        int64_t filled = 0;
        for (int64_t j = 0; j < wide; j++) {
            int64_t node = nodes[u * wide + j];
            if (node < 0) continue;
            const float *slope = slopes + (u * wide + j) * dim;
            for (int64_t i = 0; i < sizes[node] && filled < room; i++, filled++) {
                float sum = bases[u * wide + j] + product(slope, codes[node] + i * dim, dim);
                rates[u * room + filled] = sum;
                if (out_ids) out_ids[u * room + filled] = ids[node][i];
            }
        }
        for (; filled < room; filled++) {
            rates[u * room + filled] = -1.0f / 0.0f;
            if (out_ids) out_ids[u * room + filled] = -1;
        }
    }
}

/* Floats as integers of the same order. */
static inline uint32_t ordered(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

/* Of each user's `room` rates the `count` largest: their places, ascending, to out (users x count), -1 behind the last;
   -inf is never taken; of equal rates the first. By digits of 11, 11 and 10 bits: each pass counts the digits of the
   rates that may still be the last one taken. */
void best_places(const float *rates, int64_t users, int64_t room, int64_t count, int64_t *out) {
    static const int shifts[3] = {21, 10, 0};
    for (int64_t u = 0; u < users; u++, rates += room, out += count) {
        uint32_t last = 0, known = 0; /* the last one taken, as far as it is known, and which of its bits are */
        int64_t left = count < room ? count : room;
        for (int digit = 0; digit < 3; digit++) {
            int64_t counts[2048] = {0};
            uint32_t width = digit == 2 ? 1023 : 2047;
            for (int64_t i = 0; i < room; i++) {
                uint32_t key = ordered(rates[i]);
                if ((key & known) == last) counts[(key >> shifts[digit]) & width]++;
            }
            uint32_t bin = width;
            while (bin > 0 && counts[bin] < left) left -= counts[bin--];
            last |= bin << shifts[digit];
            known |= width << shifts[digit];
        }
        int64_t taken = 0;
        for (int64_t i = 0; i < room && taken < count; i++) {
            uint32_t key = ordered(rates[i]);
            if (key < last || rates[i] == -1.0f / 0.0f || (key == last && left-- <= 0)) continue;
            out[taken++] = i;
        }
        while (taken < count) out[taken++] = -1;
    }
}

/* Of the same items those at the places picks[u * count .. ] (ascending; -1: none): as gather_lists returns them. */
void pick_items(const float *const *codes, const int64_t *const *ids, const int64_t *sizes, const int64_t *nodes,
                const int64_t *picks, int64_t users, int64_t wide, int64_t count, int64_t dim, float *out_codes,
                int64_t *out_ids, int32_t *out_list) {
    for (int64_t u = 0; u < users; u++) {
        int64_t j = 0, before = 0;
        for (int64_t n = u * count; n < (u + 1) * count; n++) {
            int64_t pick = picks[n], node = -1;
            for (; pick >= 0 && j < wide; j++) {
                node = nodes[u * wide + j];
                if (node >= 0 && pick < before + sizes[node]) break;
                if (node >= 0) before += sizes[node];
            }
            if (pick < 0 || j == wide) {
                out_ids[n] = -1;
                out_list[n] = 0;
                memset(out_codes + n * dim, 0, dim * sizeof(float));
                continue;
            }
            memcpy(out_codes + n * dim, codes[node] + (pick - before) * dim, dim * sizeof(float));
            out_ids[n] = ids[node][pick - before];
            out_list[n] = (int32_t)j;
        }
    }
}

/* Inverted lists of faiss, chosen for each of several users: copied whole, rated item by item, copied in part. */
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
                const float *code = codes[node] + i * dim;
                float sums[16] = {0}; /* of every 16th product: the compiler keeps them in vector registers */
                int64_t d = 0;
                for (; d + 16 <= dim; d += 16)
                    for (int64_t k = 0; k < 16; k++) sums[k] += slope[d + k] * code[d + k];
                float sum = bases[u * wide + j];
                for (int64_t k = 0; k < 16; k++) sum += sums[k];
                for (; d < dim; d++) sum += slope[d] * code[d];
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

/* Copies whole inverted lists of faiss, chosen for each of several users, into padded arrays. */
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

/* What the loss of a window begins with: the candidates of its groups of events, where they and the sources' recent
   destinations are, and states at its start. Called through ctypes by candidates.py, starts.py and scoring.py. */

#include <stdint.h>
#include <string.h>

/* The candidates of groups of `group` events each: the destinations of its events, and of `most` random ones so many
   that there are `most` in all if they differ (one at least). `place` (by destination) is filled with -1 and gets where each is
   in `ids`, where they are in the order of their first use; `mark` (as many as ids) is scratch. chosen: of which ids the groups' are;
   starts: where each group's begin; wanted: how many random ones each took. Returns the number of ids. */
int64_t edge_candidates(int64_t n, const int32_t *destination, int64_t group, int64_t most, const int32_t *random,
                        int32_t *place, int32_t *mark, int32_t *ids, int32_t *chosen, int32_t *starts,
                        int32_t *wanted) {
    int64_t known = 0, total = 0;
    for (int64_t g = 0, begin = 0; begin < n; g++, begin += group) {
        int64_t events = n - begin < group ? n - begin : group, more = 0, limit = events;
        starts[g] = (int32_t)total;
        for (int64_t i = 0; i < limit + more; i++) {
            int32_t id = i < limit ? destination[begin + i] : random[g * most + i - limit];
            if (place[id] < 0) {
                mark[known] = -1;
                ids[known] = id;
                place[id] = (int32_t)known++;
            }
            int32_t at = place[id];
            if (mark[at] != g) {
                mark[at] = (int32_t)g;
                chosen[total++] = at;
            }
            if (i == limit - 1) {
                int64_t left = most - (total - starts[g]);
                wanted[g] = (int32_t)(more = left > 1 ? left : 1);
            }
        }
        starts[g + 1] = (int32_t)total;
    }
    return known;
}

/* Of n events: where the source's `recent` last destinations are among the candidates (-1: nowhere, or not among those
   of the event's group), where the destination is, and the ends' candidates, of the last `ends` of source and
   destination. `place` is by destination; `member` (groups x m of `group` events) may be null. */
void edge_targets(int64_t n, int64_t recent, int64_t ends, int64_t group, int64_t m, const int32_t *source,
                  const int32_t *destination, const int32_t *last, const int32_t *place, const int32_t *member,
                  int32_t *places, int32_t *target, int32_t *changed) {
    for (int64_t e = 0; e < n; e++) {
        const int32_t *among = member ? member + e / group * m : 0;
        for (int64_t r = e * recent; r < (e + 1) * recent; r++) {
            int32_t at = last[r] < 0 ? -1 : place[last[r]];
            places[r] = at >= 0 && among && among[at] < 0 ? -1 : at;
        }
        target[e] = changed[e * ends + ends - 1] = place[destination[e]];
        if (ends == 2) changed[2 * e] = place[source[e]];
    }
}

/* The states of r nodes: row free[node] of `values` where that is 0 or more (null: nowhere); the initial state of its
   kind, 0 or 1, for a node without an event (time -1), which `kind` tells then (-1: another row). */
void edge_start(int64_t r, int64_t d, int64_t offset, const int32_t *nodes, const int64_t *time, const float *states,
                const float *initial, const int64_t *free, const float *values, int8_t *kind, float *out) {
    for (int64_t i = 0; i < r; i++) {
        int64_t node = nodes[i], row = free ? free[node] : -1;
        kind[i] = row < 0 && time[node] < 0 ? (int8_t)(offset && node >= offset) : -1;
        const float *from = row >= 0 ? values + row * d : kind[i] >= 0 ? initial + kind[i] * d : states + node * d;
        memcpy(out + i * d, from, (size_t)d * sizeof(float));
    }
}

/* The gradient of the initial states, 2 x d of zeros, from that of the states. */
void edge_start_backward(int64_t r, int64_t d, const int8_t *kind, const float *gradient, float *initial) {
    for (int64_t i = 0; i < r; i++)
        if (kind[i] >= 0)
            for (int64_t k = 0; k < d; k++) initial[kind[i] * d + k] += gradient[i * d + k];
}

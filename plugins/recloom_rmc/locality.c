/* Stack distances of a trace of ids, and a trace of given stack distances: LRU order kept by a Fenwick tree over time.
 *
 * The stack distance of an access is the number of different ids accessed since the last access of its id; -1 where
 * there is none. Both take O(N log N).
 */
#include <stdint.h>
#include <stdlib.h>

static void add(int64_t *tree, int64_t size, int64_t at, int64_t value) {
    for (at++; at <= size; at += at & -at) tree[at] += value;
}

static int64_t before(const int64_t *tree, int64_t at) { /* sum over places 0..at-1 */
    int64_t sum = 0;
    for (; at > 0; at -= at & -at) sum += tree[at];
    return sum;
}

/* ids: N in 0..rows-1; out: N distances. Returns 0, or 1 without memory. */
int recloom_stack_distances(const int64_t *ids, int64_t count, int64_t rows, int64_t *out) {
    int64_t *tree = calloc((size_t)count + 1, sizeof *tree), *last = malloc((size_t)rows * sizeof *last);
    if (!tree || !last) {
        free(tree);
        free(last);
        return 1;
    }
    for (int64_t row = 0; row < rows; row++) last[row] = -1;
    int64_t live = 0;
    for (int64_t now = 0; now < count; now++) {
        int64_t then = last[ids[now]];
        if (then < 0) {
            out[now] = -1;
            live++;
        } else {
            out[now] = live - before(tree, then + 1);
            add(tree, count, then, -1);
        }
        add(tree, count, now, 1);
        last[ids[now]] = now;
    }
    free(tree);
    free(last);
    return 0;
}

/* distances: N, -1 for an id not seen before; fresh: the ids in the order in which they first appear, `rows` of them;
 * out: N ids. A distance beyond the ids seen so far, or a fresh one when none is left, takes the least recent id.
 * Returns 0, or 1 without memory. */
int recloom_trace(const int64_t *distances, int64_t count, const int64_t *fresh, int64_t rows, int64_t *out) {
    int64_t *tree = calloc((size_t)count + 1, sizeof *tree);
    if (!tree) return 1;
    int64_t live = 0, used = 0, top = 1;
    while (top * 2 <= count) top *= 2;
    for (int64_t now = 0; now < count; now++) {
        int64_t distance = distances[now];
        if ((distance < 0 || !live) && used < rows) {
            out[now] = fresh[used++];
            live++;
        } else {
            if (distance < 0 || distance >= live) distance = live - 1;
            int64_t rank = live - distance, at = 0; /* the rank-th oldest of the live places, from 1 */
            for (int64_t step = top; step; step /= 2) {
                if (at + step <= count && tree[at + step] < rank) {
                    at += step;
                    rank -= tree[at];
                }
            }
            out[now] = out[at];
            add(tree, count, at, -1);
        }
        add(tree, count, now, 1);
    }
    free(tree);
    return 0;
}

/* Event graphs: levels, critical paths, plans of windows, and what nodes did last.
   Called through ctypes by kernels.py, which checks the arguments. A destination's node is its number + offset. */

#include <stdint.h>
#include <string.h>

/* A node's level, and what it is masked with: -1 keeps it; 0, of a decoupled node, makes it 0. */
typedef struct {
    int32_t level, keep;
} Node;

/* A decoupled node's last event so far, and its level. */
typedef struct {
    int32_t level, event;
} Last;

static int32_t sweep(int64_t n, const int32_t *restrict source, const int32_t *restrict destination, Node *sources,
                     Node *destinations, int32_t floor, int32_t top, int32_t *restrict out) {
    for (int64_t e = 0; e < n; e++) {
        Node *u = sources + source[e], *v = destinations + destination[e];
        int32_t level = u->level > v->level ? u->level : v->level;
        level = (level > floor ? level : floor) + 1;
        u->level = level & u->keep;
        v->level = level & v->keep;
        top = level > top ? level : top;
        if (out) out[e] = level;
    }
    return top;
}

/* Levels of n events that go on where `state` = (events so far, level that the window begins above, highest level)
   left off. Every `window` events, levels begin above all earlier ones; 0: never. `out` may be null. */
void edge_levels(int64_t n, const int32_t *source, const int32_t *destination, int64_t offset, Node *nodes,
                 int64_t window, int64_t *state, int32_t *out) {
    for (int64_t start = 0; start < n;) {
        int64_t length = n - start;
        if (window) {
            if (state[0] % window == 0) state[1] = state[2];
            int64_t left = window - state[0] % window;
            length = left < length ? left : length;
        }
        state[2] = sweep(length, source + start, destination + start, nodes, nodes + offset, (int32_t)state[1],
                         (int32_t)state[2], out ? out + start : 0);
        state[0] += length;
        start += length;
    }
}

/* One longest path of the event graph in which nodes with keep = 0 are read as their states at the start of each of
   `segments` segments of as many events: as the last event before left them; in the first one they depend on nothing.
   `event` (by node, filled with -1), `newest` (the same, level and event, zeros and -1) and `before` and `through` (by
   event) are scratch; `carried` (by node, zeros) counts the path's links through each node that is kept. Returns the
   path's length. */
int64_t edge_critical(int64_t n, const int32_t *source, const int32_t *destination, int64_t offset, int64_t num_nodes,
                      int64_t segments, Node *nodes, int32_t *event, Last *newest, int32_t *before, int32_t *through,
                      int64_t *carried) {
    int64_t last = -1, longest = 0, e = 0;
    for (int64_t segment = 0; segment < segments; segment++) {
        for (int64_t i = 0; segment && i < num_nodes; i++)
            if (!nodes[i].keep) nodes[i].level = newest[i].level, event[i] = newest[i].event;
        for (int64_t stop = n * (segment + 1) / segments; e < stop; e++) {
            int32_t ends[2] = {source[e], (int32_t)(destination[e] + offset)};
            int32_t on = nodes[ends[0]].level >= nodes[ends[1]].level ? ends[0] : ends[1];
            int32_t level = nodes[on].level + 1;
            before[e] = nodes[on].level ? event[on] : -1;
            through[e] = on;
            for (int side = 0; side < 2; side++) {
                int32_t node = ends[side];
                if (nodes[node].keep) {
                    nodes[node].level = level, event[node] = (int32_t)e;
                } else {
                    newest[node].level = level, newest[node].event = (int32_t)e;
                }
            }
            if (level > longest) longest = level, last = e;
        }
    }
    for (e = last; e >= 0 && before[e] >= 0; e = before[e])
        if (nodes[through[e]].keep) carried[through[e]]++;
    return longest;
}

/* What a window of n events computes from what. Rows of the buffer of states: 2e and 2e + 1 are what event e makes of
   its source and destination, 2n + i the state of nodes[i] at the window's start. `cut` (by node, may be null) marks
   decoupled nodes: updates read their row of the start. `slot` (by node) is filled with -1, and is so afterwards.
   `nodes` begins with `given` nodes that are to have a row in any case.
   Out: nodes; place_of: i of each end; read: the row that an update reads of each end; seen: the row of each end's newest state before the
   event; last: the row of nodes[i]'s state after the window; order: events by level; bounds: where levels begin in it.
   Returns the number of nodes; counts[0] gets that of levels. */
int64_t edge_plan(int64_t n, const int32_t *source, const int32_t *destination, int64_t offset, const uint8_t *cut,
                  int32_t *slot, int64_t given, int32_t *nodes, int32_t *place_of, int32_t *read, int32_t *seen,
                  int32_t *last, int32_t *level, int32_t *order, int32_t *bounds, int64_t *counts) {
    int64_t known = 0;
    for (int64_t i = 0; i < given; i++) { /* nodes given twice have one row */
        int32_t node = nodes[i];
        if (slot[node] < 0) {
            nodes[known] = node;
            slot[node] = (int32_t)known++;
        }
    }
    for (int64_t i = 0; i < known; i++) last[i] = (int32_t)(2 * n + i);
    int32_t top = 0;
    for (int64_t e = 0; e < n; e++) {
        int32_t ends[2] = {source[e], (int32_t)(destination[e] + offset)}, above = 0;
        for (int side = 0; side < 2; side++) {
            int32_t node = ends[side], place = slot[node];
            if (place < 0) {
                place = slot[node] = (int32_t)known++;
                nodes[place] = node;
                last[place] = (int32_t)(2 * n + place);
            }
            place_of[2 * e + side] = place;
            int free = cut && cut[node];
            seen[2 * e + side] = last[place];
            read[2 * e + side] = free ? (int32_t)(2 * n + place) : last[place];
            if (read[2 * e + side] < 2 * n) {
                int32_t below = level[read[2 * e + side] >> 1];
                above = below > above ? below : above;
            }
        }
        for (int side = 0; side < 2; side++) last[slot[ends[side]]] = (int32_t)(2 * e + side);
        level[e] = above + 1;
        top = level[e] > top ? level[e] : top;
    }
    memset(bounds, 0, (size_t)(top + 1) * sizeof *bounds);
    for (int64_t e = 0; e < n; e++) bounds[level[e]]++;
    for (int32_t l = 1; l <= top; l++) bounds[l] += bounds[l - 1];
    /* bounds[l] is now where level l + 1 begins; fill from behind to keep the order of time inside a level */
    for (int64_t e = n - 1; e >= 0; e--) order[--bounds[level[e]]] = (int32_t)e;
    for (int32_t l = 0; l < top; l++) bounds[l] = bounds[l + 1];
    bounds[top] = (int32_t)n;
    for (int64_t i = 0; i < known; i++) slot[nodes[i]] = -1;
    counts[0] = top;
    return known;
}

/* For each end of n events, the ticks since its node's last event (-1: it had none); for each source, its last
   `width` distinct destinations, newest first (-1: none), and the ticks since then. `time` (by node) holds -1 for no event, and
   is brought up to date, as `recent` and `when` (by node and place) are. */
void edge_history(int64_t n, const int32_t *source, const int32_t *destination, const int64_t *now, int64_t offset,
                  int64_t width, int64_t *time, int32_t *recent, int64_t *when, int64_t *gaps, int32_t *found,
                  int64_t *ages) {
    for (int64_t e = 0; e < n; e++) {
        int64_t u = source[e], v = destination[e] + offset;
        gaps[2 * e] = time[u] < 0 ? -1 : now[e] - time[u];
        gaps[2 * e + 1] = time[v] < 0 ? -1 : now[e] - time[v];
        time[u] = time[v] = now[e];
        int32_t *items = recent + u * width;
        int64_t *moments = when + u * width;
        for (int64_t i = 0; i < width; i++) {
            found[e * width + i] = items[i];
            ages[e * width + i] = items[i] < 0 ? -1 : now[e] - moments[i];
        }
        if (!width) continue;
        int64_t place = 0;
        while (place < width - 1 && items[place] != destination[e]) place++;
        memmove(items + 1, items, (size_t)place * sizeof *items);
        memmove(moments + 1, moments, (size_t)place * sizeof *moments);
        items[0] = destination[e];
        moments[0] = now[e];
    }
}

/* The distinct destinations of each source as lists, newest first: `head` (by source) and `next` (by cell) link cells,
   `item` (by cell) holds destinations; -1 ends a list. used[0] cells are taken. For each of n events, before it: the
   place of each of `width` asked destinations in the source's list (-1: nowhere), and the list's length; then the
   destination moves to the front. */
void edge_recent(int64_t n, const int32_t *source, const int32_t *destination, int64_t width, const int32_t *asked,
                 int32_t *head, int32_t *next, int32_t *item, int64_t *used, int32_t *places, int32_t *length) {
    for (int64_t e = 0; e < n; e++) {
        const int32_t *wanted = asked + e * width;
        int32_t *found = places + e * width, at = 0, before = -1, own = -1, own_before = -1;
        for (int64_t i = 0; i < width; i++) found[i] = -1;
        for (int32_t cell = head[source[e]]; cell >= 0; before = cell, cell = next[cell], at++) {
            for (int64_t i = 0; i < width; i++)
                if (item[cell] == wanted[i]) found[i] = at;
            if (item[cell] == destination[e]) own = cell, own_before = before;
        }
        length[e] = at;
        if (own < 0) {
            own = (int32_t)used[0]++;
            item[own] = destination[e];
            next[own] = head[source[e]];
        } else if (own_before >= 0) {
            next[own_before] = next[own];
            next[own] = head[source[e]];
        }
        head[source[e]] = own;
    }
}

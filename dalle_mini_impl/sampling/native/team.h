// How the threads of a parallel region divide their work.
//
// The work is a sequence of phases, each of which needs the results of the one before. A phase has a number of
// independent items in as many pieces. Each thread takes the pieces of its own share first and then what others have
// not begun, and a phase ends when all pieces are done, whoever did them. So a thread that another program keeps from
// running delays the others by at most one piece; with equal shares and barriers every phase would wait for it.

#include <omp.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum {
    PIECES = 4,    // of each thread's share, at most
    SPINS = 1000,  // looks at a piece that is not done, some microseconds, before its thread may be waiting for a core
    SLEEP = 20000  // nanoseconds between further looks
};

// A counter alone in its line of the cache.
typedef struct {
    _Alignas(64) atomic_int value;
} Counter;

// What one thread knows of the work. Counters of a phase: pieces taken of each share, then all pieces done.
typedef struct {
    Counter *counters;  // of the current phase
    int thread, threads;
    int shares;   // that this thread has looked through in this phase
    int holding;  // whether it has taken a piece that is not yet counted as done
} Team;

// Bytes of the counters of some phases.
static inline int64_t counters_size(int phases, int threads) {
    return (int64_t)phases * (threads + 1) * (int64_t)sizeof(Counter);
}

// The calling thread's view, in a parallel region of at most the threads that `counters` were zeroed for.
static inline Team join_team(void *counters) {
    return (Team){counters, omp_get_thread_num(), omp_get_num_threads(), 0, 0};
}

static inline void wait_for(const atomic_int *counter, int value) {
    const struct timespec rest = {0, SLEEP};
    for (int spins = 0; atomic_load_explicit(counter, memory_order_acquire) < value; spins++) {
        if (spins >= SPINS) nanosleep(&rest, NULL);
#if defined(__x86_64__) || defined(__i386__)
        else __builtin_ia32_pause();
#elif defined(__aarch64__)
        else __asm__ volatile("yield");
#endif
    }
}

// The next piece of a phase of `count` items: from `first` to before `last`. Returns 0, and moves on to the next phase,
// once all pieces are done.
static inline int next_piece(Team *team, int64_t count, int64_t *first, int64_t *last) {
    const int most = team->threads * PIECES, pieces = count < most ? (int)count : most;
    Counter *done = team->counters + team->threads;
    if (team->holding) atomic_fetch_add_explicit(&done->value, 1, memory_order_release);
    for (; team->shares < team->threads; team->shares++) {
        const int share = (team->thread + team->shares) % team->threads;
        const int begin = (int)((int64_t)pieces * share / team->threads);
        const int end = (int)((int64_t)pieces * (share + 1) / team->threads);
        atomic_int *taken = &team->counters[share].value;
        if (begin + atomic_load_explicit(taken, memory_order_relaxed) >= end) continue;
        const int piece = begin + atomic_fetch_add_explicit(taken, 1, memory_order_relaxed);
        if (piece >= end) continue;
        *first = count * piece / pieces;
        *last = count * (piece + 1) / pieces;
        team->holding = 1;
        return 1;
    }
    wait_for(&done->value, pieces);
    team->counters = done + 1;
    team->shares = team->holding = 0;
    return 0;
}

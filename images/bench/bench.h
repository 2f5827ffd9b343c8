/* What the files of the benchmark share. */
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>

/* One program: `prepare`, where there is one, is not timed; `run` does `count` rounds and returns a checksum of its
 * results, which is the same on every machine. */
struct program {
    const char *name;
    const char *what;
    uint64_t (*run)(uint64_t count);
    /* Rounds at scale 1: 0.1 to 0.3 seconds on a CPU of 2023. */
    uint64_t count;
    void (*prepare)(void);
    /* Whether this CPU has the instructions it takes; null: every x86-64 CPU has. */
    int (*supported)(void);
};

/* Each file's programs; one without a name ends them. */
extern const struct program integer_programs[];
extern const struct program float_programs[];
extern const struct program memory_programs[];
extern const struct program system_programs[];

/* `bytes` of zeroed memory in pages of 4 KiB. Ends the program where there is none. */
void *pages(size_t bytes);

/* Prints `what` with the cause in errno and ends the program. */
void die(const char *what) __attribute__((noreturn));

/* Random numbers: xorshift64 with the shifts 13, 7 and 17 (Marsaglia, "Xorshift RNGs", 2003). The state is never 0. */
static inline uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

#define SEED 0x9e3779b97f4a7c15u

/* FNV-1a over 64 bits, a word at a time. */
static inline uint64_t mix(uint64_t hash, uint64_t word)
{
    return (hash ^ word) * 0x100000001b3u;
}

#endif

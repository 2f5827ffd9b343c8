/* Memory: latency, read-modify-write, copies, and what the kernel's page tables are asked for. */
#include <sys/mman.h>

#include "bench.h"

#define PAGE 4096

/* A pointer chase: nodes of a cache line each, in one cycle through all of them in random order. */

struct link {
    struct link *next;
    uint64_t index;
    uint8_t rest[48];
};

static struct link *chain;

/* Sattolo's algorithm: a random permutation that is one cycle. */
static void make_chain(uint64_t length)
{
    chain = pages(length * sizeof *chain);
    for (uint64_t i = 0; i < length; i++)
        chain[i].index = i;
    uint64_t random = SEED;
    for (uint64_t i = length - 1; i > 0; i--) {
        uint64_t other = next_random(&random) % i, index = chain[i].index;
        chain[i].index = chain[other].index;
        chain[other].index = index;
    }
    for (uint64_t i = 0; i < length; i++)
        chain[i].next = &chain[chain[i].index];
}

static void prepare_small_chain(void) { make_chain((256 << 10) / sizeof(struct link)); }
static void prepare_large_chain(void) { make_chain((64 << 20) / sizeof(struct link)); }

static uint64_t run_chase(uint64_t count)
{
    const struct link *link = chain;
    for (uint64_t i = 0; i < count; i++)
        link = link->next;
    return link->index;
}

/* Read-modify-write at random places of 16 MB. */

#define WORDS (2 << 20)

static uint64_t *words;

static void prepare_words(void)
{
    words = pages(WORDS * sizeof *words);
    for (uint64_t i = 0; i < WORDS; i++)
        words[i] = i;
}

static uint64_t run_random_rmw(uint64_t count)
{
    uint64_t random = SEED, sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        next_random(&random);
        sum += words[random % WORDS] ^= random;
    }
    return sum;
}

/* rep movsb of 63 bytes to 64 KB, from and to places that are not aligned. */

#define COPY_BYTES (64 << 10)

static uint8_t *copies;

static void prepare_copies(void)
{
    copies = pages(2 * COPY_BYTES);
    uint64_t random = SEED;
    for (int i = 0; i < COPY_BYTES; i++)
        copies[i] = next_random(&random);
}

static void copy(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

static uint64_t run_movsb(uint64_t count)
{
    static const uint64_t sizes[] = { 63, 500, 4096, COPY_BYTES - 64 };
    uint64_t hash = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t bytes = sizes[i & 3], offset = i >> 2 & 31;
        uint8_t *to = copies + COPY_BYTES + (offset ^ 5);
        copy(to, copies + offset, bytes);
        hash = mix(hash, to[i % bytes]);
    }
    return hash;
}

/* First writes to fresh pages, 1,024 a round. */
static uint64_t run_faults(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint8_t *memory = pages(1024 * PAGE);
        for (int page = 0; page < 1024; page++)
            sum += ++memory[page * PAGE + i % PAGE];
        munmap(memory, 1024 * PAGE);
    }
    return sum;
}

/* The rights of one page in eight, taken and given back, with a read or a write after each. */
static uint64_t run_mprotect(uint64_t count)
{
    uint8_t *memory = pages(8 * PAGE);
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint8_t *page = memory + i % 8 * PAGE;
        ++*page;
        if (mprotect(page, PAGE, PROT_READ))
            die("mprotect");
        sum += *page;
        if (mprotect(page, PAGE, PROT_READ | PROT_WRITE))
            die("mprotect");
    }
    return sum;
}

const struct program memory_programs[] = {
    { "chase-256k", "pointer chase through 256 KB", run_chase, 40000000, prepare_small_chain },
    { "chase-64m", "pointer chase through 64 MB", run_chase, 1000000, prepare_large_chain },
    { "random-rmw", "random read-modify-write in 16 MB", run_random_rmw, 20000000, prepare_words },
    { "movsb", "rep movsb", run_movsb, 200000, prepare_copies },
    { "faults", "first writes to fresh pages", run_faults, 50 },
    { "mprotect", "rights of pages taken and given back", run_mprotect, 50000 },
    { NULL },
};

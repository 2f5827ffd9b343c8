/* The guest programs of the CPU benchmark, one binary: it runs natively as well as in a guest.
 *
 *   bench list                      the programs
 *   bench all [SCALE | --quick]     each of them in turn, then the sum
 *   bench NAME... [SCALE | --quick]
 *
 * A program prints one line: its name, its seconds by this machine's clock, a checksum of its results. The checksum
 * depends on nothing but SCALE, which multiplies the rounds of each program; --quick is for slow CPUs.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

#define QUICK 0.02

static const struct program *const groups[] = {
    integer_programs, float_programs, memory_programs, system_programs, NULL,
};

/* Where a program's process leaves its result. */
struct result {
    double seconds;
    uint64_t checksum;
};

void die(const char *what)
{
    fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
    _exit(1);
}

void *pages(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        die("no memory");
    /* A kernel without huge pages refuses, and gives small ones. */
    madvise(memory, bytes, MADV_NOHUGEPAGE);
    return memory;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void measure(const struct program *program, double scale, struct result *result)
{
    uint64_t count = program->count * scale;
    if (count == 0)
        count = 1;
    if (program->prepare)
        program->prepare();
    double start = now();
    result->checksum = program->run(count);
    result->seconds = now() - start;
}

/* Runs a program in a process of its own, so that none of them inherits another's memory, and prints its line. */
static void report(const struct program *program, double scale, struct result *total)
{
    if (program->supported && !program->supported()) {
        printf("%s absent -\n", program->name);
        return;
    }
    struct result *result = mmap(NULL, sizeof *result, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (result == MAP_FAILED)
        die("no memory");
    pid_t child = fork();
    if (child == 0) {
        measure(program, scale, result);
        _exit(0);
    }
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child)
        die("fork");
    if (status != 0) {
        fprintf(stderr, "bench: %s ended with wait status %#x\n", program->name, status);
        exit(1);
    }
    printf("%s %.6f %016llx\n", program->name, result->seconds, (unsigned long long)result->checksum);
    total->seconds += result->seconds;
    total->checksum = mix(total->checksum, result->checksum);
    munmap(result, sizeof *result);
}

static const struct program *find(const char *name)
{
    for (int group = 0; groups[group]; group++)
        for (const struct program *program = groups[group]; program->name; program++)
            if (strcmp(program->name, name) == 0)
                return program;
    return NULL;
}

static void list(void)
{
    for (int group = 0; groups[group]; group++)
        for (const struct program *program = groups[group]; program->name; program++)
            printf("%-14s %s\n", program->name, program->what);
}

static void all(double scale)
{
    struct result total = { 0, 0 };
    for (int group = 0; groups[group]; group++)
        for (const struct program *program = groups[group]; program->name; program++)
            report(program, scale, &total);
    printf("total %.6f %016llx\n", total.seconds, (unsigned long long)total.checksum);
}

/* Whether the last argument is a scale. */
static int parse_scale(const char *arg, double *scale)
{
    if (strcmp(arg, "--quick") == 0) {
        *scale = QUICK;
        return 1;
    }
    char *end;
    double value = strtod(arg, &end);
    if (end == arg || *end || !(value > 0 && value <= 1e6))
        return 0;
    *scale = value;
    return 1;
}

int main(int argc, char **argv)
{
    /* What the program `exec` executes. */
    if (argc == 3 && strcmp(argv[1], "exit") == 0)
        return atoi(argv[2]);

    setvbuf(stdout, NULL, _IOLBF, 0);
    double scale = 1;
    if (argc > 2 && parse_scale(argv[argc - 1], &scale))
        argc--;
    if (argc < 2) {
        fprintf(stderr, "usage: bench list | bench all [SCALE | --quick] | bench NAME... [SCALE | --quick]\n");
        return 2;
    }
    if (argc == 2 && strcmp(argv[1], "list") == 0)
        return list(), 0;
    if (argc == 2 && strcmp(argv[1], "all") == 0)
        return all(scale), 0;

    struct result total = { 0, 0 };
    for (int i = 1; i < argc; i++) {
        const struct program *program = find(argv[i]);
        if (!program) {
            fprintf(stderr, "bench: there is no program %s; see: bench list\n", argv[i]);
            return 2;
        }
        report(program, scale, &total);
    }
    return 0;
}

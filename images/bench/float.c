/* Floating point: matrices of doubles in scalar and packed code, and the x87. */
#include <immintrin.h>
#include <string.h>

#include "bench.h"

#define SIDE 128

typedef double matrix[SIDE][SIDE];
static matrix a, b, c;

static void prepare_matrices(void)
{
    uint64_t random = SEED;
    for (int i = 0; i < SIDE * SIDE; i++) {
        a[i / SIDE][i % SIDE] = (double)(next_random(&random) >> 11) * 0x1p-53 - 0.5;
        b[i / SIDE][i % SIDE] = (double)(next_random(&random) >> 11) * 0x1p-53 - 0.5;
    }
}

/* c += factor * a row of b: the three do the same sums in the same order, so their checksums are equal. */

static void add_row_scalar(double *c, const double *b, double factor)
{
    for (int column = 0; column < SIDE; column++)
        c[column] += factor * b[column];
}

static void add_row_sse2(double *c, const double *b, double factor)
{
    __m128d factors = _mm_set1_pd(factor);
    for (int column = 0; column < SIDE; column += 2) {
        __m128d product = _mm_mul_pd(factors, _mm_load_pd(b + column));
        _mm_store_pd(c + column, _mm_add_pd(_mm_load_pd(c + column), product));
    }
}

__attribute__((target("avx2"))) static void add_row_avx2(double *c, const double *b, double factor)
{
    __m256d factors = _mm256_broadcastsd_pd(_mm_set_sd(factor));
    for (int column = 0; column < SIDE; column += 4) {
        __m256d product = _mm256_mul_pd(factors, _mm256_loadu_pd(b + column));
        _mm256_storeu_pd(c + column, _mm256_add_pd(_mm256_loadu_pd(c + column), product));
    }
}

static uint64_t multiply(uint64_t count, void (*add_row)(double *, const double *, double))
{
    for (uint64_t i = 0; i < count; i++)
        for (int row = 0; row < SIDE; row++)
            for (int k = 0; k < SIDE; k++)
                add_row(c[row], b[k], a[row][k]);
    uint64_t hash = 0;
    for (int i = 0; i < SIDE * SIDE; i++) {
        uint64_t bits;
        memcpy(&bits, &c[i / SIDE][i % SIDE], 8);
        hash = mix(hash, bits);
    }
    return hash;
}

static uint64_t run_scalar(uint64_t count) { return multiply(count, add_row_scalar); }
static uint64_t run_sse2(uint64_t count) { return multiply(count, add_row_sse2); }
static uint64_t run_avx2(uint64_t count) { return multiply(count, add_row_avx2); }

static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

/* pi by Simpson's rule over 4/(1+x*x), and square roots, in 80-bit precision. */
static uint64_t run_x87(uint64_t count)
{
    long double sum = 0, roots = 0, step = 1.0L / (long double)count;
    for (uint64_t i = 0; i < count; i++) {
        long double left = (long double)i * step, middle = left + step / 2, right = left + step;
        sum += 4 / (1 + left * left) + 16 / (1 + middle * middle) + 4 / (1 + right * right);
        roots += __builtin_sqrtl(right);
    }
    long double pi = sum * step / 6 + roots * step;
    uint64_t bits;
    memcpy(&bits, &pi, 8);
    return bits;
}

const struct program float_programs[] = {
    { "matmul-scalar", "matrix multiply, scalar SSE2", run_scalar, 250, prepare_matrices },
    { "matmul-sse2", "matrix multiply, packed SSE2", run_sse2, 250, prepare_matrices },
    { "matmul-avx2", "matrix multiply, packed AVX2", run_avx2, 250, prepare_matrices, has_avx2 },
    { "x87", "80-bit add, multiply, divide, square root", run_x87, 15000000 },
    { NULL },
};

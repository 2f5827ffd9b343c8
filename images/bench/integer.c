/* Integer work: calls, branches, dispatch, division. */
#include <string.h>

#include "bench.h"

/* An integer kernel of the kind that rates microcontrollers: a linked list, a small matrix and a state machine over
 * text, each round bound to the next by a CRC. */

#define NODES 64
#define SIDE 16

struct node {
    struct node *next;
    int16_t key, value;
};

static uint16_t crc16(uint16_t crc, uint16_t data)
{
    for (int bit = 0; bit < 16; bit++) {
        int carry = (crc ^ data) & 1;
        data >>= 1;
        crc >>= 1;
        if (carry)
            crc ^= 0xa001;
    }
    return crc;
}

static struct node *reverse(struct node *list)
{
    struct node *reversed = NULL;
    while (list) {
        struct node *next = list->next;
        list->next = reversed;
        reversed = list;
        list = next;
    }
    return reversed;
}

static struct node *merge_sort(struct node *list, int by_value)
{
    if (!list || !list->next)
        return list;
    struct node *middle = list;
    for (struct node *end = list->next; end && end->next; end = end->next->next)
        middle = middle->next;
    struct node *right = merge_sort(middle->next, by_value);
    middle->next = NULL;
    struct node *left = merge_sort(list, by_value);

    struct node *sorted, **tail = &sorted;
    while (left && right) {
        int left_first = by_value ? left->value <= right->value : left->key <= right->key;
        struct node **first = left_first ? &left : &right;
        *tail = *first;
        tail = &(*first)->next;
        *first = (*first)->next;
    }
    *tail = left ? left : right;
    return sorted;
}

static uint16_t list_round(struct node *nodes, uint16_t seed)
{
    for (int i = 0; i < NODES; i++) {
        nodes[i].next = i + 1 < NODES ? &nodes[i + 1] : NULL;
        nodes[i].key = i;
        nodes[i].value = (int16_t)((seed + i * 977) & 0x7ff);
    }
    uint16_t crc = seed;
    struct node *list = merge_sort(reverse(nodes), 1);
    for (int wanted = 0; wanted < NODES; wanted += 8)
        for (struct node *node = list; node; node = node->next)
            if (node->key == wanted) {
                crc = crc16(crc, node->value);
                break;
            }
    list = merge_sort(list, 0);
    return crc16(crc, list->next->value);
}

static uint16_t matrix_round(int16_t a[SIDE][SIDE], int16_t b[SIDE][SIDE], uint16_t seed)
{
    uint16_t crc = seed;
    for (int row = 0; row < SIDE; row++) {
        int32_t total = 0;
        for (int column = 0; column < SIDE; column++) {
            int32_t sum = 0;
            for (int k = 0; k < SIDE; k++)
                sum += a[row][k] * b[k][column];
            total += (sum >> 2) & 0x7f;
            a[row][column] += (int16_t)(sum >> 9);
        }
        crc = crc16(crc, (uint16_t)total);
    }
    return crc;
}

enum state { START, SIGN, INTEGER, FRACTION, EXPONENT, INVALID, STATES };

static uint16_t text_round(const char *text, uint16_t seed)
{
    uint16_t counts[STATES] = { 0 };
    enum state state = START;
    for (; *text; text++) {
        char c = *text;
        if (c == ',') {
            counts[state]++;
            state = START;
            continue;
        }
        int digit = c >= '0' && c <= '9';
        switch (state) {
        case START:
            state = digit ? INTEGER : c == '+' || c == '-' ? SIGN : c == '.' ? FRACTION : INVALID;
            break;
        case SIGN:
            state = digit ? INTEGER : c == '.' ? FRACTION : INVALID;
            break;
        case INTEGER:
            state = digit ? INTEGER : c == '.' ? FRACTION : c == 'e' ? EXPONENT : INVALID;
            break;
        case FRACTION:
            state = digit ? FRACTION : c == 'e' ? EXPONENT : INVALID;
            break;
        case EXPONENT:
            state = digit || c == '-' ? EXPONENT : INVALID;
            break;
        default:
            break;
        }
    }
    uint16_t crc = seed;
    for (int i = 0; i < STATES; i++)
        crc = crc16(crc, counts[i]);
    return crc;
}

static uint64_t run_core(uint64_t count)
{
    static struct node nodes[NODES];
    static int16_t a[SIDE][SIDE], b[SIDE][SIDE];
    static char text[] = "5012,-874,+122,.52,1.5e3,-.125e-1,+0.6e-12,T0.3e-1F,1..2,37.25,9e9,x,-+1,31415,2.71828,";
    for (int i = 0; i < SIDE * SIDE; i++) {
        a[i / SIDE][i % SIDE] = i * 7 % 31;
        b[i / SIDE][i % SIDE] = i * 5 % 29 - 11;
    }
    uint16_t crc = 1;
    for (uint64_t round = 0; round < count; round++) {
        crc = list_round(nodes, crc);
        crc = matrix_round(a, b, crc);
        text[crc % (sizeof text - 1)] ^= 1;
        crc = text_round(text, crc);
    }
    return crc;
}

/* SHA-256 (FIPS 180-4, 6.2) over the same buffer again and again. */

static const uint32_t sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, int by)
{
    return x >> by | x << (32 - by);
}

static void sha256_block(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[64];
    for (int t = 0; t < 16; t++) {
        uint32_t word;
        memcpy(&word, block + 4 * t, 4);
        w[t] = __builtin_bswap32(word);
    }
    for (int t = 16; t < 64; t++) {
        uint32_t s0 = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3;
        uint32_t s1 = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int t = 0; t < 64; t++) {
        uint32_t s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
        uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + sha256_constants[t] + w[t];
        uint32_t s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
        uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

/* The checksum is the first eight bytes of the digest of `count` times the bytes 0 to 63. */
static uint64_t run_sha256(uint64_t count)
{
    uint32_t state[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    uint8_t block[64];
    for (int i = 0; i < 64; i++)
        block[i] = i;
    for (uint64_t i = 0; i < count; i++)
        sha256_block(state, block);
    memset(block, 0, sizeof block);
    block[0] = 0x80;
    uint64_t bits = __builtin_bswap64(count * 512);
    memcpy(block + 56, &bits, 8);
    sha256_block(state, block);
    return (uint64_t)state[0] << 32 | state[1];
}

/* Recursive calls, kept as calls. */
__attribute__((noinline, optimize("no-optimize-sibling-calls"))) static uint64_t fib(uint64_t n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static uint64_t run_fib(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++)
        sum = mix(sum, fib(20 + (i & 3)));
    return sum;
}

/* A bytecode interpreter with a switch. Its program counts the steps of the Collatz sequence from a number to 1. */

enum op { PUSH, LOAD, STORE, ADD, AND, MULTIPLY, SHIFT_RIGHT, JUMP, JUMP_IF_ZERO, RETURN };

static const int8_t collatz[] = {
    /*  0 */ LOAD, 0, PUSH, -1, ADD, JUMP_IF_ZERO, 42,
    /*  7 */ LOAD, 1, PUSH, 1, ADD, STORE, 1,
    /* 14 */ LOAD, 0, PUSH, 1, AND, JUMP_IF_ZERO, 33,
    /* 21 */ LOAD, 0, PUSH, 3, MULTIPLY, PUSH, 1, ADD, STORE, 0, JUMP, 0,
    /* 33 */ LOAD, 0, PUSH, 1, SHIFT_RIGHT, STORE, 0, JUMP, 0,
    /* 42 */ LOAD, 1, RETURN,
};

static uint64_t interpret(const int8_t *code, uint64_t *variables)
{
    uint64_t stack[8], *top = stack;
    for (const int8_t *pc = code;;) {
        switch ((enum op)*pc++) {
        case PUSH: *top++ = *pc++; break;
        case LOAD: *top++ = variables[*pc++]; break;
        case STORE: variables[*pc++] = *--top; break;
        case ADD: top--; top[-1] += *top; break;
        case AND: top--; top[-1] &= *top; break;
        case MULTIPLY: top--; top[-1] *= *top; break;
        case SHIFT_RIGHT: top--; top[-1] >>= *top; break;
        case JUMP: pc = code + *pc; break;
        case JUMP_IF_ZERO: pc = *--top == 0 ? code + *pc : pc + 1; break;
        case RETURN: return *--top;
        }
    }
}

static uint64_t run_dispatch(uint64_t count)
{
    uint64_t steps = 0;
    for (uint64_t start = 1; start <= count; start++) {
        uint64_t variables[2] = { start, 0 };
        steps += interpret(collatz, variables);
    }
    return steps;
}

/* Calls by a table of pointers, in an order that no predictor knows. */

typedef uint64_t function(uint64_t);

#define FUNCTION(number, expression) \
    __attribute__((noipa)) static uint64_t function_##number(uint64_t x) { return expression; }
FUNCTION(0, x + 1)
FUNCTION(1, x ^ 0x55)
FUNCTION(2, x * 3)
FUNCTION(3, x - 7)
FUNCTION(4, x << 1)
FUNCTION(5, ~x)
FUNCTION(6, x ^ x >> 9)
FUNCTION(7, x + (x << 4))

static uint64_t run_indirect(uint64_t count)
{
    static function *const table[] = {
        function_0, function_1, function_2, function_3, function_4, function_5, function_6, function_7,
    };
    uint64_t random = SEED, value = 0;
    for (uint64_t i = 0; i < count; i++)
        value = table[next_random(&random) >> 61](value);
    return value;
}

/* 64-bit division, unsigned and signed, with quotients of every length. */
static uint64_t run_division(uint64_t count)
{
    uint64_t random = SEED, sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t dividend = next_random(&random);
        uint64_t divisor = dividend >> (i & 63) | 1;
        sum += random / divisor + random % (divisor + 2);
        sum += (uint64_t)((int64_t)dividend / (int64_t)(divisor >> 1 | 1));
    }
    return sum;
}

const struct program integer_programs[] = {
    { "core", "linked list, small matrix, state machine, CRC", run_core, 20000 },
    { "sha256", "SHA-256", run_sha256, 500000 },
    { "fib", "recursive calls", run_fib, 1000 },
    { "dispatch", "a bytecode interpreter with a switch", run_dispatch, 50000 },
    { "indirect", "unpredictable indirect calls", run_indirect, 20000000 },
    { "division", "64-bit div and idiv", run_division, 8000000 },
    { NULL },
};

/* Kernels of merge_cli on the CPU, each in one pass where numpy takes several. compiled.h says what they are given.
 *
 * Every function gives the bits that the same steps give in numpy: the same operations in the same order, none
 * fused into another (-ffp-contract=off), sums over models in the order of the models.
 */

#include "compiled.h"

#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "masks and dtypes are written for little-endian machines"
#endif

#if defined(__x86_64__) && defined(__GLIBC__)
/* The processor's widest registers are chosen when the library is loaded. */
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif

/* Elements worked on at a time: what is between two steps stays in the first cache. */
enum { CHUNK = 512 };

static inline uint32_t bits_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

static inline float number_of(uint32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static inline float magnitude_of(float number) { return number_of(bits_of(number) & 0x7FFFFFFFu); }

static inline uint32_t not_finite(float number) { return (bits_of(number) & 0x7F800000u) == 0x7F800000u; }

static inline float sign_of(float number) { return (float)((number > 0) - (number < 0)); }

static inline int64_t least(int64_t one, int64_t other) { return one < other ? one : other; }

/* Writes the places of what is set among CHUNK flags, each 0 or 1, and returns how many there are: few as a rule, so
 * eight are passed over at once. */
static inline int places_of(const uint8_t *flags, uint16_t *places) {
    int found = 0;
    for (int j = 0; j < CHUNK; j += 8) {
        uint64_t eight;
        memcpy(&eight, flags + j, sizeof eight);
        for (; eight != 0; eight &= eight - 1)
            places[found++] = (uint16_t)(j + __builtin_ctzll(eight) / 8);
    }
    return found;
}

/* --- conversion --------------------------------------------------------------------------------------------------- */

static inline float from_bfloat16(uint16_t stored) { return number_of((uint32_t)stored << 16); }

static inline float from_float16(uint16_t stored) {
    /* The exponents' biases differ by 112. Multiplying settles subnormal numbers too; infinity and NaN are set apart. */
    float number = number_of((uint32_t)(stored & 0x7FFF) << 13) * 0x1p112f;
    uint32_t apart = (stored & 0x7C00) == 0x7C00 ? 0x7F800000u : 0;
    return number_of(bits_of(number) | apart | (uint32_t)(stored & 0x8000) << 16);
}

static inline float from_float8_e4m3fn(uint8_t stored) {
    float number = number_of((uint32_t)(stored & 0x7F) << 20) * 0x1p120f;
    uint32_t apart = (stored & 0x7F) == 0x7F ? 0x7FC00000u : 0;
    return number_of(bits_of(number) | apart | (uint32_t)(stored & 0x80) << 24);
}

/* The upper byte of a float16. */
static inline float from_float8_e5m2(uint8_t stored) { return from_float16((uint16_t)(stored << 8)); }

static inline float from_float64(double stored) { return (float)stored; }

static inline uint16_t to_bfloat16(float number) {
    uint32_t bits = bits_of(number), rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

/* Returns the pattern of a magnitude in a dtype of so many bits of mantissa, and the bias of its exponent. */
static inline uint32_t to_narrow(float number, int mantissa, int bias, uint32_t beyond, uint32_t nan) {
    const int shift = 23 - mantissa;
    uint32_t bits = bits_of(number) & 0x7FFFFFFFu;
    /* Adding a number whose last bit is worth the smallest subnormal number lets the processor round to those. */
    uint32_t addend = (uint32_t)(127 + 24 - bias - mantissa) << 23;
    uint32_t subnormal = bits_of(number_of(bits) + number_of(addend)) - addend;
    uint32_t offset = (1u << (shift - 1)) - 1 - ((uint32_t)(127 - bias) << 23);
    uint32_t normal = (bits + offset + (bits >> shift & 1)) >> shift;
    uint32_t capped = normal < beyond ? normal : beyond;
    uint32_t rounded = bits < (uint32_t)(128 - bias) << 23 ? subnormal : capped;
    return bits > 0x7F800000u ? nan : rounded;
}

static inline uint16_t to_float16(float number) {
    return (uint16_t)(to_narrow(number, 10, 15, 0x7C00, 0x7E00) | (bits_of(number) >> 16 & 0x8000u));
}

static inline uint8_t to_float8_e4m3fn(float number) {
    return (uint8_t)(to_narrow(number, 3, 7, 0x7F, 0x7F) | (bits_of(number) >> 24 & 0x80u));
}

static inline uint8_t to_float8_e5m2(float number) {
    return (uint8_t)(to_narrow(number, 2, 15, 0x7C, 0x7F) | (bits_of(number) >> 24 & 0x80u));
}

/* Converts rows, (n, numel), to float32, subtracts `less` where it is given, and counts in `wrong` how many numbers of
 * each row were not finite. */
#define TO_FLOAT32(DTYPE, STORED)                                                                                      \
    WIDE void to_float32_##DTYPE(const STORED *restrict stored, const float *restrict less, float *restrict out,       \
                                 int64_t *restrict wrong, int64_t n, int64_t numel) {                                  \
        memset(wrong, 0, (size_t)n * sizeof *wrong);                                                                   \
        for (int64_t at = 0; at < numel; at += CHUNK) {                                                                \
            int count = (int)least(CHUNK, numel - at);                                                                 \
            for (int64_t i = 0; i < n; i++) {                                                                          \
                const STORED *from = stored + i * numel + at;                                                          \
                float *to = out + i * numel + at;                                                                      \
                uint32_t here = 0;                                                                                     \
                for (int j = 0; j < count; j++) {                                                                      \
                    float number = from_##DTYPE(from[j]);                                                              \
                    here += not_finite(number);                                                                        \
                    to[j] = number - (less != NULL ? less[at + j] : 0.0f);                                             \
                }                                                                                                      \
                wrong[i] += here;                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

TO_FLOAT32(bfloat16, uint16_t)
TO_FLOAT32(float16, uint16_t)
TO_FLOAT32(float8_e4m3fn, uint8_t)
TO_FLOAT32(float8_e5m2, uint8_t)
TO_FLOAT32(float64, double)

/* The same for rows that are float32 already, in place. */
WIDE void to_float32_float32(float *restrict rows, const float *restrict less, int64_t *restrict wrong, int64_t n,
                             int64_t numel) {
    memset(wrong, 0, (size_t)n * sizeof *wrong);
    for (int64_t at = 0; at < numel; at += CHUNK) {
        int count = (int)least(CHUNK, numel - at);
        for (int64_t i = 0; i < n; i++) {
            float *row = rows + i * numel + at;
            uint32_t here = 0;
            for (int j = 0; j < count; j++)
                here += not_finite(row[j]);
            for (int j = 0; j < count && less != NULL; j++)
                row[j] -= less[at + j];
            wrong[i] += here;
        }
    }
}

/* Rounds to the nearest number of the dtype, ties to even, and returns how many are not finite then. */
#define FROM_FLOAT32(DTYPE, STORED, MAGNITUDE, BEYOND)                                                                 \
    WIDE int64_t from_float32_##DTYPE(const float *restrict numbers, STORED *restrict out, int64_t numel) {            \
        int64_t wrong = 0;                                                                                             \
        for (int64_t at = 0; at < numel; at += CHUNK) {                                                                \
            int count = (int)least(CHUNK, numel - at);                                                                 \
            uint32_t here = 0;                                                                                         \
            for (int j = 0; j < count; j++) {                                                                          \
                STORED rounded = to_##DTYPE(numbers[at + j]);                                                          \
                here += (rounded & MAGNITUDE) >= BEYOND;                                                               \
                out[at + j] = rounded;                                                                                 \
            }                                                                                                          \
            wrong += here;                                                                                             \
        }                                                                                                              \
        return wrong;                                                                                                  \
    }

FROM_FLOAT32(bfloat16, uint16_t, 0x7FFF, 0x7F80)
FROM_FLOAT32(float16, uint16_t, 0x7FFF, 0x7C00)
FROM_FLOAT32(float8_e4m3fn, uint8_t, 0x7F, 0x7F)
FROM_FLOAT32(float8_e5m2, uint8_t, 0x7F, 0x7C)

/* --- trimming ----------------------------------------------------------------------------------------------------- */

/* Zeroes what is no larger in magnitude than `bound`, and multiplies. */
WIDE void zero_below(const float *restrict row, float bound, float factor, float *restrict out, int64_t numel) {
    for (int64_t j = 0; j < numel; j++) {
        out[j] = (magnitude_of(row[j]) <= bound ? 0.0f : row[j]) * factor;
    }
}

/* Writes the magnitudes in [low, high) as patterns less that of `low`, and returns how many; counts those from `high`
 * on. `high` is NaN where there is no upper end. */
WIDE int64_t in_bracket(const float *restrict row, float low, float high, int32_t *restrict inside,
                         int64_t *restrict above, int64_t numel) {
    uint8_t within[CHUNK];
    uint16_t places[CHUNK];
    int64_t found = 0, over = 0;
    for (int64_t at = 0; at < numel; at += CHUNK) {
        int count = (int)least(CHUNK, numel - at);
        uint32_t larger = 0;
        for (int j = 0; j < count; j++) {
            float magnitude = magnitude_of(row[at + j]);
            larger += magnitude >= high;
            within[j] = (magnitude >= low) & !(magnitude >= high);
        }
        over += larger;
        memset(within + count, 0, (size_t)(CHUNK - count));
        int several = places_of(within, places);
        for (int k = 0; k < several; k++)
            inside[found++] = (int32_t)(bits_of(magnitude_of(row[at + places[k]])) - bits_of(low));
    }
    *above = over;
    return found;
}

/* --- election ----------------------------------------------------------------------------------------------------- */

/* Sums the entries of rows, (n, numel), that agree with the elected sign; with `divide`, over the sum of the weights of
 * those who agree where that comes to `least_divisor` or more. */
WIDE void disjoint_merge(const float *restrict rows, const float *restrict weights, int64_t n, int by_count,
                                int plus, int divide, float least_divisor, float *restrict out, int64_t numel) {
    float elected[CHUNK], total[CHUNK], divisor[CHUNK];
    for (int64_t at = 0; at < numel; at += CHUNK) {
        int count = (int)least(CHUNK, numel - at);
        for (int j = 0; j < count; j++) {
            elected[j] = by_count ? sign_of(rows[at + j]) : rows[at + j];
            /* Zero, and what is added to it keeps the sign of a zero of its own. */
            total[j] = -0.0f;
            divisor[j] = 0.0f;
        }
        for (int64_t i = 1; i < n; i++) {
            const float *row = rows + i * numel + at;
            for (int j = 0; j < count; j++)
                elected[j] += by_count ? sign_of(row[j]) : row[j];
        }
        for (int j = 0; j < count; j++)
            elected[j] = plus ? (elected[j] < 0 ? -1.0f : 1.0f) : sign_of(elected[j]);
        for (int64_t i = 0; i < n; i++) {
            const float *row = rows + i * numel + at;
            const float weight = weights[i];
            for (int j = 0; j < count; j++) {
                float folded = row[j] * elected[j];
                total[j] += folded < 0 ? 0.0f : folded;
                divisor[j] += folded > 0 ? weight : 0.0f;
            }
        }
        for (int j = 0; j < count; j++)
            total[j] *= elected[j];
        for (int j = 0; j < count && divide; j++)
            total[j] /= magnitude_of(divisor[j]) < least_divisor ? 1.0f : divisor[j];
        memcpy(out + at, total, (size_t)count * sizeof(float));
    }
}

/* --- sums over models ---------------------------------------------------------------------------------------------- */

/* Sums rows times their factors, in the order of the rows, products rounded before they are added. */
WIDE void weighted_sum(const float *const *restrict rows, const float *restrict factors, int64_t n,
                              float *restrict out, int64_t numel) {
    for (int64_t at = 0; at < numel; at += CHUNK) {
        int count = (int)least(CHUNK, numel - at);
        float *to = out + at;
        for (int64_t i = 0; i < n; i++) {
            const float *row = rows[i] + at;
            float factor = factors[i];
            if (i == 0)
                for (int j = 0; j < count; j++)
                    to[j] = row[j] * factor;
            else
                for (int j = 0; j < count; j++)
                    to[j] += row[j] * factor;
        }
    }
}

/* --- masks -------------------------------------------------------------------------------------------------------- */

static inline uint32_t word_of(uint32_t index, uint32_t first, uint32_t second) {
    uint32_t word = index ^ first;
    word ^= word >> 16;
    word *= 0x85EBCA6Bu;
    word ^= second;
    word ^= word >> 13;
    word *= 0xC2B2AE35u;
    return word ^ word >> 16;
}

/* Multiplies a row, or ones, with a random mask. key: the two halves of the shared words' key, then of the elements'
 * own. `start` is the first element's index in the tensor, in 32 bits. */
WIDE void draw(const float *restrict row, const uint32_t *restrict key, uint32_t start, uint32_t limit,
                      uint32_t rest, float *restrict out, int64_t numel) {
    uint32_t words[CHUNK / 4 + 1];
    uint8_t drawn[CHUNK + 4], tied[CHUNK];
    uint16_t places[CHUNK];
    for (int64_t at = 0; at < numel; at += CHUNK) {
        int count = (int)least(CHUNK, numel - at);
        uint32_t from = start + (uint32_t)at;
        for (int w = 0; w < CHUNK / 4 + 1; w++)
            words[w] = word_of(from / 4 + (uint32_t)w, key[0], key[1]);
        memcpy(drawn, words, sizeof drawn);
        const uint8_t *byte = drawn + from % 4;
        for (int j = 0; j < count; j++)
            out[at + j] = byte[j] < limit ? 1.0f : 0.0f;
        if (rest != 0) {
            for (int j = 0; j < count; j++)
                tied[j] = byte[j] == limit;
            memset(tied + count, 0, (size_t)(CHUNK - count));
            int ties = places_of(tied, places);
            for (int k = 0; k < ties; k++)
                out[at + places[k]] = word_of(from + places[k], key[2], key[3]) < rest ? 1.0f : 0.0f;
        }
        if (row != NULL)
            for (int j = 0; j < count; j++)
                out[at + j] *= row[at + j];
    }
}

/* --- sums over elements ------------------------------------------------------------------------------------------ */

/* Sums squares of one row, squares of another and products over runs of `length` elements, in float64, three numbers for
 * each run: element j of a run into lane j mod LANES, whatever the processor, and then the lanes in order. */
WIDE void chunk_gram(const float *restrict one, const float *restrict other, int64_t length, double *restrict sums,
                      int64_t numel) {
    enum { LANES = 32 };
    for (int64_t start = 0; start < numel; start += length, sums += 3) {
        int64_t end = least(start + length, numel);
        double squares[LANES] = {0}, others[LANES] = {0}, products[LANES] = {0};
        for (int64_t at = start; at < end; at += LANES) {
            int count = (int)least(LANES, end - at);
            for (int j = 0; j < count; j++) {
                double p = one[at + j], q = other[at + j];
                squares[j] += p * p;
                others[j] += q * q;
                products[j] += p * q;
            }
        }
        sums[0] = sums[1] = sums[2] = 0;
        for (int j = 0; j < LANES; j++) {
            sums[0] += squares[j];
            sums[1] += others[j];
            sums[2] += products[j];
        }
    }
}

/* --- checksums ---------------------------------------------------------------------------------------------------- */

/* Sums the words of four bytes of each page, each times the key of its place, modulo 2^64. */
WIDE void page_sums(const uint8_t *restrict bytes, const uint32_t *restrict keys, int64_t words,
                           uint64_t *restrict sums, int64_t pages) {
    for (int64_t page = 0; page < pages; page++, bytes += 4 * words) {
        uint64_t sum = 0;
        for (int64_t i = 0; i < words; i++) {
            uint32_t word;
            memcpy(&word, bytes + 4 * i, sizeof word);
            sum += (uint64_t)word * keys[i];
        }
        sums[page] = sum;
    }
}

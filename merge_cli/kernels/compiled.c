/* Kernels of merge_cli on the CPU, each in one pass where torch takes several.
 *
 * Every function but gram gives the bits that the same steps give in torch: the same operations in the same order, none
 * fused into another (-ffp-contract=off), sums over models in the order of the models.
 */

#include <Python.h>
#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "masks and dtypes are written for little-endian machines"
#endif

#define EXPORT __attribute__((visibility("default")))
#if defined(__x86_64__) && defined(__GLIBC__)
/* The processor's widest registers are chosen when the library is loaded. */
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif

/* To be counted up with every change of what a function is given or gives; compiled.py holds the same number. */
EXPORT const int32_t version = 2;

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

static inline uint16_t to_bfloat16(float number) {
    uint32_t bits = bits_of(number), rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

static inline uint16_t to_float16(float number) {
    uint32_t bits = bits_of(number) & 0x7FFFFFFFu, sign = bits_of(number) >> 16 & 0x8000u;
    /* Below 2**-14: adding one half lets the processor round to multiples of 2**-24, in the lowest bits. */
    uint32_t subnormal = bits_of(number_of(bits) + 0.5f) - bits_of(0.5f);
    uint32_t normal = (bits - (112u << 23) + 0xFFFu + (bits >> 13 & 1)) >> 13;
    uint32_t beyond = bits > 0x7F800000u ? 0x7E00u : 0x7C00u;
    uint32_t rounded = bits < 113u << 23 ? subnormal : bits < 143u << 23 ? normal : beyond;
    return (uint16_t)(rounded | sign);
}

/* Converts rows, (n, numel), to float32, subtracts `less` where it is given, and counts in `wrong` how many numbers of
 * each row were not finite. */
#define WIDEN(DTYPE)                                                                                                   \
    EXPORT WIDE void widen_##DTYPE(const uint16_t *restrict stored, const float *restrict less, float *restrict out,   \
                                   int64_t *restrict wrong, int64_t n, int64_t numel) {                                \
        memset(wrong, 0, (size_t)n * sizeof *wrong);                                                                   \
        for (int64_t at = 0; at < numel; at += CHUNK) {                                                                \
            int count = (int)least(CHUNK, numel - at);                                                                 \
            for (int64_t i = 0; i < n; i++) {                                                                          \
                const uint16_t *from = stored + i * numel + at;                                                        \
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

WIDEN(bfloat16)
WIDEN(float16)

/* The same for rows that are float32 already, in place. */
EXPORT WIDE void widen_float32(float *restrict rows, const float *restrict less, int64_t *restrict wrong, int64_t n,
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
#define NARROW(DTYPE, EXPONENT)                                                                                        \
    EXPORT WIDE int64_t narrow_##DTYPE(const float *restrict numbers, uint16_t *restrict out, int64_t numel) {         \
        int64_t wrong = 0;                                                                                             \
        for (int64_t at = 0; at < numel; at += CHUNK) {                                                                \
            int count = (int)least(CHUNK, numel - at);                                                                 \
            uint32_t here = 0;                                                                                         \
            for (int j = 0; j < count; j++) {                                                                          \
                uint16_t rounded = to_##DTYPE(numbers[at + j]);                                                        \
                here += (rounded & EXPONENT) == EXPONENT;                                                              \
                out[at + j] = rounded;                                                                                 \
            }                                                                                                          \
            wrong += here;                                                                                             \
        }                                                                                                              \
        return wrong;                                                                                                  \
    }

NARROW(bfloat16, 0x7F80)
NARROW(float16, 0x7C00)

/* --- trimming ----------------------------------------------------------------------------------------------------- */

/* Zeroes what is no larger in magnitude than `bound`, and multiplies. */
EXPORT WIDE void trim(const float *restrict row, float bound, float factor, float *restrict out, int64_t numel) {
    for (int64_t j = 0; j < numel; j++) {
        out[j] = (magnitude_of(row[j]) <= bound ? 0.0f : row[j]) * factor;
    }
}

/* Writes the magnitudes in [low, high) as patterns less that of `low`, and returns how many; counts those from `high`
 * on. `high` is NaN where there is no upper end. */
EXPORT WIDE int64_t look(const float *restrict row, float low, float high, int32_t *restrict inside,
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
EXPORT WIDE void disjoint_merge(const float *restrict rows, const float *restrict weights, int64_t n, int by_count,
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
EXPORT WIDE void weighted_sum(const float *const *restrict rows, const float *restrict factors, int64_t n,
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
EXPORT WIDE void drop(const float *restrict row, const uint32_t *restrict key, uint32_t start, uint32_t limit,
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

/* Sums squares of one row, squares of another and products over runs of `grain` elements, in float64, three numbers for
 * each run: element j of a run into lane j mod LANES, whatever the processor, and then the lanes in order. */
EXPORT WIDE void gram(const float *restrict one, const float *restrict other, int64_t grain, double *restrict sums,
                      int64_t numel) {
    enum { LANES = 32 };
    for (int64_t start = 0; start < numel; start += grain, sums += 3) {
        int64_t end = least(start + grain, numel);
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
EXPORT WIDE void page_sums(const uint8_t *restrict bytes, const uint32_t *restrict keys, int64_t words,
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

/* --- the module, which is empty: the functions are called by their addresses ---------------------------------------- */

static struct PyModuleDef module = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "_merge_cli_kernels", .m_size = -1};

PyMODINIT_FUNC PyInit__merge_cli_kernels(void) { return PyModule_Create(&module); }

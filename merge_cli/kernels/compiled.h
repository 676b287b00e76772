/* The compiled kernels, as C and Python both see them: compiled.c is checked against this file by the compiler, and
 * build.py makes the calls from Python of it. Nothing but declarations, so that cffi can read it. Rows are (n, numel).
 */

#include <stdint.h>

/* To be counted up with every change of what a function is given or gives; compiled.py holds the same number. */
enum { KERNELS_VERSION = 3 };

void to_float32_bfloat16(const uint16_t *stored, const float *less, float *out, int64_t *wrong, int64_t n,
                         int64_t numel);
void to_float32_float16(const uint16_t *stored, const float *less, float *out, int64_t *wrong, int64_t n,
                        int64_t numel);
void to_float32_float8_e4m3fn(const uint8_t *stored, const float *less, float *out, int64_t *wrong, int64_t n,
                              int64_t numel);
void to_float32_float8_e5m2(const uint8_t *stored, const float *less, float *out, int64_t *wrong, int64_t n,
                            int64_t numel);
void to_float32_float64(const double *stored, const float *less, float *out, int64_t *wrong, int64_t n, int64_t numel);
void to_float32_float32(float *rows, const float *less, int64_t *wrong, int64_t n, int64_t numel);

int64_t from_float32_bfloat16(const float *numbers, uint16_t *out, int64_t numel);
int64_t from_float32_float16(const float *numbers, uint16_t *out, int64_t numel);
int64_t from_float32_float8_e4m3fn(const float *numbers, uint8_t *out, int64_t numel);
int64_t from_float32_float8_e5m2(const float *numbers, uint8_t *out, int64_t numel);

void zero_below(const float *row, float bound, float factor, float *out, int64_t numel);
int64_t in_bracket(const float *row, float low, float high, int32_t *inside, int64_t *above, int64_t numel);
void weighted_sum(const float *const *rows, const float *factors, int64_t n, float *out, int64_t numel);
void disjoint_merge(const float *rows, const float *weights, int64_t n, int by_count, int plus, int divide,
                    float least_divisor, float *out, int64_t numel);
void draw(const float *row, const uint32_t *key, uint32_t start, uint32_t limit, uint32_t rest, float *out,
          int64_t numel);
void chunk_gram(const float *one, const float *other, int64_t length, double *sums, int64_t numel);
void page_sums(const uint8_t *bytes, const uint32_t *keys, int64_t words, uint64_t *sums, int64_t pages);

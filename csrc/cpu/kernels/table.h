// The kernels that are compiled once an instruction set, and what the partitioning code passes to them. Plain data
// only: nothing here has a body, so nothing compiled with wide instructions can be picked by the linker for everyone.
#pragma once

#include "prunefast/prunefast.h"

namespace prunefast {

constexpr int64_t kTile = 1024;       // floats of one operand at a time: all operands stay in the first-level cache
constexpr int64_t kTilePad = 64 + 4;  // room for whole quads before and after a tile
constexpr int64_t kBlockRows = 48;      // rows of x that are screened at a time: a panel in the cache is used that often
constexpr int64_t kTurnedMost = 255;    // rows of y up to which turned scores are faster (measured at 64 columns)
constexpr int64_t kPackedColumns = 32;  // rows packed for screening are padded to whole registers of every format
constexpr int64_t kHammingRows = 4;  // query hashes compared with a register of others while it is loaded
constexpr int32_t kFinalists = 4;     // rows of y that are compared in float64 without closer bounds first
constexpr int64_t kForeseen = 4;      // panels
constexpr int64_t kScoreGroups = 64;  // disjoint groups of columns whose best lower bounds give the first threshold

struct PhiloxKey {
  uint64_t seed;
  uint32_t stream;
  int64_t position;
};

enum class Layout {
  flat,         // every operand of a sample is dense in the same order: one run of elements
  row_major,    // rows (channel, y), x along a row
  pixel_major,  // rows (y, channel): channels_last touches each cache line once
};

// An image job: `layout` says what begin and end of a chunk count, elements (flat) or rows.
struct ImagePlan {
  prunefast_image_args images;
  Layout layout;
  int64_t noise_channels;  // channels of the output that carry noise: all but coordinates
};

struct LossPlan {
  ImagePlan base;
  prunefast_image pred, gradient;
  bool streamed;  // a dense gradient goes past the caches, which it does not fit; its runs are aligned to registers
};

struct NoisePlan {
  ImagePlan base;
  prunefast_image out;
  int64_t out_channels;
};

// Rows of y packed for screening in panels: `width` rows side by side for each word of a row.
struct Panels {
  const uint32_t* values;  // [panels][words][width]
  const float* start;      // [panels * width]: -|y|^2 / 2, what a score starts from; -inf in the padding
  const float* scale;      // integers: the value of one step of a row of y
  const int32_t* offset;   // integers: what the sum of products starts from
  int64_t words, width;
};

// What packing a row tells: squared norms of the centred row and of what the format took from it (both added in
// float32: `columns` u covers the rounding), the value of one step, and the `offset` above for a row of y.
struct PackedRow {
  float squared, lost, scale;
  int32_t offset;
};

// A format for screening: `per_word` neighbouring dimensions in each 32-bit word of a row.
struct Screening {
  int64_t per_word;
  bool exact;            // keeps every value: float32
  int64_t most_columns;  // longer rows could overflow the sum
  int64_t least_others;  // rows of y from which the products saved outweigh the conversion (measured at 64 columns)
  // x - mean, zeros up to a multiple of kPackedColumns dimensions; `other` for a row of y.
  PackedRow (*pack)(const float* x, const float* mean, int64_t columns, bool other, uint32_t* out);
  // The same of rows of x, whose packed rows lie row_stride words apart.
  void (*pack_rows)(const float* x, int64_t x_stride, int64_t rows, const float* mean, int64_t columns, uint32_t* out,
                    int64_t row_stride, PackedRow* about);
  // Packed rows (row_stride words apart) and their scales against panels [first, last): scores (score_stride apart) and
  // the largest score of each panel (peak_stride apart).
  void (*scores)(const uint32_t* x, const float* scale, int64_t rows, int64_t row_stride, const Panels* panels,
                 int64_t first, int64_t last, float* out, int64_t score_stride, float* peaks, int64_t peak_stride);
  // The scores of at most kBlockRows packed rows against `others` rows of y in panels of Kernels::turned_others: those
  // against row j of y at out[j * kBlockRows], the last panel whole. `scale` has kBlockRows values; `room`, for as many
  // packed rows, and `out` begin on a cache line.
  void (*turned_scores)(const uint32_t* x, const float* scale, int64_t rows, int64_t row_stride, const Panels* panels,
                        int64_t others, uint32_t* room, float* out);
};

// Rows of y that may be the nearest, ascending; none: there are more than fit.
struct Finalists {
  int32_t count;
  int32_t column[kFinalists + 1];
};

// The error of column i's score is at most gain[i] norm + lost[i] rest + fixed[i].
struct ScoreBounds {
  const float *gain, *lost, *fixed;
  float norm, rest;
};

// Distances in float32 up to ratio * least + slack may be the least in truth.
struct FewBound {
  float ratio, slack;
};

// One sample of a group norm, a value a channel: h = (x - mean) p + q; gradient of x = dh p + ((x - mean) e + f).
struct NormChannels {
  const float *mean, *p, *q, *e, *f;
};

struct Kernels {
  const char* name;
  int64_t vector;  // floats in a register
  int64_t turned_others;
  // Whole quads, `quads` rounded up to a multiple of `vector` in `out`: words, uniforms or normals.
  void (*quad_words)(uint32_t* out, int64_t first_quad, int64_t quads, PhiloxKey key);
  void (*quad_uniforms)(float* out, int64_t first_quad, int64_t quads, PhiloxKey key);
  void (*quad_normals)(float* out, int64_t first_quad, int64_t quads, PhiloxKey key);
  void (*store)(const float* tile, const prunefast_image* image, int64_t offset, int64_t stride, int64_t count);
  double (*loss_chunk)(const LossPlan* plan, int64_t sample, int64_t begin, int64_t end, float a, float b, float scale);
  void (*noise_chunk)(const NoisePlan* plan, int64_t sample, int64_t begin, int64_t end, float alpha, float sigma);

  double (*centre)(const float* x, const float* mean, int64_t columns, float* out);  // out = x - mean; its squared norm
  // Scans of the scores of one row. kScoreGroups running maxima of the lower bounds of a panel:
  void (*best_lower_bounds)(const float* score, int64_t width, const ScoreBounds* bounds, float* groups);
  // Of rows of scores: the columns whose upper bound reaches the row's largest lower bound. `peak` is the largest score
  // of each panel; all columns of panel p have the bound i = p.
  void (*finalists)(const float* score, int64_t score_stride, const float* peak, int64_t peak_stride, int64_t rows,
                    int64_t panels, int64_t width, const ScoreBounds* bounds, const float* norm, const float* rest,
                    Finalists* out);
  // Of turned scores: the rows of y whose upper bound reaches the largest lower bound of a row of x. Each `width` rows
  // of y share the bound of their panel.
  void (*turned_finalists)(const float* score, int64_t others, int64_t rows, int64_t width, const ScoreBounds* panels,
                           const float* norm, const float* rest, Finalists* out);
  // Of rows of x: the rows of y whose distance in float32 is within `bound` of the least; y is [columns][others].
  // `room` is for vector (columns + others) floats, on a cache line.
  void (*few_finalists)(const float* x, int64_t x_stride, int64_t rows, const float* y, int64_t others, int64_t columns,
                        const FewBound* bound, float* room, Finalists* out);
  // Columns of one panel whose upper bound reaches the threshold.
  int64_t (*collect)(const float* score, int64_t width, const ScoreBounds* bounds, float threshold, int32_t* hits);
  // |x - y|^2 in float32, its relative error within (columns + 3) u.
  float (*quick_squared)(const float* x, const float* y, int64_t columns);
  double (*direct_squared)(const float* x, const float* y, int64_t columns);
  double (*direct_inner)(const float* x, const float* y, int64_t columns);
  // The nearest of the finalists of each row of x that has any; the rows that follow are fetched meanwhile.
  void (*decide)(const float* x, int64_t x_stride, int64_t rows, const float* y, int64_t y_stride, int64_t columns,
                 bool inner, const Finalists* finalists, int64_t* index, float* distance);
  void (*add_row)(double* sum, const float* x, int64_t columns);

  // Float64 products over panels of `panel` numbers. add_products: tile[i][j] += sum over d of left[d][i] right[d][j].
  // substitute: solves block `column` (factor_rows columns) of values [column][row of the panel] by those in [begin, end),
  // the factor being [column][factor_rows]; the last of them, end == column, ends it and adds its squares to `squared`.
  int64_t panel, factor_rows;
  void (*add_products)(double* tile, const double* left, const double* right, int64_t depth);
  void (*substitute)(double* values, const double* factor, int64_t begin, int64_t end, int64_t column, bool last,
                     double* squared);

  // Pixels of `channels` values side by side, the first at `offset` of each operand and at the start of `kept`, the
  // gradient of h (or null); channel arrays are padded to whole registers. Sums are added to.
  void (*norm_origin)(int32_t dtype, const void* x, int64_t channels, float* origin);
  void (*norm_sums)(int32_t dtype, const void* x, int64_t offset, int64_t pixels, int64_t channels, const float* origin,
                    double* sum, double* square);
  void (*norm_apply)(int32_t dtype, bool silu, const void* x, void* y, int64_t offset, int64_t pixels, int64_t channels,
                     const NormChannels* c);
  void (*norm_gradient_sums)(int32_t dtype, bool silu, const void* x, const void* dy, float* kept, int64_t offset,
                             int64_t pixels, int64_t channels, const NormChannels* c, double* sum, double* moment);
  void (*norm_gradient)(int32_t dtype, bool silu, const void* x, const void* dy, const float* kept, void* dx,
                        int64_t offset, int64_t pixels, int64_t channels, const NormChannels* c);

  // `rows` (1 or kHammingRows) of x against `count` hashes of y, word w of hash j at y[w y_stride + j]: writes
  // r count + j of each pair within `threshold` bits, ascending in j for a row, and returns their number.
  int64_t (*hamming_scan)(const uint64_t* x, int64_t rows, int64_t words, const uint64_t* y, int64_t y_stride,
                          int64_t count, int32_t threshold, int32_t* hits);
};

// The same scan for processors that count the bits of a register in one instruction.
struct PopcountKernels {
  decltype(Kernels::hamming_scan) hamming_scan;
};

constexpr int64_t kConvChannels = 32;  // channels of a convolution come in multiples of this
constexpr int64_t kConvColumns = 64;   // output channels that a block of tiles is multiplied for at a time

struct ConvShape {
  int64_t samples, height, width, inputs, outputs;
};

// Pieces of a 3 x 3 convolution by Winograd's method, see avx512conv.cpp. Every transformed array has 16 planes,
// `plane` elements apart. Tiles are numbered row by row, sample by sample; those past the last are zeros.
struct ConvKernels {
  // 16 filters [panel * 16, + 16) of float32 weight [outputs, 3, 3, inputs] as words [depth / 2][16];
  // `backward`: of the convolution that gives the gradient of the input.
  void (*filters)(const float* weight, int64_t inputs, bool backward, int64_t depth, int64_t panel, uint32_t* out,
                  int64_t plane);
  void (*input)(const ConvShape* s, const uint16_t* x, const uint16_t* zeros, int64_t first, int64_t count,
                uint16_t* out, int64_t plane);  // [count][inputs]
  // One plane: [rows][channels] times `panels` (2 or 4) panels of filters, to rows of kConvColumns.
  void (*products)(const uint16_t* v, int64_t rows, int64_t channels, const uint32_t* filters, int64_t panels,
                   float* out);
  void (*output)(const ConvShape* s, const float* products, int64_t plane, int64_t first, int64_t count, int64_t panels,
                 const float* bias, uint16_t* y, int64_t from);
  // Words of two neighbouring tiles, [channels / 16][room][16]: of the input, and of the gradient of the output.
  void (*input_pairs)(const ConvShape* s, const uint16_t* x, const uint16_t* zeros, int64_t first, int64_t pairs,
                      int64_t room, uint32_t* out, int64_t plane);
  void (*gradient_pairs)(const ConvShape* s, const uint16_t* dy, const uint16_t* zeros, int64_t first, int64_t pairs,
                         int64_t room, uint32_t* out, int64_t plane);
  // One plane: 16 output channels by `panels` (2 or 4) panels of inputs, summed over pairs, to rows of kConvColumns.
  void (*pair_products)(const uint32_t* w, const uint32_t* v, int64_t panels, int64_t pairs, int64_t room, bool add,
                        float* out);
  // One output channel and `count` of its inputs: [3, 3], `inputs` elements apart.
  void (*filter_gradient)(const float* products, int64_t plane, int64_t count, int64_t inputs, float* out);
};
extern const ConvKernels kernels_avx512conv;

extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

// Formats by speed, the last one float32, then null.
extern const Screening* const screenings_baseline[];
extern const Screening* const screenings_avx2[];
extern const Screening* const screenings_avx512[];
extern const Screening* const screenings_avx512bf16[];
extern const PopcountKernels kernels_avx512popcnt;

const Kernels& kernels();  // the chosen set; cpu/features.cpp
const Screening* const* screenings();
const ConvKernels* conv_kernels();          // null where the processor or the chosen set has none
const PopcountKernels* popcount_kernels();  // null where the processor or the chosen set has none

}  // namespace prunefast

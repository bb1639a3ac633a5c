// Exact nearest rows by screening and proof.
//
// 1. y is centred on its mean and packed once, with -|y|^2 / 2 as the value a score starts from; the largest score
//    x . y - |y|^2 / 2 is the nearest row, and |x|^2 is never needed.
// 2. A block of rows of x is centred, packed and scored against a few panels at a time, so that scores stay in the
//    second-level cache. The product is taken in the coarsest format of the instruction set that tells the rows of y
//    apart: int8, int16 or bfloat16, else float32.
// 3. Every score carries a bound of its error. With T the k-th largest lower bound so far, only rows of y whose upper
//    bound reaches T can be among the k nearest; they are kept as candidates. Panels whose largest score cannot reach T
//    are passed over. Candidates of a coarse format get closer bounds, and T with them, by float32 differences.
// 4. What is left is decided and reported by direct float64 differences, ties to the smallest index. So the answer is
//    that of comparing all direct distances, whatever the instruction set, the number of threads, the offset or the
//    spread of the data.
// For the nearest of a few rows of y, float32 differences to all of them take the place of 1 to 3 (kernels/few.h).
//
// Error bound of a float32 score, u = 2^-24: a dot product of n terms added one after the other onto the start value
// errs by at most (n + 1) u (|x||y| + |y|^2 / 2) to first order; rounding the centred values adds u (2 |x||y| + |y|^2).
// Both lie within (n + 8) u (|x||y| + |y|^2 / 2). Products below the normal range add at most n 2^-126.
// Screening with X and Y for x and y adds |x . y - X . Y| = |x . (y - Y) + (x - X) . Y| <= |x||y - Y| + |x - X||Y|, with
// both residuals measured. Products of two bfloat16 are exact in float32, and the instruction rounds at most once a
// term; it takes subnormals for zero, which n 2^-126 covers, four times over. Sums of integers are exact; their
// conversion and two scales round three times.
// A float32 sum of squared differences errs by at most (n + 3) u of itself, whatever the order of its terms, so that
// (|x|^2 - |x - y|^2) / 2 bounds a score to about (n + 8) u |x|^2, far closer than int8 does. Among a few rows of y the
// truly nearest has one of at most (1 + (n + 8) u) / (1 - (n + 8) u) times the least, and what underflow may add.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "aligned.h"
#include "kernels/table.h"
#include "parallel.h"
#include "status.h"

namespace prunefast {
namespace {

constexpr int64_t kRows = kBlockRows;
constexpr int64_t kBlocks = 8;           // blocks in a row that a thread takes, the next fetched while one is worked on,
constexpr int64_t kTasks = 16;           // where that leaves each thread so many turns
constexpr int64_t kChunkColumns = 1024;  // scores of a block at a time: 48 x 1024 floats = 192 KB
constexpr double kNormLimit = 1e18;      // above it a product may overflow float32: such data is compared directly
constexpr int64_t kProbedRows = 12;      // rows that decide whether a format tells enough apart
constexpr int64_t kSpare = 8;            // candidates beyond k: usual ones, and all that uncertified search looks at
constexpr int64_t kFewOthers = 24;       // rows of y that are all compared in float32 (measured at 64 columns)
constexpr int64_t kGroupedK = kScoreGroups / 2;  // up to this k the group maxima give a useful first threshold
constexpr int64_t kSummedValues = 1 << 21;       // rows that are assigned, then summed while the caches hold them: 8 MB
constexpr int64_t kMeanColumns = 64;             // columns of one block of the mean: four cache lines of a row

constexpr float kLowest = -std::numeric_limits<float>::infinity();

struct Packed {
  std::vector<float> few;  // [columns][others]: y has so few rows that nothing is screened; else empty
  FewBound few_bound = {};
  const Screening* format = nullptr;
  std::vector<float> start, scale, mean;
  std::vector<int32_t> offset;
  Aligned<uint32_t> values;
  // Error bound of a score: gain |x| + lost |what packing took from x| + fixed; a value a row of y, and their maxima a
  // panel.
  std::vector<float> gain, lost, fixed, panel_gain, panel_lost, panel_fixed;
  Panels panels = {};
  bool turned = false;  // panels are those of turned_scores
  int64_t row_words = 0, padded = 0, width = 0;  // padded to panels of `width` rows that share a bound
  std::atomic<bool> direct{false};  // nothing to screen out (every row is an answer), or values too large for it
};

float round_up(double value) {
  return std::nextafter(static_cast<float>(value), std::numeric_limits<float>::infinity());
}

// Bounds of a double, in float32.
float above(double value) { return static_cast<float>(value + 0x1p-23 * std::fabs(value)); }
float below(double value) { return static_cast<float>(value - 0x1p-23 * std::fabs(value)); }

// Relative rounding of a float32 sum of `columns` terms, and what products below the normal range may add.
double rounding_unit(int64_t columns) { return 1.001 * 0x1p-24 * static_cast<double>(columns + 8); }
double underflow_of(int64_t columns) { return 4 * static_cast<double>(columns) * 0x1p-126; }

bool every_row_answers(const prunefast_topk_args& args) {
  return args.others - (args.exclude_self ? 1 : 0) <= args.k || rounding_unit(args.columns) > 0.01;
}

bool few_rows(const prunefast_topk_args& args) {
  return args.others <= kFewOthers && args.k == 1 && !args.inner && !args.exclude_self &&
         rounding_unit(args.columns) <= 0.01;
}

void turn_few(const prunefast_topk_args& args, Packed& packed) {
  packed.few.resize(static_cast<size_t>(args.columns * args.others));
  for (int64_t j = 0; j < args.others; ++j)
    for (int64_t d = 0; d < args.columns; ++d) packed.few[d * args.others + j] = args.y[j * args.y_row_stride + d];
  const double unit = rounding_unit(args.columns);  // 2^-21 more for the rounding of the limit itself
  packed.few_bound = {round_up((1 + unit) / (1 - unit) * (1 + 0x1p-21)), round_up(4 * underflow_of(args.columns))};
}

// Float64 sums of the rows in their order, whatever the number of threads.
std::vector<float> mean_of(const prunefast_topk_args& args, const Kernels& set) {
  std::vector<float> mean(args.columns, 0.0f);
  if (args.inner) return mean;
  std::vector<double> sum(args.columns, 0.0);
  const int64_t blocks = (args.columns + kMeanColumns - 1) / kMeanColumns;
  parallel_blocks(blocks, threads_for(args.threads, blocks), [&](int64_t block, int) {
    const int64_t first = block * kMeanColumns, width = std::min(kMeanColumns, args.columns - first);
    for (int64_t j = 0; j < args.others; ++j) set.add_row(&sum[first], args.y + j * args.y_row_stride + first, width);
  });
  for (int64_t d = 0; d < args.columns; ++d) mean[d] = static_cast<float>(sum[d] / static_cast<double>(args.others));
  return mean;
}

// One row of y into its panel, and its bound.
void pack_row(const prunefast_topk_args& args, const Kernels& set, int64_t j, float* row, uint32_t* words,
              Packed& packed) {
  const double unit = rounding_unit(args.columns);
  const float* y = args.y + j * args.y_row_stride;
  const double squared = set.centre(y, packed.mean.data(), args.columns, row);
  if (!(squared < kNormLimit * kNormLimit)) packed.direct.store(true);
  const double norm = std::sqrt(squared), half = args.inner ? 0.0 : squared / 2;
  const PackedRow about = packed.format->pack(y, packed.mean.data(), args.columns, true, words);
  packed.start[j] = static_cast<float>(-half);
  packed.scale[j] = about.scale;
  packed.offset[j] = about.offset;
  const int64_t width = packed.panels.width, count = packed.panels.words;
  uint32_t* target = packed.values.get() + j / width * width * count + j % width;
  for (int64_t word = 0; word < count; ++word) target[word * width] = words[word];
  packed.fixed[j] = round_up(unit * half + underflow_of(args.columns));
  if (packed.format->exact) {
    packed.gain[j] = round_up(unit * norm);
    return;
  }
  // 2^-126: squares below float32; rounding of a sum of `columns` squares is within 2 unit
  const double rest = std::sqrt(about.lost * (1 + 2 * unit) + 0x1p-126) * (1 + unit);
  packed.gain[j] = round_up(1.01 * unit * norm + rest);
  packed.lost[j] = round_up((norm + rest) * (1 + unit));
}

void pack(const prunefast_topk_args& args, const Kernels& set, const Screening& format, Packed& packed) {
  const int64_t columns = args.columns, others = args.others;
  packed.format = &format;
  // Four registers a panel are fastest; two where that pads with at least a twelfth less.
  const auto rounded = [=](int64_t to) { return (others + to * set.vector - 1) / (to * set.vector) * to * set.vector; };
  const int64_t registers = others <= set.vector ? 1 : (12 * rounded(2) <= 11 * rounded(4) ? 2 : 4);
  const int64_t width = registers * set.vector, words = (columns + format.per_word - 1) / format.per_word;
  packed.padded = (others + width - 1) / width * width;
  packed.row_words = (columns + kPackedColumns - 1) / kPackedColumns * kPackedColumns / format.per_word;
  packed.width = width;
  packed.turned = args.k == 1 && others <= kTurnedMost;
  packed.values = aligned<uint32_t>(packed.padded * words);
  std::fill_n(packed.values.get(), packed.padded * words, 0u);
  packed.start.assign(packed.padded, kLowest);
  packed.offset.assign(packed.padded, 0);
  for (auto* value : {&packed.scale, &packed.gain, &packed.lost, &packed.fixed}) value->assign(packed.padded, 0.0f);
  packed.panels = {packed.values.get(), packed.start.data(), packed.scale.data(), packed.offset.data(), words,
                   packed.turned ? set.turned_others : width};
  const int64_t panels = packed.padded / width;
  const int threads = threads_for(args.threads, panels);
  std::vector<std::vector<float>> row(threads, std::vector<float>(columns));
  std::vector<std::vector<uint32_t>> packed_row(threads, std::vector<uint32_t>(packed.row_words));
  parallel_blocks(panels, threads, [&](int64_t panel, int thread) {
    for (int64_t j = panel * width; j < std::min(others, (panel + 1) * width); ++j)
      pack_row(args, set, j, row[thread].data(), packed_row[thread].data(), packed);
  });
  const auto largest = [&](const std::vector<float>& values, std::vector<float>& most) {
    most.clear();
    for (int64_t p = 0; p < packed.padded; p += width)
      most.push_back(*std::max_element(&values[p], &values[p] + width));
  };
  largest(packed.gain, packed.panel_gain);
  largest(packed.lost, packed.panel_lost);
  largest(packed.fixed, packed.panel_fixed);
}

struct Candidate {
  int64_t index;
  float upper, lower;
  bool refined;
};

struct Neighbour {
  double distance;
  int64_t index;
  bool operator<(const Neighbour& other) const {
    return distance < other.distance || (distance == other.distance && index < other.index);
  }
};

// What one thread needs; allocated before the threads start.
struct alignas(128) Workspace {  // one a thread: none writes into a cache line of the next
  std::vector<float> row, peaks, bounds, values, groups;
  Aligned<float> scores, room;
  Aligned<uint32_t> words, turned;
  std::vector<int32_t> hits;
  std::vector<std::vector<Candidate>> candidates;
  std::vector<Neighbour> neighbours;
  int64_t collected = 0;  // candidates ever: how well the screening tells rows of y apart
};

// What a block of rows of x carries through the screening; `norm` and `lost` bound |x - mean| and what packing took from
// it.
struct Block {
  PackedRow about[kRows];
  float scale[kRows], norm[kRows], lost[kRows], threshold[kRows];
  Finalists finalists[kRows];

  bool screened(int64_t r) const { return about[r].squared < kNormLimit * kNormLimit; }
};

float kth_largest(std::vector<float>& values, int64_t k) {
  if (k == 1) return *std::max_element(values.begin(), values.end());
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<float>());
  return values[k - 1];
}

class Search {
 public:
  Search(const prunefast_topk_args& args, const Kernels& set, const Packed& packed)
      : args_(args),
        set_(set),
        packed_(packed),
        rank_(args.k),
        few_(!packed.few.empty()),
        direct_(packed.direct.load()),
        settles_(rank_ == 1 && (few_ || !direct_)),
        refines_(!direct_ && !args.inner && !packed.format->exact),
        norm_rounding_(0x1p-23f * static_cast<float>(args.columns + 16)),
        chunk_panels_(direct_ ? 0 : std::max<int64_t>(1, kChunkColumns / packed.width)) {}

  Workspace workspace() const {
    Workspace w;
    if (few_) w.room = aligned<float>(set_.vector * (args_.columns + args_.others));
    if (direct_) return w;
    w.words = aligned<uint32_t>(kRows * packed_.row_words);
    w.scores = aligned<float>(kRows * chunk_panels_ * packed_.width);
    w.peaks.resize(kRows * chunk_panels_);
    w.bounds.resize(chunk_panels_);
    w.hits.resize(packed_.width);
    if (packed_.turned) {
      w.turned = aligned<uint32_t>(kRows * packed_.row_words);
      w.row.assign(packed_.padded, kLowest);
    }
    w.candidates.resize(kRows);
    return w;
  }

  // False: a value of x is not finite.
  bool rows(int64_t first, int64_t last, Workspace& w) const {
    Block b;
    if (few_)
      set_.few_finalists(args_.x + first * args_.x_row_stride, args_.x_row_stride, last - first, packed_.few.data(),
                         args_.others, args_.columns, &packed_.few_bound, w.room.get(), b.finalists);
    else if (!direct_)
      screen(first, last, b, w);
    if (settles_)
      set_.decide(args_.x + first * args_.x_row_stride, args_.x_row_stride, last - first, args_.y, args_.y_row_stride,
                  args_.columns, args_.inner, b.finalists, args_.index + first, args_.distance + first);
    for (int64_t r = 0; r < last - first; ++r) {
      if (settles_ && b.finalists[r].count) continue;
      w.neighbours.clear();
      if (!direct_ && b.screened(r)) {
        for (const Candidate& c : w.candidates[r]) w.neighbours.push_back({distance(first + r, c.index), c.index});
      } else {
        if (!finite(first + r)) return false;
        for (int64_t j = 0; j < args_.others; ++j)
          if (!(args_.exclude_self && j == first + r)) w.neighbours.push_back({distance(first + r, j), j});
      }
      report(first + r, w.neighbours);
    }
    return true;
  }

  // Whether few rows of y become candidates of rows spread over x. A candidate costs as much as the scores of dozens of
  // rows of y, so that the next format, half as fast, is worth it beyond that.
  bool tells_apart(Workspace& w) const {
    const int64_t probed = std::min(args_.rows, kProbedRows), limit = 2 * rank_ + kSpare + args_.others / 32;
    for (int64_t i = 0; i < probed; ++i) {
      Block b;
      const int64_t row = i * args_.rows / probed;
      screen(row, row + 1, b, w);
    }
    return w.collected <= probed * limit;
  }

 private:
  void screen(int64_t first, int64_t last, Block& b, Workspace& w) const {
    const Screening& format = *packed_.format;
    const int64_t count = last - first, width = packed_.width, panels = packed_.padded / width;
    const int64_t words = packed_.row_words, stride = chunk_panels_ * width;
    format.pack_rows(args_.x + first * args_.x_row_stride, args_.x_row_stride, count, packed_.mean.data(),
                     args_.columns, w.words.get(), words, b.about);
    for (int64_t r = 0; r < count; ++r) {
      b.scale[r] = b.about[r].scale;
      b.norm[r] = std::sqrt(b.about[r].squared * (1 + norm_rounding_) + 0x1p-126f);
      b.lost[r] = std::sqrt(b.about[r].lost * (1 + norm_rounding_) + 0x1p-126f);
      b.threshold[r] = kLowest;
      b.finalists[r].count = 0;
    }
    for (int64_t r = 0; r < count; ++r) w.candidates[r].clear();
    if (packed_.turned) return settle(first, count, b, w);
    for (int64_t from = 0; from < panels; from += chunk_panels_) {
      const int64_t to = std::min(from + chunk_panels_, panels);
      float* scores = w.scores.get();
      float* peaks = w.peaks.data();
      format.scores(w.words.get(), b.scale, count, words, &packed_.panels, from, to, scores, stride, peaks,
                    chunk_panels_);
      for (int64_t r = 0; args_.exclude_self && r < count; ++r) {
        const int64_t own = first + r - from * width;
        if (own < 0 || own >= (to - from) * width) continue;
        float* panel = scores + r * stride + own / width * width;
        scores[r * stride + own] = kLowest;
        peaks[r * chunk_panels_ + own / width] = *std::max_element(panel, panel + width);
      }
      if (settles_ && panels <= chunk_panels_) {
        const ScoreBounds most = panel_bounds();
        set_.finalists(scores, stride, peaks, chunk_panels_, count, panels, width, &most, b.norm, b.lost, b.finalists);
      }
      for (int64_t r = 0; r < count; ++r) {
        if (!b.screened(r)) b.finalists[r].count = 0;
        if (b.finalists[r].count || !b.screened(r)) continue;
        bounds(b, r, from, to - from, w);
        scan(first + r, scores + r * stride, peaks + r * chunk_panels_, from, to - from, b, r, w);
        tighten(first + r, b, r, to < panels, w);
        if (settles_ && to == panels) b.finalists[r] = few_of(w.candidates[r]);
      }
    }
  }

  // The nearest by turned scores. Rows of x of which the bounds leave more than a few are looked at as others are.
  void settle(int64_t first, int64_t count, Block& b, Workspace& w) const {
    const int64_t width = packed_.width, panels = packed_.padded / width;
    float* scores = w.scores.get();
    packed_.format->turned_scores(w.words.get(), b.scale, count, packed_.row_words, &packed_.panels, args_.others,
                                  w.turned.get(), scores);
    for (int64_t r = 0; args_.exclude_self && r < count; ++r) scores[(first + r) * kRows + r] = kLowest;
    const ScoreBounds most = panel_bounds();
    set_.turned_finalists(scores, args_.others, count, width, &most, b.norm, b.lost, b.finalists);
    for (int64_t r = 0; r < count; ++r) {
      if (!b.screened(r)) b.finalists[r].count = 0;
      if (b.finalists[r].count || !b.screened(r)) continue;
      for (int64_t j = 0; j < args_.others; ++j) w.row[j] = scores[j * kRows + r];
      for (int64_t p = 0; p < panels; ++p) w.peaks[p] = *std::max_element(&w.row[p * width], &w.row[p * width] + width);
      bounds(b, r, 0, panels, w);
      scan(first + r, w.row.data(), w.peaks.data(), 0, panels, b, r, w);
      tighten(first + r, b, r, false, w);
      b.finalists[r] = few_of(w.candidates[r]);
    }
  }

  static Finalists few_of(const std::vector<Candidate>& candidates) {
    Finalists few = {};
    if (candidates.size() > kFinalists) return few;
    for (const Candidate& c : candidates) few.column[few.count++] = static_cast<int32_t>(c.index);
    return few;
  }

  void bounds(const Block& b, int64_t r, int64_t from, int64_t panels, Workspace& w) const {
    const float* gain = packed_.panel_gain.data() + from;
    const float* lost = packed_.panel_lost.data() + from;
    const float* fixed = packed_.panel_fixed.data() + from;
    for (int64_t p = 0; p < panels; ++p) w.bounds[p] = gain[p] * b.norm[r] + (lost[p] * b.lost[r] + fixed[p]);
  }

  ScoreBounds panel_bounds() const {
    return {packed_.panel_gain.data(), packed_.panel_lost.data(), packed_.panel_fixed.data(), 0, 0};
  }

  ScoreBounds own_bounds(const Block& b, int64_t r, int64_t column) const {
    return {&packed_.gain[column], &packed_.lost[column], &packed_.fixed[column], b.norm[r], b.lost[r]};
  }

  // Only panels whose largest score, with its bound, reaches the threshold are looked into.
  void scan(int64_t i, const float* score, const float* peak, int64_t from, int64_t panels, Block& b, int64_t r,
            Workspace& w) const {
    std::vector<Candidate>& candidates = w.candidates[r];
    const int64_t width = packed_.width;
    const float* bound = w.bounds.data();
    if (rank_ == 1) {
      int64_t best = 0;
      for (int64_t p = 1; p < panels; ++p) best = peak[p] - bound[p] > peak[best] - bound[best] ? p : best;
      const ScoreBounds own = own_bounds(b, r, (from + best) * width);
      w.groups.assign(kScoreGroups, kLowest);
      set_.best_lower_bounds(score + best * width, width, &own, w.groups.data());
      b.threshold[r] = std::max(b.threshold[r], kth_largest(w.groups, 1));
    } else if (rank_ <= kGroupedK && static_cast<int64_t>(candidates.size()) < rank_) {
      w.groups.assign(kScoreGroups, kLowest);
      for (int64_t p = 0; p < panels; ++p) {
        const ScoreBounds own = own_bounds(b, r, (from + p) * width);
        set_.best_lower_bounds(score + p * width, width, &own, w.groups.data() + p * width % kScoreGroups);
      }
      b.threshold[r] = std::max(b.threshold[r], kth_largest(w.groups, rank_));
    }
    int64_t room = 2 * rank_ + 16;
    for (int64_t p = 0; p < panels; ++p) {
      if (!(peak[p] + bound[p] >= b.threshold[r])) continue;
      const float* mine = score + p * width;
      const ScoreBounds own = own_bounds(b, r, (from + p) * width);
      const int64_t found = set_.collect(mine, width, &own, b.threshold[r], w.hits.data());
      for (int64_t h = 0; h < found; ++h) {
        const float value = mine[w.hits[h]];
        if (value == kLowest) continue;  // padding, or the row itself
        const int64_t j = (from + p) * width + w.hits[h];
        const float error = packed_.gain[j] * b.norm[r] + (packed_.lost[j] * b.lost[r] + packed_.fixed[j]);
        candidates.push_back({j, value + error, value - error, !refines_});
        ++w.collected;
      }
      if (static_cast<int64_t>(candidates.size()) > room) {
        tighten(i, b, r, true, w);
        room = 2 * static_cast<int64_t>(candidates.size()) + 16;
      }
    }
  }

  // Raises the threshold to the k-th largest lower bound and drops what cannot reach it; first with the bounds of the
  // screening, then, where more than an answer is left or scores are yet `to_come`, with those of float32 differences.
  void tighten(int64_t i, Block& b, int64_t r, bool to_come, Workspace& w) const {
    std::vector<Candidate>& candidates = w.candidates[r];
    raise(b, r, w);
    if (!refines_ || static_cast<int64_t>(candidates.size()) < rank_ + (to_come ? 0 : 1)) return;
    bool refined = false;
    for (Candidate& c : candidates) {
      if (c.refined) continue;
      refine(i, b.about[r].squared, c);
      refined = true;
    }
    if (refined) raise(b, r, w);
  }

  void raise(Block& b, int64_t r, Workspace& w) const {
    std::vector<Candidate>& candidates = w.candidates[r];
    if (static_cast<int64_t>(candidates.size()) < rank_) return;
    w.values.clear();
    for (const Candidate& c : candidates) w.values.push_back(c.lower);
    b.threshold[r] = std::max(b.threshold[r], kth_largest(w.values, rank_));
    const float limit = b.threshold[r];
    candidates.erase(
        std::remove_if(candidates.begin(), candidates.end(), [=](const Candidate& c) { return c.upper < limit; }),
        candidates.end());
    const int64_t most = rank_ + kSpare;
    if (args_.certify || static_cast<int64_t>(candidates.size()) <= most) return;
    std::nth_element(candidates.begin(), candidates.begin() + most, candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return a.upper > b.upper; });
    candidates.resize(static_cast<size_t>(most));
  }

  // The score is (|x|^2 - |x - y|^2) / 2, both centred.
  void refine(int64_t i, float x_squared, Candidate& c) const {
    const double unit = rounding_unit(args_.columns), underflow = underflow_of(args_.columns);
    const double squared = set_.quick_squared(args_.x + i * args_.x_row_stride, args_.y + c.index * args_.y_row_stride,
                                              args_.columns);
    c.upper = std::min(c.upper, above((x_squared * (1.0 + norm_rounding_) - squared * (1 - unit)) / 2 + underflow));
    c.lower = std::max(c.lower, below((x_squared * (1.0 - norm_rounding_) - squared * (1 + unit)) / 2 - underflow));
    c.refined = true;
  }

  bool finite(int64_t i) const {
    const float* x = args_.x + i * args_.x_row_stride;
    return std::all_of(x, x + args_.columns, [](float value) { return std::isfinite(value); });
  }

  double distance(int64_t i, int64_t j) const {
    const float* x = args_.x + i * args_.x_row_stride;
    const float* y = args_.y + j * args_.y_row_stride;
    return args_.inner ? -set_.direct_inner(x, y, args_.columns) : set_.direct_squared(x, y, args_.columns);
  }

  void report(int64_t i, std::vector<Neighbour>& neighbours) const {
    std::partial_sort(neighbours.begin(), neighbours.begin() + args_.k, neighbours.end());
    for (int64_t n = 0; n < args_.k; ++n) {
      args_.index[i * args_.k + n] = neighbours[n].index;
      args_.distance[i * args_.k + n] = static_cast<float>(neighbours[n].distance);
    }
  }

  const prunefast_topk_args& args_;
  const Kernels& set_;
  const Packed& packed_;
  const int64_t rank_;
  const bool few_, direct_, settles_, refines_;
  const float norm_rounding_;  // relative, of a squared norm added up in float32
  const int64_t chunk_panels_;
};

// Packs y in the fastest format that tells its rows apart; where none of the coarse ones does (rows of y closer to each
// other than its steps), float32 screens. The result is the same.
void choose(const prunefast_topk_args& args, const Kernels& set, Packed& packed) {
  if (few_rows(args)) turn_few(args, packed);
  packed.direct.store(few_rows(args) || every_row_answers(args));
  if (packed.direct.load()) return;
  packed.mean = mean_of(args, set);
  const Screening* const* format = screenings();
  for (; *format; ++format) {
    if (args.columns > (*format)->most_columns || args.others < (*format)->least_others) continue;
    pack(args, set, **format, packed);
    if (packed.direct.load() || (*format)->exact) return;
    const Search search(args, set, packed);
    Workspace w = search.workspace();
    if (search.tells_apart(w)) return;
  }
}

int32_t not_finite(const prunefast_topk_args& args) {
  for (int64_t i = 0; i < args.rows; ++i)
    for (int64_t d = 0; d < args.columns; ++d)
      if (!std::isfinite(args.x[i * args.x_row_stride + d]))
        return fail(PRUNEFAST_OUT_OF_RANGE, "x: the value at [%lld, %lld] is NaN or infinite; remove such rows first",
                    (long long)i, (long long)d);
  return PRUNEFAST_OK;
}

}  // namespace
}  // namespace prunefast

int32_t prunefast_topk(const prunefast_topk_args* arguments) {
  using namespace prunefast;
  return guarded([&]() -> int32_t {
    const prunefast_topk_args& args = *arguments;
    if (args.rows < 0 || args.columns < 1 || args.others < 1 || args.k < 1 ||
        args.k > args.others - (args.exclude_self ? 1 : 0) || (args.exclude_self && args.rows != args.others) ||
        (args.sums && args.k != 1))
      return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "topk: k must be 1 .. rows of y, and all sizes positive");
    if (!args.rows) return PRUNEFAST_OK;
    const Kernels& set = kernels();
    Packed packed;
    choose(args, set, packed);
    const Search search(args, set, packed);
    const int threads = threads_for(args.threads, (args.rows + kRows - 1) / kRows);
    std::vector<Workspace> workspaces(static_cast<size_t>(threads));
    for (Workspace& w : workspaces) w = search.workspace();
    std::atomic<bool> out_of_memory{false}, bad_value{false};
    const auto search_rows = [&](int64_t begin, int64_t end) {
      const int64_t task = kRows * std::clamp<int64_t>((end - begin) / (kTasks * threads * kRows), 1, kBlocks);
      parallel_blocks((end - begin + task - 1) / task, threads, [&](int64_t number, int thread) {
        const int64_t from = begin + number * task, to = std::min(end, from + task);
        try {
          for (int64_t first = from; first < to; first += kRows) {
            if (out_of_memory.load() || bad_value.load()) return;
            if (!search.rows(first, std::min(to, first + kRows), workspaces[static_cast<size_t>(thread)]))
              bad_value.store(true);
          }
        } catch (const std::bad_alloc&) {
          out_of_memory.store(true);
        }
      });
      if (out_of_memory.load()) throw std::bad_alloc();
    };
    const int64_t part = args.sums ? std::max(kSummedValues / args.columns, kRows * threads) : args.rows;
    for (int64_t begin = 0; begin < args.rows && !bad_value.load(); begin += part) {
      const int64_t end = std::min(args.rows, begin + part);
      search_rows(begin, end);
      if (!args.sums || bad_value.load()) continue;
      const int32_t status = prunefast_class_sums(args.x + begin * args.x_row_stride, end - begin, args.columns,
                                                  args.x_row_stride, args.index + begin, args.others, args.sums,
                                                  args.counts, true, args.threads);
      if (status != PRUNEFAST_OK) return status;
    }
    return bad_value.load() ? not_finite(args) : static_cast<int32_t>(PRUNEFAST_OK);
  });
}

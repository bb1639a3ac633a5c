// Exact nearest rows by screening and proof.
//
// 1. y is centred on its mean and packed once, with -|y|^2 / 2 as the value a score starts from; the largest score
//    x . y - |y|^2 / 2 is the nearest row, and |x|^2 is never needed.
// 2. A block of rows of x is centred and scored against a few panels at a time, so that scores stay in the second-level
//    cache. Where the processor multiplies bfloat16, the product is taken in it.
// 3. Every score carries a bound of its error. With T the k-th largest lower bound so far, only rows of y whose upper
//    bound reaches T can be among the k nearest; they are kept as candidates. Panels whose largest score cannot reach T
//    are passed over.
// 4. Candidates are decided and reported by direct float64 differences, ties to the smallest index. So the answer is
//    that of comparing all direct distances, whatever the instruction set, the number of threads, the offset or the
//    spread of the data.
//
// Error bound of a float32 score, u = 2^-24: a dot product of n terms added one after the other onto the start value
// errs by at most (n + 1) u (|x||y| + |y|^2 / 2) to first order; rounding the centred values adds u (2 |x||y| + |y|^2).
// Both lie within (n + 8) u (|x||y| + |y|^2 / 2). Products below the normal range add at most n 2^-126.
// Screening in bfloat16, X = bf16(x) and Y = bf16(y), adds |x . y - X . Y| = |x . (y - Y) + (x - X) . Y| <=
// |x||y - Y| + |x - X||Y|, with both residuals measured. Products of two bfloat16 are exact in float32, and the
// instruction rounds at most once a term; it takes subnormals for zero, which n 2^-126 covers, four times over.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/table.h"
#include "parallel.h"
#include "status.h"

namespace prunefast {
namespace {

constexpr int64_t kRows = 48;            // rows of x in a block: a panel in the cache is used that often
constexpr int64_t kChunkColumns = 1024;  // scores of a block at a time: 48 x 1024 floats = 192 KB
constexpr double kNormLimit = 1e18;      // above it a product may overflow float32: such data is compared directly
constexpr int64_t kProbedRows = 12;      // rows that decide between bfloat16 and float32 screening
constexpr int64_t kUncertified = 8;      // candidates beyond k when nothing is to be proven
constexpr int64_t kGroupedK = kScoreGroups / 2;  // up to this k the group maxima give a useful first threshold

constexpr float kLowest = -std::numeric_limits<float>::infinity();

struct Packed {
  std::vector<float> values, start, mean;
  std::vector<uint32_t> narrow_values;
  // Error bound of a score: gain |x| + lost |x - bfloat16(x)| + fixed; a value a row of y, and their maxima a panel.
  std::vector<float> gain, lost, fixed, panel_gain, panel_lost, panel_fixed;
  Panels panels = {};
  NarrowPanels narrow = {};
  int64_t width = 1, padded = 0;
  bool direct;  // nothing to screen out (every row is an answer), or values too large for it
};

float round_up(double value) {
  return std::nextafter(static_cast<float>(value), std::numeric_limits<float>::infinity());
}

// Words of a row in bfloat16, up to whole registers.
int64_t pair_stride(int64_t columns) { return (columns + 31) / 32 * 16; }

Packed pack(const prunefast_topk_args& args, const Kernels& set, const NarrowKernels* narrow) {
  Packed packed;
  const int64_t columns = args.columns, others = args.others;
  packed.direct = others - (args.exclude_self ? 1 : 0) <= args.k;
  if (packed.direct) return packed;
  packed.mean.assign(columns, 0.0f);
  if (!args.inner) {
    std::vector<double> sum(columns, 0.0);
    for (int64_t j = 0; j < others; ++j) set.add_row(sum.data(), args.y + j * args.y_row_stride, columns);
    for (int64_t d = 0; d < columns; ++d) packed.mean[d] = static_cast<float>(sum[d] / static_cast<double>(others));
  }
  // Four registers a panel are fastest; two where that pads with at least a twelfth less.
  const auto rounded = [=](int64_t to) { return (others + to * set.vector - 1) / (to * set.vector) * to * set.vector; };
  const int64_t registers = others <= set.vector ? 1 : (12 * rounded(2) <= 11 * rounded(4) ? 2 : 4);
  const int64_t width = registers * set.vector, pairs = (columns + 1) / 2;
  packed.width = width;
  packed.padded = (others + width - 1) / width * width;
  if (narrow)
    packed.narrow_values.assign(packed.padded * pairs, 0);
  else
    packed.values.assign(packed.padded * columns, 0.0f);
  packed.start.assign(packed.padded, kLowest);
  for (auto* bound : {&packed.gain, &packed.lost, &packed.fixed}) bound->assign(packed.padded, 0.0f);
  const double unit = args.certify ? 1.001 * 0x1p-24 * static_cast<double>(columns + 8) : 0.0;
  const double underflow = args.certify ? 4 * static_cast<double>(columns) * 0x1p-126 : 0.0;
  if (unit > 0.01) packed.direct = true;  // the first-order bound does not hold for rows that long
  std::vector<float> row(columns);
  std::vector<uint32_t> words(pair_stride(columns));
  for (int64_t j = 0; j < others; ++j) {
    const double squared = set.centre(args.y + j * args.y_row_stride, packed.mean.data(), columns, row.data());
    if (!(squared < kNormLimit * kNormLimit)) packed.direct = true;
    const double norm = std::sqrt(squared), half = args.inner ? 0.0 : squared / 2;
    packed.start[j] = static_cast<float>(-half);
    packed.gain[j] = round_up(unit * norm);
    packed.fixed[j] = round_up(unit * half + underflow);
    if (!narrow) {
      float* target = packed.values.data() + j / width * width * columns + j % width;
      for (int64_t d = 0; d < columns; ++d) target[d * width] = row[d];
      continue;
    }
    float about, lost;
    narrow->narrow(args.y + j * args.y_row_stride, packed.mean.data(), columns, words.data(), &about, &lost);
    uint32_t* target = packed.narrow_values.data() + j / width * width * pairs + j % width;
    for (int64_t d = 0; d < pairs; ++d) target[d * width] = words[d];
    if (!args.certify) continue;
    // 2^-126: squares below float32; rounding of a sum of `columns` squares is within 2 unit
    const double rest = std::sqrt(lost * (1 + 2 * unit) + 0x1p-126) * (1 + unit);
    packed.gain[j] = round_up(1.01 * unit * norm + rest);
    packed.lost[j] = round_up((norm + rest) * (1 + unit));
  }
  for (int64_t p = 0; p < packed.padded; p += width) {
    const auto most = [=](const std::vector<float>& v) { return *std::max_element(&v[p], &v[p] + width); };
    packed.panel_gain.push_back(most(packed.gain));
    packed.panel_lost.push_back(most(packed.lost));
    packed.panel_fixed.push_back(most(packed.fixed));
  }
  packed.panels = {packed.values.data(), packed.start.data(), columns, width};
  packed.narrow = {packed.narrow_values.data(), packed.start.data(), pairs, width};
  return packed;
}

struct Candidate {
  int64_t index;
  float upper, lower;
};

struct Neighbour {
  double distance;
  int64_t index;
  bool operator<(const Neighbour& other) const {
    return distance < other.distance || (distance == other.distance && index < other.index);
  }
};

// What one thread needs; allocated before the threads start.
struct Workspace {
  std::vector<float> centred, scores, peaks, bounds, values, groups;
  std::vector<uint32_t> narrow;
  std::vector<int32_t> hits;
  std::vector<std::vector<Candidate>> candidates;
  std::vector<Neighbour> neighbours;
};

// What the bound of a row's scores needs of it.
struct RowNorms {
  float norm, lost, threshold;
  bool screened;
};

float kth_largest(std::vector<float>& values, int64_t k) {
  if (k == 1) return *std::max_element(values.begin(), values.end());
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<float>());
  return values[k - 1];
}

class Search {
 public:
  Search(const prunefast_topk_args& args, const Kernels& set, const NarrowKernels* narrow, const Packed& packed)
      : args_(args),
        set_(set),
        narrow_(narrow),
        packed_(packed),
        rank_(args.k + (args.certify ? 0 : kUncertified)),
        chunk_panels_(std::max<int64_t>(1, kChunkColumns / packed.width)) {}

  Workspace workspace() const {
    Workspace w;
    if (packed_.direct) return w;
    if (narrow_)
      w.narrow.resize(kRows * pair_stride(args_.columns));
    else
      w.centred.resize(kRows * args_.columns);
    w.scores.resize(kRows * chunk_panels_ * packed_.width);
    w.peaks.resize(kRows * chunk_panels_);
    w.bounds.resize(chunk_panels_);
    w.hits.resize(packed_.width);
    w.candidates.resize(kRows);
    return w;
  }

  void rows(int64_t first, int64_t last, Workspace& w) const {
    RowNorms norms[kRows];
    if (!packed_.direct) screen(first, last, norms, w);
    for (int64_t r = 0; r < last - first; ++r) {
      if (!packed_.direct && norms[r].screened && args_.k == 1 && w.candidates[r].size() == 1) {  // most rows
        const int64_t j = w.candidates[r][0].index;
        args_.index[first + r] = j;
        args_.distance[first + r] = static_cast<float>(distance(first + r, j));
        continue;
      }
      w.neighbours.clear();
      if (!packed_.direct && norms[r].screened) {
        for (const Candidate& c : w.candidates[r]) w.neighbours.push_back({distance(first + r, c.index), c.index});
      } else {
        for (int64_t j = 0; j < args_.others; ++j)
          if (!(args_.exclude_self && j == first + r)) w.neighbours.push_back({distance(first + r, j), j});
      }
      report(first + r, w.neighbours);
    }
  }

  // Candidates of rows [first, last): how well the screening tells them apart.
  int64_t count_candidates(int64_t first, int64_t last, Workspace& w) const {
    RowNorms norms[kRows];
    screen(first, last, norms, w);
    int64_t count = 0;
    for (int64_t r = 0; r < last - first; ++r) count += static_cast<int64_t>(w.candidates[r].size());
    return count;
  }

 private:
  void screen(int64_t first, int64_t last, RowNorms* norms, Workspace& w) const {
    const int64_t count = last - first, width = packed_.width, panels = packed_.padded / width;
    const int64_t pairs = pair_stride(args_.columns), stride = chunk_panels_ * width;
    const float rounding = 1 + 0x1p-23f * static_cast<float>(args_.columns + 16);  // of a norm added up in float32
    for (int64_t r = 0; r < count; ++r) {
      const float* x = args_.x + (first + r) * args_.x_row_stride;
      float squared, lost = 0;
      if (narrow_)
        narrow_->narrow(x, packed_.mean.data(), args_.columns, w.narrow.data() + r * pairs, &squared, &lost);
      else
        squared = set_.centre_row(x, packed_.mean.data(), args_.columns, w.centred.data() + r * args_.columns);
      norms[r].screened = squared < kNormLimit * kNormLimit;
      norms[r].norm = std::sqrt(squared * rounding + 0x1p-126f);
      norms[r].lost = std::sqrt(lost * rounding + 0x1p-126f);
      norms[r].threshold = kLowest;
      w.candidates[r].clear();
    }
    for (int64_t from = 0; from < panels; from += chunk_panels_) {
      const int64_t to = std::min(from + chunk_panels_, panels);
      if (narrow_)
        narrow_->scores(w.narrow.data(), count, pairs, &packed_.narrow, from, to, w.scores.data(), stride,
                        w.peaks.data(), chunk_panels_);
      else
        set_.scores(w.centred.data(), count, args_.columns, &packed_.panels, from, to, w.scores.data(), stride,
                    w.peaks.data(), chunk_panels_);
      for (int64_t r = 0; r < count; ++r) {
        if (!norms[r].screened) continue;
        float* score = w.scores.data() + r * stride;
        float* peak = w.peaks.data() + r * chunk_panels_;
        const int64_t own = first + r - from * width;
        if (args_.exclude_self && own >= 0 && own < (to - from) * width) {
          score[own] = kLowest;
          float* panel = score + own / width * width;
          peak[own / width] = *std::max_element(panel, panel + width);
        }
        scan(score, peak, from, to - from, norms[r], w.candidates[r], w);
      }
    }
    for (int64_t r = 0; r < count; ++r) tighten(w.candidates[r], &norms[r].threshold, w);
  }

  // Only panels whose largest score, with its bound, reaches the threshold are looked into.
  void scan(const float* score, const float* peak, int64_t from, int64_t panels, RowNorms& row,
            std::vector<Candidate>& candidates, Workspace& w) const {
    const int64_t width = packed_.width;
    float* bound = w.bounds.data();
    const float* gain = packed_.panel_gain.data() + from;
    const float* lost = packed_.panel_lost.data() + from;
    const float* fixed = packed_.panel_fixed.data() + from;
    for (int64_t p = 0; p < panels; ++p) bound[p] = gain[p] * row.norm + (lost[p] * row.lost + fixed[p]);
    if (rank_ == 1) {
      for (int64_t p = 0; p < panels; ++p) row.threshold = std::max(row.threshold, peak[p] - bound[p]);
    } else if (rank_ <= kGroupedK && static_cast<int64_t>(candidates.size()) < rank_) {
      w.groups.assign(kScoreGroups, kLowest);
      set_.best_lower_bounds(score, panels, width, bound, w.groups.data());
      row.threshold = std::max(row.threshold, kth_largest(w.groups, rank_));
    }
    for (int64_t p = 0; p < panels; ++p) {
      if (!(peak[p] + bound[p] >= row.threshold)) continue;
      const float* mine = score + p * width;
      const int64_t found = set_.collect(mine, width, bound[p], row.threshold, w.hits.data());
      for (int64_t h = 0; h < found; ++h) {
        const float value = mine[w.hits[h]];
        if (value == kLowest) continue;  // padding, or the row itself
        const int64_t j = (from + p) * width + w.hits[h];
        const float own = packed_.gain[j] * row.norm + (packed_.lost[j] * row.lost + packed_.fixed[j]);
        candidates.push_back({j, value + own, value - own});
      }
      if (static_cast<int64_t>(candidates.size()) > 2 * rank_ + 16) tighten(candidates, &row.threshold, w);
    }
  }

  // Raises the threshold to the k-th largest lower bound and drops what cannot reach it.
  void tighten(std::vector<Candidate>& candidates, float* threshold, Workspace& w) const {
    if (static_cast<int64_t>(candidates.size()) <= rank_) return;
    w.values.clear();
    for (const Candidate& c : candidates) w.values.push_back(c.lower);
    *threshold = std::max(*threshold, kth_largest(w.values, rank_));
    const float limit = *threshold;
    candidates.erase(
        std::remove_if(candidates.begin(), candidates.end(), [=](const Candidate& c) { return c.upper < limit; }),
        candidates.end());
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
  const NarrowKernels* narrow_;
  const Packed& packed_;
  const int64_t rank_, chunk_panels_;
};

// Whether the first rows keep few candidates when screened in bfloat16. Where it does not pay (rows of y closer to each
// other than bfloat16 can tell), float32 screens; the result is the same.
bool tells_apart(const prunefast_topk_args& args, const Kernels& set, const NarrowKernels& narrow,
                 const Packed& packed) {
  const Search search(args, set, &narrow, packed);
  Workspace w = search.workspace();
  const int64_t rows = std::min(args.rows, kProbedRows), limit = 2 * args.k + kUncertified + args.others / 100;
  return search.count_candidates(0, rows, w) <= rows * limit;
}

}  // namespace
}  // namespace prunefast

int32_t prunefast_topk(const prunefast_topk_args* arguments) {
  using namespace prunefast;
  return guarded([&]() -> int32_t {
    const prunefast_topk_args& args = *arguments;
    if (args.rows < 0 || args.columns < 1 || args.others < 1 || args.k < 1 ||
        args.k > args.others - (args.exclude_self ? 1 : 0) || (args.exclude_self && args.rows != args.others))
      return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "topk: k must be 1 .. rows of y, and all sizes positive");
    const Kernels& set = kernels();
    const NarrowKernels* narrow = narrow_kernels();
    Packed packed = pack(args, set, narrow);
    if (narrow && !packed.direct && args.rows && !tells_apart(args, set, *narrow, packed)) {
      narrow = nullptr;
      packed = pack(args, set, nullptr);
    }
    const Search search(args, set, narrow, packed);
    const int64_t blocks = (args.rows + kRows - 1) / kRows;
    const int threads = threads_for(args.threads, blocks);
    std::vector<Workspace> workspaces(static_cast<size_t>(threads));
    for (Workspace& w : workspaces) w = search.workspace();
    std::atomic<bool> out_of_memory{false};
    parallel_blocks(blocks, threads, [&](int64_t block, int thread) {
      try {
        if (!out_of_memory.load())
          search.rows(block * kRows, std::min(args.rows, (block + 1) * kRows), workspaces[static_cast<size_t>(thread)]);
      } catch (const std::bad_alloc&) {
        out_of_memory.store(true);
      }
    });
    if (out_of_memory.load()) throw std::bad_alloc();
    return PRUNEFAST_OK;
  });
}

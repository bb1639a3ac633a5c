// Exact nearest rows by screening and proof.
//
// 1. y is centred on its mean and packed once, with -|y|^2 / 2 as the value a score starts from; the largest score
//    x . y - |y|^2 / 2 is the nearest row, and |x|^2 is never needed.
// 2. A block of rows of x is centred and scored against a few panels at a time, so that scores stay in the second-level
// cache.
// 3. Every score carries a bound of its rounding error. With T the k-th largest lower bound so far, only rows of y
// whose upper
//    bound reaches T can be among the k nearest; they are kept as candidates.
// 4. Candidates are decided and reported by direct float64 differences, ties to the smallest index. So the answer is
// that of
//    comparing all direct distances, whatever the instruction set, the number of threads, the offset or the spread of
//    the data.
//
// Rounding bound of a score, u = 2^-24: a dot product of n terms added one after the other onto the start value errs by
// at most (n + 1) u (|x||y| + |y|^2 / 2) to first order; rounding the centred values adds u (2 |x||y| + |y|^2). Both
// lie within (n + 8) u (|x||y| + |y|^2 / 2). Products below the normal range add at most n 2^-126.
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
constexpr int64_t kUncertified = 8;      // candidates beyond k when nothing is to be proven
constexpr int64_t kGroupedK = kScoreGroups / 2;  // up to this k the group maxima give a useful first threshold

constexpr float kLowest = -std::numeric_limits<float>::infinity();

struct Packed {
  std::vector<float> values, start, slack, slack_self, mean;
  Panels panels = {};
  int64_t padded;
  bool direct;  // nothing to screen out (every row is an answer), or values too large for it
};

float round_up(double value) {
  return std::nextafter(static_cast<float>(value), std::numeric_limits<float>::infinity());
}

Packed pack(const prunefast_topk_args& args, const Kernels& set) {
  Packed packed;
  const int64_t columns = args.columns, others = args.others;
  packed.direct = others - (args.exclude_self ? 1 : 0) <= args.k;
  packed.padded = 0;
  if (packed.direct) return packed;
  packed.mean.assign(columns, 0.0f);
  if (!args.inner) {
    std::vector<double> sum(columns, 0.0);
    for (int64_t j = 0; j < others; ++j) set.add_row(sum.data(), args.y + j * args.y_row_stride, columns);
    for (int64_t d = 0; d < columns; ++d) packed.mean[d] = static_cast<float>(sum[d] / static_cast<double>(others));
  }
  const int64_t registers = others <= set.vector ? 1 : (others <= 2 * set.vector ? 2 : 4);
  const int64_t width = registers * set.vector;
  packed.padded = (others + width - 1) / width * width;
  packed.values.assign(packed.padded * columns, 0.0f);
  packed.start.assign(packed.padded, kLowest);
  packed.slack.assign(packed.padded, 0.0f);
  packed.slack_self.assign(packed.padded, 0.0f);
  const double unit = args.certify ? 1.001 * 0x1p-24 * static_cast<double>(columns + 8) : 0.0;
  const double underflow = args.certify ? static_cast<double>(columns) * 0x1p-126 : 0.0;
  if (unit > 0.01) packed.direct = true;  // the first-order bound does not hold for rows that long
  std::vector<float> row(columns);
  for (int64_t j = 0; j < others; ++j) {
    const double squared = set.centre(args.y + j * args.y_row_stride, packed.mean.data(), columns, row.data());
    if (!(squared < kNormLimit * kNormLimit)) packed.direct = true;
    float* target = packed.values.data() + j / width * width * columns + j % width;
    for (int64_t d = 0; d < columns; ++d) target[d * width] = row[d];
    const double half = args.inner ? 0.0 : squared / 2;
    packed.start[j] = static_cast<float>(-half);
    packed.slack[j] = round_up(unit * std::sqrt(squared));
    packed.slack_self[j] = round_up(unit * half + underflow);
  }
  packed.panels = {
      packed.values.data(), packed.start.data(), packed.slack.data(), packed.slack_self.data(), columns, width};
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
  std::vector<float> centred, scores, values;
  std::vector<int32_t> hits;
  std::vector<std::vector<Candidate>> candidates;
  std::vector<Neighbour> neighbours;
  std::vector<float> groups;
};

float kth_largest(std::vector<float>& values, int64_t k) {
  if (k == 1) return *std::max_element(values.begin(), values.end());
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<float>());
  return values[k - 1];
}

class Search {
 public:
  Search(const prunefast_topk_args& args, const Kernels& set, const Packed& packed)
      : args_(args), set_(set), packed_(packed), rank_(args.k + (args.certify ? 0 : kUncertified)) {}

  Workspace workspace() const {
    Workspace w;
    if (packed_.direct) return w;
    w.centred.resize(kRows * args_.columns);
    w.scores.resize(kRows * (kChunkColumns + packed_.panels.width));
    w.hits.resize(kChunkColumns + packed_.panels.width);
    w.candidates.resize(kRows);
    return w;
  }

  void rows(int64_t first, int64_t last, Workspace& w) const {
    float norm[kRows], threshold[kRows];
    const int64_t count = last - first, width = packed_.direct ? 1 : packed_.panels.width;
    const int64_t chunk = kChunkColumns / width * width;
    bool screened[kRows];
    for (int64_t r = 0; r < count; ++r) {
      screened[r] = false;
      if (packed_.direct) continue;
      const double squared = set_.centre(args_.x + (first + r) * args_.x_row_stride, packed_.mean.data(), args_.columns,
                                         w.centred.data() + r * args_.columns);
      norm[r] = round_up(std::sqrt(squared));
      threshold[r] = kLowest;
      screened[r] = squared < kNormLimit * kNormLimit;
      w.candidates[r].clear();
    }
    const int64_t stride = chunk + width;
    for (int64_t from = 0; !packed_.direct && from < packed_.padded; from += chunk) {
      const int64_t size = std::min(chunk, packed_.padded - from);
      set_.scores(w.centred.data(), count, args_.columns, &packed_.panels, from / width, (from + size) / width,
                  w.scores.data(), stride);
      for (int64_t r = 0; r < count; ++r) {
        if (!screened[r]) continue;
        float* score = w.scores.data() + r * stride;
        const int64_t own = first + r - from;
        if (args_.exclude_self && own >= 0 && own < size) score[own] = kLowest;
        scan(score, from, size, norm[r], &threshold[r], w.candidates[r], w);
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      w.neighbours.clear();
      if (screened[r]) {
        tighten(w.candidates[r], &threshold[r], w);
        for (const Candidate& c : w.candidates[r]) w.neighbours.push_back({distance(first + r, c.index), c.index});
      } else {
        for (int64_t j = 0; j < args_.others; ++j)
          if (!(args_.exclude_self && j == first + r)) w.neighbours.push_back({distance(first + r, j), j});
      }
      report(first + r, w.neighbours);
    }
  }

 private:
  void scan(const float* score, int64_t from, int64_t size, float norm, float* threshold,
            std::vector<Candidate>& candidates, Workspace& w) const {
    const float* slack = packed_.slack.data() + from;
    const float* slack_self = packed_.slack_self.data() + from;
    if (rank_ <= kGroupedK) {
      w.groups.assign(kScoreGroups, kLowest);
      set_.best_lower_bounds(score, slack, slack_self, norm, size, w.groups.data());
      *threshold = std::max(*threshold, kth_largest(w.groups, rank_));
    }
    const int64_t found = set_.collect(score, slack, slack_self, norm, size, *threshold, w.hits.data());
    for (int64_t h = 0; h < found; ++h) {
      const int64_t j = w.hits[h];
      if (score[j] == kLowest) continue;  // padding, or the row itself
      const float bound = slack[j] * norm + slack_self[j];
      candidates.push_back({from + j, score[j] + bound, score[j] - bound});
    }
    if (static_cast<int64_t>(candidates.size()) > 2 * rank_ + kScoreGroups) tighten(candidates, threshold, w);
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
  const Packed& packed_;
  const int64_t rank_;
};

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
    const Packed packed = pack(args, set);
    const Search search(args, set, packed);
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

// All pairs of hashes within a number of bits.
//
// Two ways to the same pairs, chosen by their estimated cost:
// - comparing every pair, a register of rows at a time: 100,000 hashes of 64 bits are 5 10^9 pairs, a fraction of a
//   second;
// - multi-index hashing (Norouzi, Punjani, Fleet, "Fast exact search in Hamming space with multi-index hashing", IEEE
//   TPAMI 2014): of m chunks of 16 bits at least one differs in at most r = threshold / m bits, so that only rows that
//   share a chunk but for r bits are compared. Rows are sorted by each chunk in turn, and the rows of one value compared
//   with those of each value within r bits. A pair that several chunks find counts for the first of them.
//
// Rows of y lie word by word when they are compared, so that neighbours fill a register.
#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

#include "kernels/table.h"
#include "parallel.h"
#include "status.h"

namespace prunefast {
namespace {

constexpr int64_t kBlock = 64;     // rows handed out at a time
constexpr int64_t kSlice = 4096;   // rows of y compared with a whole block before the next: 32 KB a word
constexpr int64_t kChunkBits = 16, kValues = 1 << kChunkBits, kChunksPerWord = 64 / kChunkBits;
constexpr int64_t kFewestRows = 4096;  // below, comparing every pair takes milliseconds
constexpr int kMostFlips = 2;          // beyond, probes cost more than they save
constexpr int64_t kValuesInBlock = 64;
// In units of comparing a pair in a full register: looking at a run, a pair in one, sorting a row by a chunk.
constexpr double kProbeCost = 200, kRunPairCost = 16, kSortCost = 100;

int32_t bits_between(const uint64_t* x, const uint64_t* y, int64_t words) {
  int32_t bits = 0;
  for (int64_t w = 0; w < words; ++w) bits += __builtin_popcountll(x[w] ^ y[w]);
  return bits;
}

struct Hit {
  int64_t index;
  int32_t distance;
};

// Rows sorted by one chunk, then by row: the rows of a value of the chunk lie side by side.
struct Sorted {
  std::vector<int64_t> start;    // [kValues + 1]: where each value's rows begin
  std::vector<int64_t> row;      // [rows]
  std::vector<uint64_t> hashes;  // in that order; word by word, or hash by hash
};

int64_t chunk_of(const uint64_t* hash, int64_t c) {
  return static_cast<int64_t>(hash[c / kChunksPerWord] >> (c % kChunksPerWord * kChunkBits)) & (kValues - 1);
}

class Join {
 public:
  explicit Join(const prunefast_hamming_args& args)
      : args_(args),
        self_(args.y == nullptr),
        rows_(args.last - args.first),
        others_(self_ ? args.rows : args.others),
        y_(self_ ? args.x : args.y),
        chunks_(args.words * kChunksPerWord),
        radius_(args.threshold / chunks_),
        scan_(popcount_kernels() ? popcount_kernels()->hamming_scan : kernels().hamming_scan),
        found_(static_cast<size_t>(rows_)) {
    std::fill(args.counts, args.counts + rows_, 0);
  }

  void run() {
    if (worth_probing())
      probe();
    else
      compare();
    if (out_of_memory_.load()) throw std::bad_alloc();
    *args_.total = total_.load();
  }

  void write() {
    int64_t at = 0;
    for (std::vector<Hit>& row : found_) {
      std::sort(row.begin(), row.end(), [](const Hit& a, const Hit& b) { return a.index < b.index; });
      for (const Hit& hit : row) {
        args_.index[at] = hit.index;
        args_.distance[at++] = hit.distance;
      }
    }
  }

 private:
  const uint64_t* x(int64_t i) const { return args_.x + i * args_.words; }
  const uint64_t* y(int64_t j) const { return y_ + j * args_.words; }

  // Whether probing beats comparing every pair; fills flips_.
  bool worth_probing() {
    if (others_ < kFewestRows || rows_ < 1 || radius_ > kMostFlips) return false;
    flips_ = {0};
    for (int64_t a = 0; radius_ >= 1 && a < kChunkBits; ++a) flips_.push_back(int64_t{1} << a);
    for (int64_t a = 0; radius_ >= 2 && a < kChunkBits; ++a)
      for (int64_t b = 0; b < a; ++b) flips_.push_back(int64_t{1} << a | int64_t{1} << b);
    const double pairs = static_cast<double>(rows_) * static_cast<double>(others_) / (self_ ? 2 : 1);
    const double probes = static_cast<double>(std::min(rows_, kValues) * chunks_) * static_cast<double>(flips_.size());
    double cost = probes * kProbeCost + static_cast<double>((rows_ + others_) * chunks_) * kSortCost;
    std::vector<int64_t> of_x(kValues), of_y(kValues);
    for (int64_t c = 0; c < chunks_ && cost < pairs; ++c) {
      std::fill(of_x.begin(), of_x.end(), 0);
      std::fill(of_y.begin(), of_y.end(), 0);
      for (int64_t i = 0; i < rows_; ++i) ++of_x[chunk_of(x(args_.first + i), c)];
      for (int64_t j = 0; j < others_; ++j) ++of_y[chunk_of(y(j), c)];
      for (int64_t v = 0; v < kValues; ++v)
        for (int64_t flip : flips_)
          cost += static_cast<double>(of_x[v]) * static_cast<double>(of_y[v ^ flip]) * kRunPairCost;
    }
    return cost < pairs;
  }

  Sorted sorted(const uint64_t* hashes, int64_t rows, int64_t c, bool by_words) const {
    Sorted s;
    const int64_t words = args_.words;
    s.start.assign(kValues + 1, 0);
    for (int64_t j = 0; j < rows; ++j) ++s.start[chunk_of(hashes + j * words, c) + 1];
    std::partial_sum(s.start.begin(), s.start.end(), s.start.begin());
    std::vector<int64_t> next(s.start.begin(), s.start.end() - 1);
    s.row.resize(rows);
    for (int64_t j = 0; j < rows; ++j) s.row[next[chunk_of(hashes + j * words, c)]++] = j;
    s.hashes.resize(rows * words);
    for (int64_t at = 0; at < rows; ++at)
      for (int64_t w = 0; w < words; ++w)
        s.hashes[by_words ? w * rows + at : at * words + w] = hashes[s.row[at] * words + w];
    return s;
  }

  // body(block, hits) for each block, each thread with room for `room` hits; memory that runs out ends the work.
  template <typename Body>
  void in_blocks(int64_t blocks, int64_t room, Body body) {
    const int threads = threads_for(args_.threads, blocks);
    std::vector<std::vector<int32_t>> hits(static_cast<size_t>(threads), std::vector<int32_t>(room));
    parallel_blocks(blocks, threads, [&](int64_t block, int thread) {
      try {
        if (!out_of_memory_.load()) body(block, hits[static_cast<size_t>(thread)].data());
      } catch (const std::bad_alloc&) {
        out_of_memory_.store(true);
      }
    });
  }

  // Adds a pair of row `first + r`; where there will be no room it is only counted.
  void add(int64_t r, int64_t j, int32_t bits) {
    ++args_.counts[r];
    if (total_.fetch_add(1, std::memory_order_relaxed) < args_.capacity) found_[r].push_back({j, bits});
  }

  void compare() {
    std::vector<uint64_t> columns(static_cast<size_t>(others_ * args_.words));
    for (int64_t j = 0; j < others_; ++j)
      for (int64_t w = 0; w < args_.words; ++w) columns[w * others_ + j] = y(j)[w];
    in_blocks((rows_ + kBlock - 1) / kBlock, kHammingRows * kSlice, [&](int64_t block, int32_t* hits) {
      const int64_t first = args_.first + block * kBlock, last = std::min(args_.last, first + kBlock);
      for (int64_t from = self_ ? first + 1 : 0; from < others_; from += kSlice) {
        const int64_t count = std::min(kSlice, others_ - from);
        for (int64_t i = first, step; i < last; i += step) {
          step = last - i >= kHammingRows ? kHammingRows : 1;
          const int64_t number =
              scan_(x(i), step, args_.words, columns.data() + from, others_, count, args_.threshold, hits);
          for (int64_t h = 0; h < number; ++h) {
            const int64_t row = i + hits[h] / count, j = from + hits[h] % count;
            if (!self_ || j > row) add(row - args_.first, j, bits_between(x(row), y(j), args_.words));
          }
        }
      }
    });
  }

  // Chunk by chunk; rows of x that share a value look at the same few runs, which the caches then hold. Each row has
  // one value, so it is one thread's.
  void probe() {
    for (int64_t c = 0; c < chunks_ && !out_of_memory_.load(); ++c) {
      const Sorted mine = sorted(x(args_.first), rows_, c, false), other = sorted(y_, others_, c, true);
      int64_t longest = 0;
      for (int64_t v = 0; v < kValues; ++v) longest = std::max(longest, other.start[v + 1] - other.start[v]);
      in_blocks(kValues / kValuesInBlock, kHammingRows * longest, [&](int64_t block, int32_t* hits) {
        for (int64_t v = block * kValuesInBlock; v < (block + 1) * kValuesInBlock; ++v) {
          if (mine.start[v] == mine.start[v + 1]) continue;
          for (const int64_t flip : flips_) match(mine, other, v, v ^ flip, c, hits);
        }
      });
    }
  }

  void match(const Sorted& mine, const Sorted& other, int64_t value, int64_t run, int64_t c, int32_t* hits) {
    const int64_t begin = other.start[run], count = other.start[run + 1] - begin, end = mine.start[value + 1];
    if (!count) return;
    for (int64_t at = mine.start[value], step; at < end; at += step) {
      step = end - at >= kHammingRows ? kHammingRows : 1;
      const int64_t number = scan_(&mine.hashes[at * args_.words], step, args_.words, &other.hashes[begin], others_,
                                   count, args_.threshold, hits);
      for (int64_t h = 0; h < number; ++h) {
        const int64_t r = mine.row[at + hits[h] / count], i = args_.first + r, j = other.row[begin + hits[h] % count];
        if ((!self_ || j > i) && !found_before(i, j, c)) add(r, j, bits_between(x(i), y(j), args_.words));
      }
    }
  }

  bool found_before(int64_t i, int64_t j, int64_t c) const {
    for (int64_t before = 0; before < c; ++before)
      if (__builtin_popcountll(chunk_of(x(i), before) ^ chunk_of(y(j), before)) <= radius_) return true;
    return false;
  }

  const prunefast_hamming_args& args_;
  const bool self_;
  const int64_t rows_, others_;
  const uint64_t* const y_;
  const int64_t chunks_, radius_;
  decltype(PopcountKernels::hamming_scan) const scan_;
  std::vector<std::vector<Hit>> found_;  // of each row
  std::vector<int64_t> flips_;           // of the bits of a chunk: none, one or two
  std::atomic<int64_t> total_{0};
  std::atomic<bool> out_of_memory_{false};
};

}  // namespace
}  // namespace prunefast

int32_t prunefast_hamming_join(const prunefast_hamming_args* arguments) {
  using namespace prunefast;
  return guarded([&]() -> int32_t {
    const prunefast_hamming_args& args = *arguments;
    if (args.rows < 0 || args.others < 0 || args.words < 1 || args.threshold < 0 || args.capacity < 0 ||
        args.first < 0 || args.last < args.first || args.last > args.rows)
      return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "hamming_join: negative size, or rows outside the hashes");
    Join join(args);
    join.run();
    if (*args.total <= args.capacity) join.write();
    return PRUNEFAST_OK;
  });
}

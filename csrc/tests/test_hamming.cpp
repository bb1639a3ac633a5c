#include <algorithm>

#include "check.h"

namespace {

struct Pair {
  int64_t i, j;
  int32_t bits;
  bool operator==(const Pair& other) const { return i == other.i && j == other.j && bits == other.bits; }
};

int32_t bits_of(uint64_t value) {  // Wegner's loop, by bytes
  static const std::vector<int8_t> table = [] {
    std::vector<int8_t> bits(256, 0);
    for (int v = 1; v < 256; ++v) bits[v] = static_cast<int8_t>(bits[v & (v - 1)] + 1);
    return bits;
  }();
  int32_t bits = 0;
  for (; value; value >>= 8) bits += table[value & 255];
  return bits;
}

std::vector<Pair> direct(const std::vector<uint64_t>& x, const std::vector<uint64_t>* y, int64_t words, int64_t first,
                         int64_t last, int32_t threshold) {
  const std::vector<uint64_t>& others = y ? *y : x;
  std::vector<Pair> pairs;
  for (int64_t i = first; i < last; ++i)
    for (int64_t j = y ? 0 : i + 1; j < static_cast<int64_t>(others.size()) / words; ++j) {
      int32_t bits = 0;
      for (int64_t w = 0; w < words; ++w) bits += bits_of(x[i * words + w] ^ others[j * words + w]);
      if (bits <= threshold) pairs.push_back({i, j, bits});
    }
  return pairs;
}

std::vector<Pair> joined(const std::vector<uint64_t>& x, const std::vector<uint64_t>* y, int64_t words, int64_t first,
                         int64_t last, int32_t threshold, int32_t threads, int64_t capacity) {
  const int64_t rows = static_cast<int64_t>(x.size()) / words;
  Guarded<int64_t> counts(last - first), index(capacity);
  Guarded<int32_t> distance(capacity);
  int64_t total = -1;
  const prunefast_hamming_args args = {x.data(),
                                       y ? y->data() : nullptr,
                                       rows,
                                       y ? static_cast<int64_t>(y->size()) / words : 0,
                                       words,
                                       first,
                                       last,
                                       threshold,
                                       threads,
                                       capacity,
                                       counts.data(),
                                       index.data(),
                                       distance.data(),
                                       &total};
  CHECK(!prunefast_hamming_join(&args));
  CHECK(counts.intact() && index.intact() && distance.intact());
  if (total > capacity) return joined(x, y, words, first, last, threshold, threads, total);
  std::vector<Pair> pairs;
  int64_t at = 0;
  for (int64_t i = first; i < last; ++i)
    for (int64_t k = 0; k < counts[i - first]; ++k, ++at) pairs.push_back({i, index[at], distance[at]});
  CHECK(at == total);
  return pairs;
}

// Random hashes, every third a copy of an earlier one with a few bits changed.
std::vector<uint64_t> hashes(int64_t rows, int64_t words, uint64_t seed) {
  Numbers numbers(seed);
  std::vector<uint64_t> x(rows * words);
  for (uint64_t& v : x)
    for (int part = 0; part < 4; ++part) v = v << 16 | static_cast<uint64_t>(numbers.integer(1 << 16));
  for (int64_t i = 2; i < rows; i += 3) {
    const int64_t from = numbers.integer(i);
    for (int64_t w = 0; w < words; ++w) x[i * words + w] = x[from * words + w];
    for (int64_t flips = numbers.integer(13); flips > 0; --flips) {
      const int64_t bit = numbers.integer(64 * words);
      x[i * words + bit / 64] ^= uint64_t{1} << bit % 64;
    }
  }
  return x;
}

}  // namespace

int main() {
  for (const int64_t words : {1, 2, 4})
    for (const int64_t rows : {1, 7, 65, 700}) {
      const auto x = hashes(rows, words, 5), y = hashes(rows / 2 + 1, words, 5);
      for (const int32_t threshold : {0, 5, 30, 64}) {
        CHECK(joined(x, nullptr, words, 0, rows, threshold, 2, 3) == direct(x, nullptr, words, 0, rows, threshold));
        CHECK(joined(x, &y, words, rows / 3, rows, threshold, 3, 3) == direct(x, &y, words, rows / 3, rows, threshold));
      }
    }
  // Enough rows for runs of equal chunks: the same pairs by any number of threads.
  for (const int64_t words : {1, 4}) {
    const auto x = hashes(4500, words, 11);
    for (const int32_t threshold : {0, 7, 11, 14}) {
      const auto expected = direct(x, nullptr, words, 0, 4500, threshold);
      CHECK(!expected.empty());
      for (const int32_t threads : {1, 4})
        CHECK(joined(x, nullptr, words, 0, 4500, threshold, threads, 1 << 16) == expected);
    }
  }
  std::vector<uint64_t> none;
  CHECK(joined(none, nullptr, 1, 0, 0, 5, 1, 0).empty());
  int64_t total;
  prunefast_hamming_args bad = {nullptr, nullptr, 0, 0, 0, 0, 0, 1, 1, 0, nullptr, nullptr, nullptr, &total};
  CHECK(prunefast_hamming_join(&bad) == PRUNEFAST_BAD_ARGUMENT);
  return summary("hamming");
}

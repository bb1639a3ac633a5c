#include <algorithm>

#include "check.h"
#include "kernels/table.h"

namespace {

struct Case {
  int64_t rows, others, columns, k;
  bool inner, exclude_self;
  float offset;
  bool integers;
};

double direct(const float* x, const float* y, int64_t columns, bool inner) {
  double sum = 0;
  for (int64_t d = 0; d < columns; ++d)
    sum += inner ? -static_cast<double>(x[d]) * y[d]
                 : (static_cast<double>(x[d]) - y[d]) * (static_cast<double>(x[d]) - y[d]);
  return sum;
}

void run(const Case& c, int32_t threads) {
  Numbers numbers(static_cast<uint64_t>(c.rows * 31 + c.columns));
  const int64_t x_stride = c.columns + 3, y_stride = c.exclude_self ? x_stride : c.columns + 1;
  std::vector<float> x(c.rows * x_stride), y(c.others * y_stride);
  for (float& v : x) v = c.offset + (c.integers ? static_cast<float>(numbers.integer(3)) : numbers.next());
  for (float& v : y) v = c.offset + (c.integers ? static_cast<float>(numbers.integer(3)) : numbers.next());
  if (c.exclude_self) y = x;
  if (c.others > 2)
    std::copy_n(y.data() + y_stride, c.columns, y.data() + 2 * y_stride);  // a duplicate: ties to the smaller
  Guarded<int64_t> index(c.rows * c.k);
  Guarded<float> distance(c.rows * c.k);
  prunefast_topk_args args = {};
  args.x = x.data(), args.y = y.data(), args.rows = c.rows, args.others = c.others, args.columns = c.columns;
  args.x_row_stride = x_stride, args.y_row_stride = y_stride, args.k = c.k, args.inner = c.inner, args.certify = 1;
  args.exclude_self = c.exclude_self, args.threads = threads, args.index = index.data(),
  args.distance = distance.data();
  CHECK(prunefast_topk(&args) == PRUNEFAST_OK);
  CHECK(index.intact() && distance.intact());
  for (int64_t i = 0; i < c.rows; ++i) {
    std::vector<std::pair<double, int64_t>> all;
    for (int64_t j = 0; j < c.others; ++j)
      if (!(c.exclude_self && i == j))
        all.emplace_back(direct(&x[i * x_stride], &y[j * y_stride], c.columns, c.inner), j);
    std::sort(all.begin(), all.end());
    for (int64_t n = 0; n < c.k; ++n) {
      const int64_t picked = index[i * c.k + n];
      CHECK(picked >= 0 && picked < c.others);
      const double mine = direct(&x[i * x_stride], &y[picked * y_stride], c.columns, c.inner);
      CHECK(std::fabs(mine - all[n].first) <= 1e-14 * (1 + std::fabs(mine)));
      CHECK(std::fabs(distance[i * c.k + n] - mine) <= 1e-7 * std::fabs(mine));
      if (c.integers) CHECK(picked == all[n].second && distance[i * c.k + n] == static_cast<float>(all[n].first));
      if (!c.inner) CHECK(distance[i * c.k + n] >= 0);
    }
  }
}

// Every format of the instruction set in use: scores within their bound of the truth, from residuals as reported.
void check_screening(const prunefast::Screening& format, int64_t columns, int64_t registers, int kind) {
  const int64_t vector = prunefast::kernels().vector, width = registers * vector, rows = 13, others = width - 3;
  const int64_t words = (columns + format.per_word - 1) / format.per_word;
  const int64_t row_words = (columns + prunefast::kPackedColumns - 1) / prunefast::kPackedColumns *
                            prunefast::kPackedColumns / format.per_word;
  Numbers numbers(static_cast<uint64_t>(columns * 8 + kind));
  std::vector<float> x(rows * columns), y(others * columns), mean(columns);
  const auto value = [&]() -> float {
    const float v = numbers.next();
    switch (kind) {
      case 0: return v;
      case 1: return v > 0.95f ? 1000 * v : v;           // outliers
      case 2: return 1e-30f * v;                         // below any step
      case 3: return 1e15f * v;
      case 4: return static_cast<float>(numbers.integer(5));
      default: return v < 0 ? -1.0f : 1.0f;              // every integer at its limit
    }
  };
  for (float& v : x) v = value();
  for (float& v : y) v = value();
  for (float& v : mean) v = kind == 5 ? 0.0f : value();
  Guarded<uint32_t> packed(rows * row_words), packed_y(others * row_words);
  std::vector<uint32_t> panel(words * width);
  std::vector<float> start(width, -INFINITY), scale(width), x_scale(rows);
  std::vector<int32_t> offset(width);
  std::vector<prunefast::PackedRow> about_x, about_y;
  for (int64_t r = 0; r < rows; ++r) {
    about_x.push_back(format.pack(&x[r * columns], mean.data(), columns, false, packed.data() + r * row_words));
    x_scale[r] = about_x[r].scale;
  }
  std::vector<double> half(others);
  for (int64_t j = 0; j < others; ++j) {
    about_y.push_back(format.pack(&y[j * columns], mean.data(), columns, true, packed_y.data() + j * row_words));
    for (int64_t d = 0; d < columns; ++d) {
      const double centred = static_cast<double>(y[j * columns + d]) - mean[d];
      half[j] += centred * centred / 2;
    }
    start[j] = static_cast<float>(-half[j]), scale[j] = about_y[j].scale, offset[j] = about_y[j].offset;
    for (int64_t word = 0; word < words; ++word) panel[word * width + j] = packed_y[j * row_words + word];
  }
  CHECK(packed.intact() && packed_y.intact());
  const prunefast::Panels panels = {panel.data(), start.data(), scale.data(), offset.data(), words, width};
  Guarded<float> score(rows * width), peak(rows);
  format.scores(packed.data(), x_scale.data(), rows, row_words, &panels, 0, 1, score.data(), width, peak.data(), 1);
  CHECK(score.intact() && peak.intact());
  // The other way round the same bits come out.
  const int64_t group = prunefast::kernels().turned_others, whole = (others + group - 1) / group * group;
  std::vector<uint32_t> grouped(whole * words);
  for (int64_t j = 0; j < others; ++j)
    for (int64_t word = 0; word < words; ++word)
      grouped[(j / group * words + word) * group + j % group] = packed_y[j * row_words + word];
  const prunefast::Panels groups = {grouped.data(), start.data(), scale.data(), offset.data(), words, group};
  x_scale.resize(prunefast::kBlockRows);
  Guarded<uint32_t> room(prunefast::kBlockRows * row_words);
  Guarded<float> turned(whole * prunefast::kBlockRows);
  format.turned_scores(packed.data(), x_scale.data(), rows, row_words, &groups, others, room.data(), turned.data());
  CHECK(packed.intact() && room.intact() && turned.intact());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < others; ++j) CHECK(turned[j * prunefast::kBlockRows + r] == score[r * width + j]);
  const double unit = 0x1p-24 * static_cast<double>(columns + 8), tiny = 4.0 * static_cast<double>(columns) * 0x1p-126;
  for (int64_t r = 0; r < rows; ++r) {
    double squared = 0;
    for (int64_t d = 0; d < columns; ++d)
      squared += std::pow(static_cast<double>(x[r * columns + d]) - mean[d], 2);
    CHECK(std::fabs(about_x[r].squared - squared) <= 2 * unit * squared + tiny);
    CHECK(format.exact ? about_x[r].lost == 0 : about_x[r].lost <= 1.01 * squared + tiny);
    float largest = -INFINITY;
    for (int64_t j = 0; j < width; ++j) {
      const float mine = score[r * width + j];
      largest = std::max(largest, mine);
      if (j >= others) {
        CHECK(mine == -INFINITY);
        continue;
      }
      double truth = -half[j];
      for (int64_t d = 0; d < columns; ++d)
        truth += (static_cast<double>(x[r * columns + d]) - mean[d]) *
                 (static_cast<double>(y[j * columns + d]) - mean[d]);
      const double norm = std::sqrt(squared), other = std::sqrt(2 * half[j]);
      const double lost_x = std::sqrt(about_x[r].lost * (1 + 2 * unit) + 0x1p-126);
      const double lost_y = std::sqrt(about_y[j].lost * (1 + 2 * unit) + 0x1p-126);
      const double bound = 1.02 * unit * (norm * other + half[j]) + norm * lost_y + lost_x * (other + lost_y) + tiny;
      CHECK(std::fabs(mine - truth) <= bound);
    }
    CHECK(peak[r] == largest);
  }
}

// The same index and distance bits on any number of threads, and sums that are those of class_sums.
void check_threads(int64_t rows, int64_t others, int64_t columns, int64_t k) {
  Numbers numbers(static_cast<uint64_t>(rows + k));
  std::vector<float> x(rows * columns), y(others * columns);
  for (float& v : x) v = numbers.next();
  for (float& v : y) v = numbers.next();
  std::vector<int64_t> index(rows * k), again(rows * k);
  std::vector<float> distance(rows * k), distance_again(rows * k);
  prunefast_topk_args args = {};
  args.x = x.data(), args.y = y.data(), args.rows = rows, args.others = others, args.columns = columns;
  args.x_row_stride = args.y_row_stride = columns, args.k = k, args.certify = 1;
  args.threads = 1, args.index = index.data(), args.distance = distance.data();
  CHECK(prunefast_topk(&args) == PRUNEFAST_OK);
  args.index = again.data(), args.distance = distance_again.data();
  std::vector<double> expected(others * columns);
  std::vector<int64_t> expected_counts(others);
  if (k == 1) {
    CHECK(prunefast_class_sums(x.data(), rows, columns, columns, index.data(), others, expected.data(),
                               expected_counts.data(), 0, 1) == PRUNEFAST_OK);
  }
  for (const int32_t threads : {1, 2, 7}) {
    std::vector<double> sums(others * columns);
    std::vector<int64_t> counts(others);
    args.threads = threads;
    args.sums = k == 1 ? sums.data() : nullptr, args.counts = k == 1 ? counts.data() : nullptr;
    CHECK(prunefast_topk(&args) == PRUNEFAST_OK);
    CHECK(again == index && distance_again == distance);
    if (k == 1) CHECK(sums == expected && counts == expected_counts);
  }
  if (k > 1) {
    std::vector<double> sums(others * columns);
    args.sums = sums.data();
    CHECK(prunefast_topk(&args) == PRUNEFAST_BAD_ARGUMENT);
    args.sums = nullptr;
  }
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const float kept = x[3 * columns + 1];
    x[3 * columns + 1] = bad;
    CHECK(prunefast_topk(&args) == PRUNEFAST_OUT_OF_RANGE);
    CHECK(std::strstr(prunefast_last_error(), "x: the value at [3, 1] is NaN or infinite"));
    x[3 * columns + 1] = kept;
  }
}

}  // namespace

int main() {
  for (const prunefast::Screening* const* format = prunefast::screenings(); *format; ++format) {
    for (const int64_t columns : {1, 3, 4, 5, 31, 32, 33, 64, 130, 1000})
      for (const int64_t registers : {1, 2, 4})
        for (int kind = 0; kind < 6; ++kind) check_screening(**format, columns, registers, kind);
    check_screening(**format, 1 << 16, 1, 5);  // the longest rows of int8: the sum of products nearly fills 32 bits
  }
  for (int64_t others = 3; others <= 17; ++others) run({37, others, 64, 1, false, false, 0.0f, others % 2 == 0}, 2);
  for (const int64_t others : {63, 64, 65, 100, 255, 256, 257, 2000})  // where another format starts
    for (const int64_t columns : {1, 5, 64}) run({61, others, columns, others % 3 + 1, false, false, 0, false}, 2);
  check_threads(500, 300, 67, 1);
  check_threads(40000, 20, 66, 1);  // sums in several parts
  check_threads(500, 300, 67, 12);
  for (const int64_t columns : {1, 2, 7, 15, 16, 17, 31, 65, 130})
    for (const int64_t others : {1, 2, 15, 16, 17, 63, 64, 65, 127, 1100})
      run({33, others, columns, std::min<int64_t>(others, 3), false, false, 0.0f, columns % 2 == 0}, 2);
  for (const int32_t threads : {1, 2, 7}) run({97, 2311, 19, 40, false, false, 1000.0f, false}, threads);
  run({211, 211, 24, 10, false, true, 0.0f, true}, 2);
  run({211, 211, 24, 210, false, true, 5.0f, false}, 1);
  run({50, 300, 12, 5, true, false, 0.5f, false}, 1);
  run({50, 300, 12, 5, false, false, 1e7f, false}, 1);  // the offset swallows all but a few bits: many exact ties
  run({20, 90, 6, 4, false, false, 0.0f, true}, 1);
  run({300, 300, 40, 3, false, true, 0.0f, true}, 7);
  run({700, 700, 2, 9, false, true, 0.0f, true}, 2);  // nine distinct rows: every answer is a tie
  run({0, 90, 6, 4, false, false, 0.0f, true}, 1);
  prunefast_topk_args bad = {};
  CHECK(prunefast_topk(&bad) == PRUNEFAST_BAD_ARGUMENT);

  // Values whose squares leave float32 are compared directly.
  const float x[] = {1e30f, -1e30f}, y[] = {-2e30f, 9e29f, 1.1e30f};
  int64_t index[2];
  float distance[2];
  prunefast_topk_args wide = {};
  wide.x = x, wide.y = y, wide.rows = 2, wide.others = 3, wide.columns = 1, wide.x_row_stride = wide.y_row_stride = 1;
  wide.k = 1, wide.certify = 1, wide.threads = 1, wide.index = index, wide.distance = distance;
  CHECK(prunefast_topk(&wide) == PRUNEFAST_OK);
  CHECK(index[0] == 1 && index[1] == 0);
  const float tiny_x[] = {1e-30f}, tiny_y[] = {3e-30f, 1.5e-30f, -1e-30f};
  wide.x = tiny_x, wide.y = tiny_y, wide.rows = 1;
  CHECK(prunefast_topk(&wide) == PRUNEFAST_OK);
  CHECK(index[0] == 1);
  return summary("topk");
}

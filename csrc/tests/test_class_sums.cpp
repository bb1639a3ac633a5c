#include "check.h"

int main() {
  for (const int64_t columns : {1, 15, 64, 65, 200}) {
    const int64_t rows = 517, stride = columns + 2, classes = 7;
    Numbers numbers(9);
    std::vector<float> x(rows * stride);
    std::vector<int64_t> labels(rows);
    for (float& v : x) v = numbers.next();
    for (int64_t& label : labels) label = numbers.integer(classes - 1);  // the last class stays empty
    std::vector<double> expected(classes * columns, 0.0);
    std::vector<int64_t> number(classes, 0);
    for (int64_t i = 0; i < rows; ++i) {
      ++number[labels[i]];
      for (int64_t d = 0; d < columns; ++d) expected[labels[i] * columns + d] += x[i * stride + d];
    }
    for (const int32_t threads : {1, 2, 7}) {
      Guarded<double> sums(classes * columns);
      Guarded<int64_t> counts(classes);
      CHECK(!prunefast_class_sums(x.data(), rows, columns, stride, labels.data(), classes, sums.data(), counts.data(),
                                  0, threads));
      CHECK(!std::memcmp(sums.data(), expected.data(), expected.size() * sizeof(double)));
      CHECK(!std::memcmp(counts.data(), number.data(), number.size() * sizeof(int64_t)));
      CHECK(sums.intact() && counts.intact());
    }
    // In two parts: the same additions in the same order.
    std::vector<double> parts(classes * columns, -1.0);
    std::vector<int64_t> part_counts(classes, -1);
    CHECK(!prunefast_class_sums(x.data(), 100, columns, stride, labels.data(), classes, parts.data(),
                                part_counts.data(), 0, 2));
    CHECK(!prunefast_class_sums(x.data() + 100 * stride, rows - 100, columns, stride, labels.data() + 100, classes,
                                parts.data(), part_counts.data(), 1, 2));
    CHECK(parts == expected && part_counts == number);
    labels[3] = classes;
    std::vector<double> sums(classes * columns);
    std::vector<int64_t> counts(classes);
    CHECK(prunefast_class_sums(x.data(), rows, columns, stride, labels.data(), classes, sums.data(), counts.data(),
                               0, 1) == PRUNEFAST_OUT_OF_RANGE);
  }
  return summary("class_sums");
}

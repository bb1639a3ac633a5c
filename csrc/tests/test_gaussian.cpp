#include "check.h"

namespace {

// Lower factor of a well-conditioned matrix, row-major; the upper triangle is poison.
std::vector<double> factor_of(int64_t columns, Numbers& numbers) {
  std::vector<double> factor(columns * columns, std::nan(""));
  for (int64_t i = 0; i < columns; ++i)
    for (int64_t j = 0; j <= i; ++j)
      factor[i * columns + j] = i == j ? 1.5 + numbers.next() / 2 : numbers.next() / static_cast<double>(columns);
  return factor;
}

template <typename T>
void check_case(int64_t rows, int64_t columns, int32_t dtype, bool picked, int64_t stride_gap) {
  Numbers numbers(rows * 31 + columns);
  const int64_t all = picked ? 2 * rows + 3 : rows, stride = columns + stride_gap;
  std::vector<T> x(all * stride + 1, static_cast<T>(std::nan("")));  // what lies between the rows is never read
  T* const start = x.data() + 1;                                       // 16-byte alignment is not needed
  for (int64_t i = 0; i < all; ++i)
    for (int64_t d = 0; d < columns; ++d) start[i * stride + d] = static_cast<T>(numbers.next() + 3);
  std::vector<int64_t> row(rows);
  for (int64_t i = 0; i < rows; ++i) row[i] = picked ? all - 1 - 2 * i : i;

  std::vector<long double> mean(columns, 0), covariance(columns * columns, 0);
  for (int64_t i : row)
    for (int64_t d = 0; d < columns; ++d) mean[d] += start[i * stride + d];
  for (long double& m : mean) m /= rows;
  for (int64_t i : row)
    for (int64_t a = 0; a < columns; ++a)
      for (int64_t b = 0; b < columns; ++b)
        covariance[a * columns + b] += (start[i * stride + a] - mean[a]) * (start[i * stride + b] - mean[b]) / rows;

  std::vector<double> first_covariance, first_squared;
  const std::vector<double> factor = factor_of(columns, numbers);
  for (const int32_t threads : {1, 2, 7}) {
    const prunefast_rows args = {start, dtype, rows, columns, stride, picked ? row.data() : nullptr, threads};
    Guarded<double> found_mean(columns), found(columns * columns), squared(rows);
    CHECK(!prunefast_moments(&args, found_mean.data(), found.data()));
    CHECK(!prunefast_mahalanobis(&args, found_mean.data(), factor.data(), squared.data()));
    CHECK(found_mean.intact() && found.intact() && squared.intact());
    if (threads == 1) {
      for (int64_t d = 0; d < columns; ++d) CHECK(std::fabs(found_mean[d] - mean[d]) < 1e-12L);
      for (int64_t e = 0; e < columns * columns; ++e) CHECK(std::fabs(found[e] - covariance[e]) < 1e-12L);
      for (int64_t i = 0; i < rows; ++i) {
        std::vector<long double> y(columns);
        long double norm = 0;
        for (int64_t a = 0; a < columns; ++a) {
          y[a] = start[row[i] * stride + a] - static_cast<long double>(found_mean[a]);
          for (int64_t b = 0; b < a; ++b) y[a] -= factor[a * columns + b] * y[b];
          y[a] /= factor[a * columns + a];
          norm += y[a] * y[a];
        }
        CHECK(std::fabs(squared[i] - norm) <= 1e-12L * (norm + 1e-3L));
      }
      first_covariance.assign(found.data(), found.data() + columns * columns);
      first_squared.assign(squared.data(), squared.data() + rows);
    }
    CHECK(!std::memcmp(found.data(), first_covariance.data(), first_covariance.size() * sizeof(double)));
    CHECK(!std::memcmp(squared.data(), first_squared.data(), first_squared.size() * sizeof(double)));
  }
}

}  // namespace

int main() {
  for (const int64_t columns : {1, 5, 6, 23, 24, 25, 97})
    for (const int64_t rows : {1, 2, 23, 193}) {
      check_case<float>(rows, columns, PRUNEFAST_FLOAT32, false, 0);
      check_case<double>(rows, columns, PRUNEFAST_FLOAT64, true, 3);
    }
  check_case<float>(520, 300, PRUNEFAST_FLOAT32, true, 1);  // past one depth and one square of the factor

  // Every row is the same memory.
  const float lone[3] = {1, 2, 3};
  const prunefast_rows same = {lone, PRUNEFAST_FLOAT32, 100, 3, 0, nullptr, 2};
  double mean[3], covariance[9];
  CHECK(!prunefast_moments(&same, mean, covariance));
  CHECK(mean[0] == 1 && mean[1] == 2 && mean[2] == 3);
  for (const double value : covariance) CHECK(value == 0);

  const prunefast_rows none = {lone, PRUNEFAST_FLOAT32, 0, 3, 3, nullptr, 1};
  CHECK(prunefast_moments(&none, mean, covariance) == PRUNEFAST_BAD_ARGUMENT);
  CHECK(!prunefast_mahalanobis(&none, mean, covariance, nullptr));
  const prunefast_rows wrong = {lone, PRUNEFAST_BFLOAT16, 1, 3, 3, nullptr, 1};
  CHECK(prunefast_moments(&wrong, mean, covariance) == PRUNEFAST_BAD_ARGUMENT);
  return summary("gaussian");
}

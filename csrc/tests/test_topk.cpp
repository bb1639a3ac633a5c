#include <algorithm>

#include "check.h"

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

}  // namespace

int main() {
  for (const int64_t columns : {1, 2, 7, 15, 16, 17, 31, 65, 130})
    for (const int64_t others : {1, 2, 15, 16, 17, 63, 64, 65, 127, 1100})
      run({33, others, columns, std::min<int64_t>(others, 3), false, false, 0.0f, columns % 2 == 0}, 2);
  for (const int32_t threads : {1, 2, 7}) run({97, 2311, 19, 40, false, false, 1000.0f, false}, threads);
  run({211, 211, 24, 10, false, true, 0.0f, true}, 2);
  run({211, 211, 24, 210, false, true, 5.0f, false}, 1);
  run({50, 300, 12, 5, true, false, 0.5f, false}, 1);
  run({50, 300, 12, 5, false, false, 1e7f, false}, 1);  // the offset swallows all but a few bits: many exact ties
  run({20, 90, 6, 4, false, false, 0.0f, true}, 1);
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

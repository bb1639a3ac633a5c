// 3 x 3 convolutions of NHWC images by Winograd's F(2 x 2, 3 x 3), forward and backward.
//
// Forward, and the gradient of the input, which is a convolution with turned filters: filters are transformed once a
// call; a block of tiles is transformed, multiplied plane by plane for 64 output channels at a time, and transformed
// back, so that what lies between stays in the second-level cache. The gradient of the filters sums over tiles instead:
// tiles are transformed chunk by chunk into words of two, and each plane's sums are kept in float32.
//
// Every number is summed in one order, of its channels or of the tiles, whatever the threads.
#include <algorithm>
#include <atomic>

#include "aligned.h"
#include "kernels/table.h"
#include "parallel.h"
#include "status.h"

namespace prunefast {
namespace {

constexpr int64_t kPlanes = 16;
constexpr int64_t kTileBytes = 640 << 10;  // a block's tiles and products, while filters pass through the same cache
constexpr int64_t kRows = 6;               // tiles that one pass over the filters multiplies
constexpr int64_t kChunkPairs = 256;       // of tiles whose words lie ready for the gradient of the filters
constexpr int64_t kTaskPairs = 8;
constexpr int64_t kSpread = 32;  // elements between planes, so that they do not fall on the same lines of the cache

int64_t tiles_of(const ConvShape& s) { return s.samples * ((s.height + 1) / 2) * ((s.width + 1) / 2); }

// Memory of one call. What the last call used is kept for the next one: fresh pages cost up to a seventh of a call.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : block_(kept.exchange(nullptr)) {
    if (block_ && block_->bytes >= bytes) return;
    delete block_;
    block_ = nullptr;
    block_ = new Block{aligned<char>(bytes), bytes};
  }
  ~Workspace() { delete kept.exchange(block_); }

  template <typename T>
  T* take(int64_t count) {
    char* start = block_->memory.get() + used_;
    used_ += bytes_of<T>(count);
    return reinterpret_cast<T*>(start);
  }

  template <typename T>
  static int64_t bytes_of(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

 private:
  struct Block {
    Aligned<char> memory;
    int64_t bytes;
  };
  static std::atomic<Block*> kept;
  Block* block_;
  int64_t used_ = 0;
};

std::atomic<Workspace::Block*> Workspace::kept{nullptr};

uint16_t* pixel_of_zeros(Workspace& workspace, int64_t channels) {
  uint16_t* zeros = workspace.take<uint16_t>(channels);
  std::fill(zeros, zeros + channels, uint16_t{0});
  return zeros;
}

void convolve(const ConvKernels& set, const ConvShape& s, const uint16_t* x, const float* weight, bool backward,
              const float* bias, uint16_t* y, int32_t wanted) {
  const int64_t tiles = tiles_of(s), panels = s.outputs / 16, panel_words = s.inputs / 2 * 16;
  const int64_t filter_plane = panels * panel_words;
  const int64_t most = kTileBytes / (kPlanes * (2 * s.inputs + 4 * kConvColumns));
  const int64_t allowed = threads_for(wanted, tiles);
  const int64_t share = (tiles + allowed - 1) / allowed;
  const int64_t block = (std::max<int64_t>(std::min(most, share), kRows) + kRows - 1) / kRows * kRows;
  const int64_t blocks = (tiles + block - 1) / block;
  const int threads = threads_for(wanted, blocks);
  const int64_t tile_plane = block * s.inputs + kSpread, product_plane = block * kConvColumns + kSpread;

  const int64_t tile_count = kPlanes * tile_plane, product_count = kPlanes * product_plane;
  Workspace workspace(Workspace::bytes_of<uint16_t>(s.inputs) + Workspace::bytes_of<uint32_t>(kPlanes * filter_plane) +
                      Workspace::bytes_of<uint16_t>(threads * tile_count) +
                      Workspace::bytes_of<float>(threads * product_count));
  const uint16_t* zeros = pixel_of_zeros(workspace, s.inputs);
  uint32_t* filters = workspace.take<uint32_t>(kPlanes * filter_plane);
  uint16_t* all_tiles = workspace.take<uint16_t>(threads * tile_count);
  float* all_products = workspace.take<float>(threads * product_count);

  parallel_blocks(panels, threads_for(wanted, panels), [&](int64_t panel, int) {
    set.filters(weight, backward ? s.outputs : s.inputs, backward, s.inputs, panel, filters + panel * panel_words,
                filter_plane);
  });
  parallel_blocks(blocks, threads, [&](int64_t b, int thread) {
    uint16_t* transformed = all_tiles + thread * tile_count;
    float* products = all_products + thread * product_count;
    const int64_t first = b * block, count = std::min(block, tiles - first);
    set.input(&s, x, zeros, first, count, transformed, tile_plane);
    for (int64_t panel = 0; panel < panels;) {
      const int64_t wide = panels - panel >= 4 ? 4 : 2;
      for (int64_t p = 0; p < kPlanes; ++p)
        set.products(transformed + p * tile_plane, count, s.inputs, filters + p * filter_plane + panel * panel_words,
                     wide, products + p * product_plane);
      set.output(&s, products, product_plane, first, count, wide, bias, y, panel * 16);
      panel += wide;
    }
  });
}

void sum_filters(const ConvKernels& set, const ConvShape& s, const uint16_t* x, const uint16_t* dy, float* gradient,
                 int32_t wanted) {
  const int64_t pairs = (tiles_of(s) + 1) / 2, chunk = std::min(pairs, kChunkPairs), room = chunk + 1;
  const int64_t input_plane = room * s.inputs + kSpread, output_plane = room * s.outputs + kSpread;
  const int64_t groups = (s.inputs + kConvColumns - 1) / kConvColumns, group = s.outputs * kConvColumns;
  const int64_t sum_plane = groups * group + kSpread;
  Workspace workspace(Workspace::bytes_of<uint16_t>(std::max(s.inputs, s.outputs)) +
                      Workspace::bytes_of<uint32_t>(kPlanes * input_plane) +
                      Workspace::bytes_of<uint32_t>(kPlanes * output_plane) +
                      Workspace::bytes_of<float>(kPlanes * sum_plane));
  const uint16_t* zeros = pixel_of_zeros(workspace, std::max(s.inputs, s.outputs));
  uint32_t* inputs = workspace.take<uint32_t>(kPlanes * input_plane);
  uint32_t* outputs = workspace.take<uint32_t>(kPlanes * output_plane);
  float* sums = workspace.take<float>(kPlanes * sum_plane);  // [groups][outputs][kConvColumns] a plane

  for (int64_t begin = 0; begin < pairs; begin += chunk) {
    const int64_t count = std::min(chunk, pairs - begin), tasks = (count + kTaskPairs - 1) / kTaskPairs;
    parallel_blocks(2 * tasks, threads_for(wanted, 2 * tasks), [&](int64_t task, int) {
      const int64_t at = task / 2 * kTaskPairs, n = std::min(kTaskPairs, count - at), tile = 2 * (begin + at);
      if (task % 2)
        set.gradient_pairs(&s, dy, zeros, tile, n, room, outputs + at * 16, output_plane);
      else
        set.input_pairs(&s, x, zeros, tile, n, room, inputs + at * 16, input_plane);
    });
    const int64_t blocks = kPlanes * groups;
    parallel_blocks(blocks, threads_for(wanted, blocks), [&](int64_t b, int) {
      const int64_t p = b / groups, g = b % groups;
      for (int64_t from = g * kConvColumns, end = std::min(from + kConvColumns, s.inputs); from < end;) {
        const int64_t wide = end - from >= kConvColumns ? 4 : 2;
        for (int64_t o = 0; o < s.outputs; o += 16)
          set.pair_products(outputs + p * output_plane + o * room, inputs + p * input_plane + from * room, wide, count,
                            room, begin > 0, sums + p * sum_plane + g * group + o * kConvColumns + from % kConvColumns);
        from += wide * 16;
      }
    });
  }
  parallel_blocks(s.outputs, threads_for(wanted, s.outputs), [&](int64_t o, int) {
    for (int64_t g = 0; g < groups; ++g)
      set.filter_gradient(sums + g * group + o * kConvColumns, sum_plane,
                          std::min(kConvColumns, s.inputs - g * kConvColumns), s.inputs,
                          gradient + o * 9 * s.inputs + g * kConvColumns);
  });
}

}  // namespace
}  // namespace prunefast

int32_t prunefast_conv3x3_available(void) { return prunefast::conv_kernels() != nullptr; }

int32_t prunefast_conv3x3(const prunefast_conv3x3_args* args) {
  using namespace prunefast;
  return guarded([&]() -> int32_t {
    const ConvKernels* set = conv_kernels();
    if (!set) return fail(PRUNEFAST_BAD_ARGUMENT, "%s", "conv3x3: not on this processor");
    const ConvShape s = {args->samples, args->height, args->width, args->inputs, args->outputs};
    if (s.samples < 1 || s.height < 1 || s.width < 1 || s.inputs < 1 || s.outputs < 1 || s.inputs % kConvChannels ||
        s.outputs % kConvChannels)
      return fail(PRUNEFAST_BAD_ARGUMENT, "conv3x3: sizes must be positive and channels multiples of %d",
                  static_cast<int>(kConvChannels));
    const auto* x = static_cast<const uint16_t*>(args->x);
    const auto* dy = static_cast<const uint16_t*>(args->gradient_y);
    if (args->y) convolve(*set, s, x, args->weight, false, args->bias, static_cast<uint16_t*>(args->y), args->threads);
    if (args->gradient_x) {
      const ConvShape turned = {s.samples, s.height, s.width, s.outputs, s.inputs};
      convolve(*set, turned, dy, args->weight, true, nullptr, static_cast<uint16_t*>(args->gradient_x), args->threads);
    }
    if (args->gradient_weight) sum_filters(*set, s, x, dy, args->gradient_weight, args->threads);
    return PRUNEFAST_OK;
  });
}

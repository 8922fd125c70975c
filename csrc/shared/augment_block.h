// A view made by a block of threads, in phases: within one, threads do not see each other's work; after
// it they do. Included inside a namespace of each compiler, which has FASTSSL_INLINE, whole_of, apart
// and fused of a float, narrow of a float to any element, and a Block with
//   threads()            of the block
//   phase(f)             f(thread) of each, then a barrier
//   raise(slot, number)  *slot = max(*slot, number), by any threads at once
// Outside phases all threads have the same values. csrc/cuda/augment.cu says why it is done this way.

// What the threads of a block share of their view, in its memory: there rather than in the registers of
// each.
struct BlockView {
  float q[kAugmentColumns];
  int32_t count[2], lost[2];  // across, down: most weights of a pixel; bits that they have less than 22
  Steps steps;
  int64_t row;
  ViewShape shape;
  const uint8_t* crop;
  int64_t crop_row, channel;  // strides in bytes
  int pixel, radius;
  Side across, down;
  double *sums, *parts;  // [threads], [kWarp]; where those are read no more, Gaussians in double
  float *taps, *kept, *working;
  Strip strip;
};
static_assert(sizeof(BlockView) <= 4 * kHeader, "a block's header is larger");

template <bool quantized>
struct FilterOf {
  using type = FloatFilter<float>;
};
template <>
struct FilterOf<true> {
  using type = FixedFilter<int32_t>;
};

// Places in rows of so many, as threads take them in turn.
struct Place {
  int row, column;
};
FASTSSL_INLINE Place place_of(int thread, int columns) {
  return {thread / columns, thread % columns};
}
FASTSSL_INLINE void advance(Place& at, const Place& step, int columns) {
  at.row += step.row;
  at.column += step.column;
  if (at.column >= columns) {
    at.column -= columns;
    ++at.row;
  }
}

struct alignas(16) Four {
  float x[4];
};
FASTSSL_INLINE Four four_at(const float* p) { return *reinterpret_cast<const Four*>(p); }

template <class Out>
FASTSSL_INLINE void put(char* out, int64_t at, float x) {
  narrow(x, reinterpret_cast<Out*>(out)[at]);
}

FASTSSL_INLINE void put(const AugmentProblem& p, int64_t at, float x) {
  if (p.element == Element::bfloat16)
    put<BFloat16>(p.out, at, x);
  else if (p.element == Element::float16)
    put<Float16>(p.out, at, x);
  else
    put<float>(p.out, at, x);
}

template <bool quantized, int C, class Block>
struct Maker {
  using Filter = typename FilterOf<quantized>::type;
  using number = typename Filter::number;

  // Where row y of the view is kept: in a ring.
  FASTSSL_INLINE int kept_row(const BlockView& v, int y) {
    return y % (v.strip.rows + 2 * v.radius);
  }

  // Rows of the crop, as wide as the view: [row, C, width].
  FASTSSL_INLINE void narrow_rows(Block& block, const BlockView& v, int64_t begin, int64_t end) {
    const int width = v.shape.width, rows = int(end - begin);
    block.phase([&](int thread) {
      const Place step = place_of(block.threads(), width);
      for (Place at = place_of(thread, width); at.row < rows; advance(at, step, width)) {
        const uint8_t* from = v.crop + (begin + at.row) * v.crop_row;
        Triangle t{};
        if (!v.across.whole) t = triangle_of(v.across.source, width, at.column);
        const int first = v.across.first[at.column];
        number sum[C] = {};
        for (int k = 0; k < v.across.count; ++k) {
          const number weight = weight_at<Filter>(v.across, t, at.column, k);
          const uint8_t* bytes = from + int64_t(first + k) * v.pixel;
          for (int c = 0; c < C; ++c) sum[c] = weighed(weight, number(bytes[c * v.channel]), sum[c]);
        }
        auto* to = reinterpret_cast<number*>(v.working) + at.row * C * width + at.column;
        for (int c = 0; c < C; ++c) to[c * width] = Filter::finish(sum[c], v.across.bits);
      }
    });
  }

  // Rows [y0, y1) of the resized crop: done(thread, y, x, pixel) of each pixel. Sums that a group of
  // rows leaves unfinished wait where the rows are kept.
  template <class Done>
  FASTSSL_INLINE void resize_rows(Block& block, const BlockView& v, int y0, int y1, Done done) {
    const int width = v.shape.width, rows = y1 - y0;
    const int64_t last = v.down.first[y1 - 1] + v.down.count;
    for (int64_t begin = v.down.first[y0]; begin < last; begin += v.strip.group) {
      const int64_t end = begin + v.strip.group < last ? begin + v.strip.group : last;
      narrow_rows(block, v, begin, end);
      block.phase([&](int thread) {
        const Place step = place_of(block.threads(), width);
        for (Place at = place_of(thread, width); at.row < rows; advance(at, step, width)) {
          const int y = y0 + at.row;
          const int64_t from = v.down.first[y], to = from + v.down.count;
          if (to <= begin || from >= end) continue;
          auto* waiting = reinterpret_cast<number*>(v.kept) + kept_row(v, y) * C * width + at.column;
          number sum[C] = {};
          for (int c = 0; c < C && from < begin; ++c) sum[c] = waiting[c * width];
          const int64_t low = from > begin ? from : begin, high = to < end ? to : end;
          Triangle t{};
          if (!v.down.whole) t = triangle_of(v.down.source, v.down.target, y);
          const auto* narrowed = reinterpret_cast<const number*>(v.working) + at.column;
          for (int64_t j = low; j < high; ++j) {
            const number weight = weight_at<Filter>(v.down, t, y, int(j - from));
            const number* x = narrowed + (j - begin) * C * width;
            for (int c = 0; c < C; ++c) sum[c] = weighed(weight, x[c * width], sum[c]);
          }
          if (to > end) {
            for (int c = 0; c < C; ++c) waiting[c * width] = sum[c];
            continue;
          }
          float x[C];
          for (int c = 0; c < C; ++c) x[c] = float(Filter::finish(sum[c], v.down.bits));
          done(thread, y, at.column, Pixels<float>{x[0], x[C / 2], x[C - 1]});
        }
      });
    }
  }

  // The first so many steps.
  FASTSSL_INLINE Pixels<float> stepped(const BlockView& v, const Pixels<float>& pixels, int count) {
    Pixels<float> x[1] = {pixels};
    for (int s = 0; s < count; ++s)
      if (C == 3 || v.steps.list[s].kind <= kToContrast) change<quantized>(x, v.steps.list[s]);
    return x[0];
  }

  // The mean of grey after so many steps.
  FASTSSL_INLINE float mean_grey(Block& block, const BlockView& v, int steps) {
    const int threads = block.threads(), height = v.shape.height;
    block.phase([&](int thread) { v.sums[thread] = 0; });
    for (int y = 0; y < height; y += v.strip.rows) {
      const int end = y + v.strip.rows < height ? y + v.strip.rows : height;
      resize_rows(block, v, y, end, [&](int thread, int, int, Pixels<float> x) {
        x = stepped(v, x, steps);
        v.sums[thread] += C == 3 ? cut<quantized>(grey_of(x)) : x.red;
      });
    }
    block.phase([&](int thread) {
      if (thread >= kWarp) return;
      double sum = 0;
      for (int i = thread; i < threads; i += kWarp) sum += v.sums[i];
      v.parts[thread] = sum;
    });
    double sum = 0;
    for (int i = 0; i < kWarp && i < threads; ++i) sum += v.parts[i];
    return float(sum / (double(height) * v.shape.width));
  }

  // A pixel of the resized crop where the view has it, solarized and normalised.
  FASTSSL_INLINE void emit(const AugmentProblem& p, const BlockView& v, int y, int x,
                           const Pixels<float>& pixel) {
    const float* q = v.q;
    const int height = v.shape.height, width = v.shape.width;
    x = q[kFlip] != 0 ? width - 1 - x : x;
    y = q[kFlipVertical] != 0 ? height - 1 - y : y;
    for (int turns = int(q[kTurns]); turns > 0; --turns) {  // counter-clockwise, of a square
      const int above = width - 1 - x;
      x = y;
      y = above;
    }
    const bool erased = y >= q[kEraseTop] && y < q[kEraseTop] + q[kEraseHeight] &&
                        x >= q[kEraseLeft] && x < q[kEraseLeft] + q[kEraseWidth];
    const float colours[3] = {pixel.red, pixel.green, pixel.blue};
    const int64_t plane = int64_t(height) * width, at = int64_t(y) * width + x;
    for (int c = 0; c < C; ++c) {
      const float inverted = colours[c] >= q[kSolarize] ? 255 - colours[c] : colours[c];
      const float value = erased ? 0 : fused(inverted, p.gain[c], p.bias[c]);
      put(p, p.channels_last ? (v.row * plane + at) * C + c : (v.row * C + c) * plane + at, value);
    }
  }

  // Rows [begin, end) of the view from those kept, which end before y1: down, across, out.
  FASTSSL_INLINE void blur_rows(Block& block, const AugmentProblem& p, const BlockView& v, int begin,
                                int end, int y1) {
    const int width = v.shape.width, height = v.shape.height, r = v.radius, rows = end - begin;
    const int pitch = int(blur_pitch(v.shape, r)), chunks = (2 * r + kRun) / kRun;
    const int ring = v.strip.rows + 2 * r, last_slot = y1 % ring, flat = int(quads(width));
    float* blurred_down = v.working;  // [rows, C, pitch]
    float* blurred = v.working + int64_t(v.strip.rows) * C * pitch;  // [rows, C, flat]
    block.phase([&](int thread) {
      const Place step = place_of(block.threads(), pitch);
      for (Place at = place_of(thread, pitch); at.row * kRun < rows; advance(at, step, pitch)) {
        const int beyond = width + 2 * r - 1;  // what is there is read, and weighs nothing
        const int x = int(reflected((at.column < beyond ? at.column : beyond) - r, width));
        float sum[C][kRun] = {};
        for (int chunk = 0; chunk < chunks; ++chunk) {
          const Four weight = four_at(v.taps + chunk * kRun);
          int place[2 * kRun - 1];
          for (int i = 0; i < 2 * kRun - 1; ++i) {
            const int y = begin + at.row * kRun + chunk * kRun + i - r, most = height - 1 + r;
            const int kept_y = int(reflected(y < most ? y : most, height));
            const int slot = last_slot - (y1 - (kept_y < y1 ? kept_y : y1 - 1));
            place[i] = (slot < 0 ? slot + ring : slot) * C * width + x;
          }
          for (int c = 0; c < C; ++c)
            for (int i = 0; i < 2 * kRun - 1; ++i) {
              const float value = v.kept[place[i] + c * width];
              for (int k = 0; k < kRun; ++k)
                if (i - k >= 0 && i - k < kRun) sum[c][k] = fused(weight.x[i - k], value, sum[c][k]);
            }
        }
        for (int k = 0; k < kRun && at.row * kRun + k < rows; ++k)
          for (int c = 0; c < C; ++c)
            blurred_down[((at.row * kRun + k) * C + c) * pitch + at.column] = sum[c][k];
      }
    });
    block.phase([&](int thread) {
      const int runs = flat / kRun;
      const Place step = place_of(block.threads(), runs);
      for (Place at = place_of(thread, runs); at.row < rows * C; advance(at, step, runs)) {
        const float* from = blurred_down + at.row * pitch + at.column * kRun;
        Four sum{}, first = four_at(from);
        for (int chunk = 0; chunk < chunks; ++chunk) {
          const Four weight = four_at(v.taps + chunk * kRun), second = four_at(from + (chunk + 1) * kRun);
          for (int i = 0; i < kRun; ++i)
            for (int k = 0; k < kRun; ++k)
              sum.x[k] = fused(weight.x[i], i + k < kRun ? first.x[i + k] : second.x[i + k - kRun],
                               sum.x[k]);
          first = second;
        }
        *reinterpret_cast<Four*>(blurred + at.row * flat + at.column * kRun) = sum;
      }
    });
    block.phase([&](int thread) {
      const Place step = place_of(block.threads(), width);
      for (Place at = place_of(thread, width); at.row < rows; advance(at, step, width)) {
        float x[C];
        for (int c = 0; c < C; ++c) {
          x[c] = blurred[(at.row * C + c) * flat + at.column];
          x[c] = quantized ? rounded(x[c]) : x[c];
        }
        emit(p, v, begin + at.row, at.column, {x[0], x[C / 2], x[C - 1]});
      }
    });
  }

  FASTSSL_INLINE void write_view(Block& block, const AugmentProblem& p, const BlockView& v) {
    const int height = v.shape.height;
    int begin = 0;  // of the rows that are to be blurred
    for (int y = 0; y < height; y += v.strip.rows) {
      const int end = y + v.strip.rows < height ? y + v.strip.rows : height;
      resize_rows(block, v, y, end, [&](int, int y, int x, Pixels<float> pixel) {
        pixel = stepped(v, pixel, v.steps.count);
        if (v.radius == 0) {
          emit(p, v, y, x, pixel);
          return;
        }
        const float colours[3] = {pixel.red, pixel.green, pixel.blue};
        float* to = v.kept + kept_row(v, y) * C * v.shape.width + x;
        for (int c = 0; c < C; ++c) to[c * v.shape.width] = colours[c];
      });
      if (v.radius == 0) continue;
      const int ready = end == height ? height : end - v.radius;
      for (; begin < ready; begin += v.strip.rows) {
        const int next = begin + v.strip.rows < ready ? begin + v.strip.rows : ready;
        blur_rows(block, p, v, begin, next, end);
      }
      begin = ready > 0 ? ready : 0;
    }
  }
};

// What one thread settles for all, once the parameters and the number of weights are known: the crop,
// and what is where in the memory.
FASTSSL_INLINE void lay_out(BlockView& v, const AugmentProblem& p, float* memory, int64_t floats) {
  const ViewShape& shape = v.shape;
  const int64_t image = v.row % p.images, h = p.sizes[2 * image], w = p.sizes[2 * image + 1];
  const float* q = v.q;
  v.crop_row = p.planar ? w : w * p.channels;
  v.pixel = p.planar ? 1 : int(p.channels);
  v.channel = p.planar ? h * w : 1;
  v.crop = p.data + p.offsets[image] + int64_t(q[kTop]) * v.crop_row + int64_t(q[kLeft]) * v.pixel;
  v.radius = q[kSigma] != 0 ? int(blur_radius(p.taps, q[kSigma])) : 0;
  float* at = memory + kHeader;
  const auto take = [&](int64_t count) {
    float* taken = at;
    at += quads(count);
    return taken;
  };
  v.sums = reinterpret_cast<double*>(take(2 * shape.threads));
  v.parts = reinterpret_cast<double*>(take(gaussian_floats(shape.taps)));
  v.taps = take(shape.taps + kRun);
  v.across.first = reinterpret_cast<int32_t*>(take(shape.width));
  v.down.first = reinterpret_cast<int32_t*>(take(shape.height));
  // Tables of weights where they take at most half of what is left beside one row.
  const int64_t least = kept_floats(shape, 1, v.radius) + working_floats(shape, 1, 1, v.radius);
  int64_t room = memory + floats - at - least;
  for (int s = 0; s < 2; ++s) {
    Side& side = s == 0 ? v.across : v.down;
    side.source = int64_t(s == 0 ? q[kWidth] : q[kHeight]);
    side.target = s == 0 ? shape.width : shape.height;
    side.count = v.count[s];
    side.bits = 22 - v.lost[s];
    const int64_t sums = quads(2 * side.target), others = s == 0 ? quads(2 * shape.height) : 0;
    const int64_t table = quads(int64_t(side.count) * side.target);
    side.whole = table <= (room - others) / 2 || table <= sums;
    side.table = take(side.whole ? table : sums);
    room -= side.whole ? table : sums;
  }
  const double scale = double(v.down.source) / shape.height;
  v.strip = strip_of(shape, memory + floats - at, v.radius, scale, v.down.count);
  v.kept = take(kept_floats(shape, v.strip.rows, v.radius));
  v.working = at;
}

// View number `row`, in so many floats of memory.
template <bool quantized, int C, class Block>
FASTSSL_INLINE void make_view(Block& block, const AugmentProblem& p, int64_t row, float* memory,
                              int64_t floats) {
  using M = Maker<quantized, C, Block>;
  using Filter = typename M::Filter;
  auto& v = *reinterpret_cast<BlockView*>(memory);
  {
    const int64_t image = row % p.images, h = p.sizes[2 * image], w = p.sizes[2 * image + 1];
    const int64_t offset = p.offsets[image], pixels = p.height * p.width * C;
    const bool held = h > 0 && w > 0 && h < 1 << 24 && w < 1 << 24 && offset >= 0 &&
                      offset <= p.bytes - h * w * C;
    if (!held) {  // nobody here can say so: a view of NaN does
      block.phase([&](int thread) {
        for (int64_t i = thread; i < pixels; i += block.threads())
          put(p, row * pixels + i, __builtin_nanf(""));
      });
      return;
    }
    block.phase([&](int thread) {
      if (thread != 0) return;
      v.row = row;
      v.shape = {int(p.height), int(p.width), C, int(p.taps), block.threads()};
      bound_parameters(p.parameters + row * kAugmentColumns, h, w, p.height, p.width, v.q);
      list_steps(v.q, v.steps);
      for (int side = 0; side < 2; ++side) v.count[side] = v.lost[side] = 0;
    });
  }
  block.phase([&](int thread) {
    for (int i = thread; i < v.shape.width + v.shape.height; i += block.threads()) {
      const bool down = i >= v.shape.width;
      measure_pixel<Filter>(block, int64_t(v.q[down ? kHeight : kWidth]),
                            down ? v.shape.height : v.shape.width, down ? i - v.shape.width : i,
                            &v.count[down], &v.lost[down]);
    }
  });
  block.phase([&](int thread) {
    if (thread == 0) lay_out(v, p, memory, floats);
  });
  block.phase([&](int thread) {
    const int width = v.shape.width;
    for (int i = thread; i < width + v.shape.height; i += block.threads())
      tabulate_pixel<Filter>(i < width ? v.across : v.down, i < width ? i : i - width);
    for (int i = thread; i <= 2 * v.radius; i += block.threads())
      v.parts[i] = gaussian(i - v.radius, v.q[kSigma]);
  });
  block.phase([&](int thread) {
    double sum = 0;
    for (int i = 0; i <= 2 * v.radius; ++i) sum += v.parts[i];
    for (int i = thread; i < 2 * v.radius + 1 + kRun; i += block.threads())
      v.taps[i] = i <= 2 * v.radius ? float(v.parts[i] / sum) : 0;
  });
  for (int s = 0; s < v.steps.count; ++s) {
    if (v.steps.list[s].kind != kToContrast || v.steps.list[s].amount == 1) continue;
    const float mean = M::mean_grey(block, v, s);
    block.phase([&](int thread) {
      if (thread == 0) v.steps.list[s].mean = mean;
    });
  }
  M::write_view(block, p, v);
}

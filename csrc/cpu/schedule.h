// Tiles in rounds. Within a round no two tiles touch the same block of rows or columns, and every
// block takes part once a round, so that each block's sums grow in one fixed order however many
// threads there are: the result is bitwise the same. Threads take tiles in order and wait only
// for the two blocks they need; there is no barrier between rounds.

struct Tile {
  int64_t row, column;  // blocks
  int64_t round;
  bool idle;  // a block without a partner in this round
  int64_t column_turn, row_turn;  // rounds that its blocks must have behind them
};

class Schedule {
 public:
  // Symmetric: unordered pairs of `rows` blocks. Otherwise all of rows × columns.
  Schedule(int64_t rows, int64_t columns, bool symmetric, int* progress)
      : rows_(rows), columns_(columns), symmetric_(symmetric), row_done_(progress),
        column_done_(symmetric ? progress : progress + rows) {
    n_ = symmetric ? rows + (rows & 1) : (rows > columns ? rows : columns);
    const int64_t pairs = n_ / 2;
    tiles_ = symmetric ? rows + (n_ - 1) * pairs : rows * columns;
    for (int64_t i = 0; i < progress_size(rows, columns, symmetric); ++i) progress[i] = 0;
  }

  static int64_t progress_size(int64_t rows, int64_t columns, bool symmetric) {
    return symmetric ? rows : rows + columns;
  }

  // The next tile of this thread, its blocks free; false when none is left.
  bool take(Tile& tile) {
    const int64_t t = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
    if (t >= tiles_) return false;
    tile = symmetric_ ? round_robin(t) : shifted(t);
    if (tile.row < rows_) wait(row_done_ + tile.row, tile.row_turn);
    if (tile.column < columns_ && !same(tile)) wait(column_done_ + tile.column, tile.column_turn);
    return true;
  }

  void finish(const Tile& tile) {
    const int done = int(tile.round + 1);
    if (tile.row < rows_) __atomic_store_n(row_done_ + tile.row, done, __ATOMIC_RELEASE);
    if (tile.column < columns_ && !same(tile))
      __atomic_store_n(column_done_ + tile.column, done, __ATOMIC_RELEASE);
  }

 private:
  bool same(const Tile& tile) const { return symmetric_ && tile.row == tile.column; }

  // The circle method of tournaments, after one round in which every block meets itself.
  Tile round_robin(int64_t t) const {
    if (t < rows_) return {t, t, 0, false, 0, 0};
    const int64_t pairs = n_ / 2, round = (t - rows_) / pairs, p = (t - rows_) % pairs;
    int64_t a = n_ - 1, b = round;
    if (p > 0) a = (round + p) % (n_ - 1), b = (round + n_ - 1 - p) % (n_ - 1);
    const int64_t row = a < b ? a : b, column = a < b ? b : a;
    return {row, column, round + 1, column >= rows_, round + 1, round + 1};
  }

  // In each round every block of the shorter side meets one of the longer. A longer side's block
  // meets a = shorter − 1, …, 0 in a row; before the first of these it had a pause, or nobody.
  Tile shifted(int64_t t) const {
    const int64_t shorter = rows_ < columns_ ? rows_ : columns_;
    const int64_t round = t / shorter, a = t % shorter, b = (a + round) % n_;
    const int64_t turn = a + 1 < shorter ? round : b + 1 < shorter && round > b ? b + 1 : 0;
    return rows_ < columns_ ? Tile{a, b, round, false, turn, round}
                            : Tile{b, a, round, false, round, turn};
  }

  static void wait(const int* done, int64_t round) {
    for (int spins = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < round; ++spins) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
      if (spins > 256) sched_yield(), spins = 0;
    }
  }

  int64_t rows_, columns_, n_, tiles_, next_ = 0;
  bool symmetric_;
  int *row_done_, *column_done_;
};

// Block sizes: multiples of every panel and group height below, small where the matrix is small so
// that the threads have tiles to share, bounded so that a tile's working set stays in the L2 cache.
static int64_t block_rows(int64_t rows) {
  const int64_t largest = sizeof(real) == 4 ? 384 : 192;
  return rows >= 8192 ? largest : rows >= 1536 ? 192 : rows >= 512 ? 96 : 48;
}

static int64_t block_of(const LseProblem<real>& p) {
  return block_rows(p.x.count < p.y.count ? p.x.count : p.y.count);
}

// Threads worth waking: waking one costs about as much as a product of this size.
static int64_t workers(const Runtime& runtime, const LseProblem<real>& p) {
  return p.x.count * p.y.count * p.d < (int64_t(1) << 23) ? 1 : runtime.threads;
}

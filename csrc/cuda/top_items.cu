// Scores of a tile of users and items as a small matrix product through shared memory, and one warp for each user that
// keeps the list of the best. Scores never reach global memory.
#include <cmath>
#include <cstdint>

#include "cuda/block.hpp"
#include "cuda/kernels.hpp"
#include "mfdmc/top_list.hpp"

namespace mfdmc::cuda {
namespace {

constexpr int kUsers = 64, kItems = 64;  // of a tile
constexpr int kDepth = 32;               // numbers of the embeddings that are in shared memory at a time
constexpr int kPatch = 4;                // a thread scores kPatch users by kPatch items
constexpr int kStride = kUsers + 4;      // rows of kUsers or kItems numbers: still aligned, without bank conflicts
static_assert(kUsers == kItems && kItems % kLanes == 0 && kDepth % 8 == 0);

struct alignas(16) Four {
  float at[kPatch];
};

// The best so far, in order. Its length is kept by the caller, as a number that all lanes know.
struct TopList {
  float* scores;        // [capacity]
  std::int32_t* items;  // [capacity]
  int capacity;
};

// Puts an item into the list of `length` and returns the new length. It comes after those with its score, as items are
// offered in ascending order. The worst falls out where the list is full: the caller knows that the item is better.
MFDMC_DEVICE int insert(const Warp& warp, const TopList& list, int length, float score, std::int32_t item) {
  int place = 0;
  for (int base = 0; base < length; base += kLanes)
    place += count_bits(
        warp.ballot([&](int lane) { return base + lane < length && list.scores[base + lane] >= score; }));
  const int moved = length < list.capacity ? length : list.capacity - 1;  // [place, moved) move back by one
  for (int base = (moved - 1) / kLanes * kLanes; base >= 0 && base + kLanes > place; base -= kLanes) {
    Private<float> held_score;
    Private<std::int32_t> held_item;
    warp.each(kLanes, [&](int lane) {
      if (base + lane < place || base + lane >= moved) return;
      held_score.at(lane) = list.scores[base + lane];
      held_item.at(lane) = list.items[base + lane];
    });
    warp.each(kLanes, [&](int lane) {
      if (base + lane < place || base + lane >= moved) return;
      list.scores[base + lane + 1] = held_score.at(lane);
      list.items[base + lane + 1] = held_item.at(lane);
    });
  }
  warp.each(1, [&](int) {
    list.scores[place] = score;
    list.items[place] = item;
  });
  return length < list.capacity ? length + 1 : length;
}

// Places of a user that are already there: only what comes after the last of them counts.
struct Cut {
  float score;
  std::int64_t item;

  MFDMC_DEVICE Cut(const TopItems& call, std::int64_t user) : score(INFINITY), item(-1) {
    if (call.first == 0) return;
    score = call.scores[user * call.n + call.first - 1];
    item = call.found[user * call.n + call.first - 1];
  }

  MFDMC_DEVICE bool passes(float of, std::int64_t candidate) const {
    return of > -INFINITY && comes_before(score, item, of, candidate);
  }
};

struct Candidate {
  float score;
  std::int32_t item;  // -1: none
};

// Offers kLanes candidates, candidate(lane), to a list and returns its new length. Among equal scores their items
// ascend.
template <typename CandidateOf>
MFDMC_DEVICE int offer(const Warp& warp, const TopList& list, int length, const Cut& cut, CandidateOf candidate) {
  const auto good_enough = [&](float score) {
    return length < list.capacity || score > list.scores[list.capacity - 1];
  };
  unsigned good = warp.ballot([&](int lane) {
    const Candidate one = candidate(lane);
    return one.item >= 0 && cut.passes(one.score, one.item) && good_enough(one.score);
  });
  for (; good; good &= good - 1) {
    const Candidate one = candidate(lowest_bit(good));
    // asked once more, as the list has become better
    if (good_enough(one.score)) length = insert(warp, list, length, one.score, one.item);
  }
  return length;
}

// One block: a tile of users, and one split of the items, tile by tile.
struct ScoreAndSelect {
  static constexpr int kThreads = (kUsers / kPatch) * (kItems / kPatch);
  static constexpr const char* kName = "top_items";
  TopItems call;

  MFDMC_HOST_DEVICE int width() const { return call.last - call.first; }

  // Shared memory: parts of the embeddings, scores, lists, their lengths, and how far the exclusions are worked off.
  static constexpr std::size_t kPart = sizeof(float) * kDepth * kStride;
  static constexpr std::size_t kScores = 2 * kPart, kCursors = kScores + sizeof(float) * kUsers * kStride,
                               kLengths = kCursors + sizeof(std::int64_t) * kUsers,
                               kLists = kLengths + sizeof(int) * kUsers;
  std::size_t shared_bytes() const { return kLists + 2 * sizeof(float) * kUsers * width(); }

  MFDMC_DEVICE TopList list_of(Block& block, int user) const {
    return {block.shared<float>(kLists) + user * width(),
            block.shared<std::int32_t>(kLists) + (kUsers + user) * width(), width()};
  }

  // part[c][r] = table[first + r][column + c]; zero outside.
  MFDMC_DEVICE void load_part(int task, const float* table, std::int64_t n_rows, std::int64_t first, int column,
                              float* part) const {
    // 8 columns of 4 rows in a warp: whole sectors of global memory, and 32 banks of shared memory
    const int c = task % 8 + task / 32 % (kDepth / 8) * 8, r = task / 8 % 4 + task / (4 * kDepth) * 4;
    const bool there = first + r < n_rows && column + c < call.dim;
    part[c * kStride + r] = there ? table[(first + r) * call.dim + column + c] : 0.0f;
  }

  MFDMC_DEVICE void score_tile(Block& block, std::int64_t first_user, std::int64_t first_item) const {
    float* const user_part = block.shared<float>(0);
    float* const item_part = block.shared<float>(kPart);
    float* const scores = block.shared<float>(kScores);
    Private<Four[kPatch]> sums;
    const auto patch = [&](int thread, auto work) { work(thread / (kItems / kPatch), thread % (kItems / kPatch)); };
    block.each_thread([&](int thread) {
      for (int a = 0; a < kPatch; ++a)
        for (int b = 0; b < kPatch; ++b) sums.at(thread)[a].at[b] = 0;
    });
    for (int column = 0; column < call.dim; column += kDepth) {
      block.each(2 * kUsers * kDepth, [&](int task) {
        if (task < kUsers * kDepth)
          load_part(task, call.users, call.n_users, first_user, column, user_part);
        else
          load_part(task - kUsers * kDepth, call.items, call.n_items, first_item, column, item_part);
      });
      const int depth = call.dim - column < kDepth ? call.dim - column : kDepth;
      block.each_thread([&](int thread) {
        Four(&sum)[kPatch] = sums.at(thread);
        patch(thread, [&](int row, int place) {
          for (int c = 0; c < depth; ++c) {
            const Four u = *reinterpret_cast<const Four*>(user_part + c * kStride + row * kPatch);
            const Four i = *reinterpret_cast<const Four*>(item_part + c * kStride + place * kPatch);
            for (int a = 0; a < kPatch; ++a)
              for (int b = 0; b < kPatch; ++b) sum[a].at[b] += u.at[a] * i.at[b];
          }
        });
      });
    }
    block.each_thread([&](int thread) {
      patch(thread, [&](int row, int place) {
        for (int a = 0; a < kPatch; ++a) {
          Four sum = sums.at(thread)[a];
          for (int b = 0; b < kPatch; ++b) {
            const std::int64_t item = first_item + place * kPatch + b;
            if (call.item_bias && item < call.n_items) sum.at[b] += call.item_bias[item];
          }
          *reinterpret_cast<Four*>(scores + (row * kPatch + a) * kStride + place * kPatch) = sum;
        }
      });
    });
  }

  // Takes the user's excluded items of a tile out of its scores and moves the cursor behind them.
  MFDMC_DEVICE std::int64_t exclude(const Warp& warp, std::int64_t cursor, std::int64_t end, std::int64_t first_item,
                                    float* row) const {
    for (bool more = cursor < end; more;) {
      const auto here = [&](int lane) {
        return cursor + lane < end && call.exclude_items[cursor + lane] < first_item + kItems;
      };
      warp.each(kLanes, [&](int lane) {
        if (here(lane)) row[call.exclude_items[cursor + lane] - first_item] = -INFINITY;
      });
      const int passed = count_bits(warp.ballot(here));
      cursor += passed;
      more = passed == kLanes;
    }
    return cursor;
  }

  MFDMC_DEVICE void operator()(Block& block) const {
    const std::int64_t first_user = block.index() / call.splits * kUsers, split = block.index() % call.splits;
    const std::int64_t tiles = (call.n_items + kItems - 1) / kItems;
    const std::int64_t first_tile = tiles * split / call.splits, last_tile = tiles * (split + 1) / call.splits;
    const int n_users =
        static_cast<int>(call.n_users - first_user < kUsers ? call.n_users - first_user : std::int64_t{kUsers});
    std::int64_t* const cursors = block.shared<std::int64_t>(kCursors);
    int* const lengths = block.shared<int>(kLengths);

    block.each(n_users, [&](int u) {
      lengths[u] = 0;
      if (!call.exclude_offsets) return;
      // the first excluded item of this split
      std::int64_t low = call.exclude_offsets[first_user + u], high = call.exclude_offsets[first_user + u + 1];
      while (low < high) {
        const std::int64_t middle = (low + high) / 2;
        if (call.exclude_items[middle] < first_tile * kItems)
          low = middle + 1;
        else
          high = middle;
      }
      cursors[u] = low;
    });
    for (std::int64_t tile = first_tile; tile < last_tile; ++tile) {
      const std::int64_t first_item = tile * kItems;
      score_tile(block, first_user, first_item);
      block.each_warp(n_users, [&](const Warp& warp, int u) {
        float* const row = block.shared<float>(kScores) + u * kStride;
        if (call.exclude_offsets) {
          const std::int64_t cursor =
              exclude(warp, cursors[u], call.exclude_offsets[first_user + u + 1], first_item, row);
          warp.each(1, [&](int) { cursors[u] = cursor; });
        }
        const TopList list = list_of(block, u);
        const Cut cut(call, first_user + u);
        int length = lengths[u];
        for (int base = 0; base < kItems; base += kLanes)
          length = offer(warp, list, length, cut, [&](int lane) {
            const std::int64_t item = first_item + base + lane;
            return Candidate{row[base + lane], item < call.n_items ? static_cast<std::int32_t>(item) : -1};
          });
        warp.each(1, [&](int) { lengths[u] = length; });
      });
    }
    block.each(n_users * width(), [&](int task) {
      const int u = task / width(), k = task % width();
      const TopList list = list_of(block, u);
      const std::int64_t to = ((first_user + u) * call.splits + split) * width() + k;
      call.part_scores[to] = k < lengths[u] ? list.scores[k] : -INFINITY;
      call.part_items[to] = k < lengths[u] ? list.items[k] : -1;
    });
  }
};

// One warp for each user: the best of its splits.
struct Merge {
  static constexpr int kThreads = 128, kWarps = kThreads / kLanes;
  static constexpr const char* kName = "top_items, merging";
  TopItems call;

  MFDMC_HOST_DEVICE int width() const { return call.last - call.first; }
  std::size_t shared_bytes() const { return 2 * sizeof(float) * kWarps * width(); }

  MFDMC_DEVICE void operator()(Block& block) const {
    block.each_warp(kWarps, [&](const Warp& warp, int w) {
      const std::int64_t user = block.index() * kWarps + w;
      if (user >= call.n_users) return;
      const TopList list = {block.shared<float>(0) + w * width(),
                            block.shared<std::int32_t>(0) + (kWarps + w) * width(), width()};
      const Cut cut(call, user);
      int length = 0;
      const int n = call.splits * width();
      const float* const part_scores = call.part_scores + user * n;
      const std::int32_t* const part_items = call.part_items + user * n;
      // equal scores: in item order inside a split's list, and from one split to the next
      for (int base = 0; base < n; base += kLanes)
        length = offer(warp, list, length, cut, [&](int lane) {
          return base + lane < n ? Candidate{part_scores[base + lane], part_items[base + lane]} : Candidate{0.0f, -1};
        });
      const std::int64_t to = user * call.n + call.first;
      warp.each(width(), [&](int k) {
        call.scores[to + k] = k < length ? list.scores[k] : -INFINITY;
        call.found[to + k] = k < length ? list.items[k] : -1;
      });
    });
  }
};

}  // namespace

void top_items(const TopItems& call, Queue queue) {
  if (call.first < 0 || call.first >= call.last || call.last > call.n || call.last - call.first > kMostListed ||
      call.splits < 1)
    throw std::invalid_argument("places and splits do not fit");
  const ScoreAndSelect select{call};
  launch(select, (call.n_users + kUsers - 1) / kUsers * call.splits, select.shared_bytes(), queue);
  const Merge merge{call};
  launch(merge, (call.n_users + Merge::kWarps - 1) / Merge::kWarps, merge.shared_bytes(), queue);
}

}  // namespace mfdmc::cuda

// One read and one write of what is kept, without a copy of the table.
//
// Each block takes a ticket, which is its tile, reads the tile's kept columns into shared memory, says so by a flag,
// waits for the flags of the tiles in the way (mfdmc/compaction.hpp) and writes. No two blocks write to one place. A
// number that is still to be read is not overwritten, as its tile has no flag yet. And the waiting ends: a block
// waits only for lower tickets, whose blocks have started, and none waits before it has raised its flag.
#include <cstdint>

#include "cuda/block.hpp"
#include "cuda/kernels.hpp"
#include "mfdmc/compaction.hpp"

namespace mfdmc::cuda {
namespace {

constexpr int kMostRows = 128;

struct Compact {
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "compact_columns";
  CompactColumns call;
  Compaction plan;
  std::int32_t* progress;  // tickets given out, then a flag for each tile

  // beside the tile, the place of the ticket
  std::size_t shared_bytes() const {
    return sizeof(float) * (static_cast<std::size_t>(plan.rows_of_tile) * call.kept + 4);
  }

  MFDMC_DEVICE void read(const Block& block, std::int64_t tile, float* held) const {
    const std::int64_t first = plan.first_row(tile);
    const int n = static_cast<int>(plan.end_row(tile) - first) * call.kept;
    block.each(n, [&](int task) {
      held[task] = call.table[(first + task / call.kept) * call.columns + call.keep[task % call.kept]];
    });
  }

  MFDMC_DEVICE void write(const Block& block, std::int64_t tile, const float* held) const {
    const std::int64_t first = plan.first_row(tile);
    const int n = static_cast<int>(plan.end_row(tile) - first) * call.kept;
    block.each(n, [&](int task) { call.table[first * call.kept + task] = held[task]; });
  }

  MFDMC_DEVICE void operator()(Block& block) const {
    float* const held = block.shared<float>(4 * sizeof(float));
    const std::int64_t tile = block.ticket(progress, block.shared<std::int32_t>(0));
    std::int32_t* const flags = progress + 1;
    read(block, tile, held);
    block.raise_flag(flags + tile);
    block.wait_for(flags, static_cast<int>(plan.first_in_the_way(tile)), static_cast<int>(plan.end_in_the_way(tile)));
    write(block, tile, held);
  }
};

Compaction plan_of(const CompactColumns& call) {
  const int room = static_cast<int>(kPlainShared / sizeof(float)) - 4, rows = room / call.kept;
  return {call.n_rows, call.columns, call.kept, rows < kMostRows ? rows : kMostRows};
}

}  // namespace

std::int64_t compaction_tiles(const CompactColumns& call) { return plan_of(call).n_tiles(); }

void compact_columns(const CompactColumns& call, std::int32_t* progress, Queue queue) {
  const Compact compact{call, plan_of(call), progress};
  launch(compact, compact.plan.n_tiles(), compact.shared_bytes(), queue);
}

#ifdef MFDMC_EMULATE
void compact_in_any_order(const CompactColumns& call, std::uint64_t seed) {
  const Compact compact{call, plan_of(call), nullptr};
  const Compaction& plan = compact.plan;
  const std::int64_t n = plan.n_tiles();
  const auto random = [&](std::size_t below) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::size_t>((seed >> 33) % below);
  };
  std::vector<std::vector<float>> held(n);
  std::vector<std::int64_t> unread(n), waiting;
  for (std::int64_t tile = 0; tile < n; ++tile) unread[tile] = tile;
  const Block block(0, n, Compact::kThreads, 0);
  while (!unread.empty() || !waiting.empty()) {
    std::vector<std::size_t> ready;  // places in `waiting`
    for (std::size_t w = 0; w < waiting.size(); ++w) {
      bool free = true;
      for (std::int64_t other = plan.first_in_the_way(waiting[w]); other < plan.end_in_the_way(waiting[w]); ++other)
        free = free && !held[other].empty();
      if (free) ready.push_back(w);
    }
    // writes as early as they may, so that what comes after them finds as much overwritten as can be
    if (!ready.empty() && (unread.empty() || random(4))) {
      const std::size_t w = ready[random(ready.size())];
      compact.write(block, waiting[w], held[waiting[w]].data());
      waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(w));
    } else {
      // blocks start in order, but some overtake others
      const std::size_t u = random(unread.size() < 8 ? unread.size() : 8);
      const std::int64_t tile = unread[u];
      held[tile].resize(static_cast<std::size_t>(plan.rows_of_tile) * call.kept);
      compact.read(block, tile, held[tile].data());
      waiting.push_back(tile);
      unread.erase(unread.begin() + static_cast<std::ptrdiff_t>(u));
    }
  }
}
#endif

}  // namespace mfdmc::cuda

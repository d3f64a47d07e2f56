#include "cpu/rating_files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace mfdmc {
namespace {

// pieces of the same size that the kernel is asked to fetch ahead
constexpr std::int64_t kPiecesAhead = 8;

int opened(const std::string& path, std::int64_t bytes) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw RatingFileError(path + ": cannot be read (" + std::strerror(errno) + ")");
  struct stat status;
  if (::fstat(file, &status) != 0 || status.st_size != bytes) {
    ::close(file);
    throw RatingFileError(path + ": truncated or damaged: " + std::to_string(bytes) + " bytes expected");
  }
  return file;
}

// Fills `bytes` from `offset` on, and lets the kernel begin with what comes `kPiecesAhead` pieces later.
const char* read_all(int file, void* to, std::int64_t bytes, std::int64_t offset) {
#ifdef POSIX_FADV_WILLNEED  // macOS has none
  ::posix_fadvise(file, offset + kPiecesAhead * bytes, bytes, POSIX_FADV_WILLNEED);
#endif
  char* at = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t done = ::pread(file, at, static_cast<std::size_t>(bytes), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return std::strerror(errno);
    if (done == 0) return "truncated while it was read";
    at += done;
    offset += done;
    bytes -= done;
  }
  return nullptr;
}

}  // namespace

RatingFiles::RatingFiles(const std::string& item_path, const std::string& rating_path, std::vector<float> values,
                         std::int64_t n, std::int64_t begin, std::int64_t n_items)
    : item_path_(item_path), rating_path_(rating_path), values_(std::move(values)), begin_(begin), n_items_(n_items) {
  items_ = opened(item_path, n * 4);
  try {
    ratings_ = opened(rating_path, coded() ? n : n * 4);
  } catch (...) {
    ::close(items_);
    throw;
  }
}

RatingFiles::~RatingFiles() {
  ::close(items_);
  ::close(ratings_);
}

const char* RatingFiles::read(std::int64_t first, std::int64_t n, Piece& piece) const {
  first += begin_;
  piece.items.resize(n);
  if (const char* what = read_all(items_, piece.items.data(), n * 4, first * 4)) return what;
  // unsigned, so that what is below 0 is too large
  std::uint32_t largest = 0;
  for (const std::int32_t item : piece.items) largest = std::max(largest, static_cast<std::uint32_t>(item));
  if (static_cast<std::int64_t>(largest) >= n_items_) return "damaged: an item that does not exist";
  if (!coded()) {
    piece.ratings.resize(n);
    return read_all(ratings_, piece.ratings.data(), n * 4, first * 4);
  }
  piece.codes.resize(n);
  if (const char* what = read_all(ratings_, piece.codes.data(), n, first)) return what;
  const std::uint8_t last = *std::max_element(piece.codes.begin(), piece.codes.end());
  return last < values_.size() ? nullptr : "damaged: a code that stands for no rating";
}

void RatingFiles::fail(const char* what) const {
  throw RatingFileError(item_path_ + " or " + rating_path_ + ": " + what);
}

}  // namespace mfdmc

// Ratings that stay in files and are read piece by piece.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace mfdmc {

// A file of ratings that cannot be read, is too short, or holds what it must not.
struct RatingFileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The items and ratings of a store (mfdmc_fast/data/store_files.py), by `pread`: what the kernel keeps of a file in its
// cache gives way to other use and is no memory of this process, unlike mapped pages, and a file that gets shorter
// is an error and not the end of the process. Reading is safe from several threads.
class RatingFiles {
 public:
  // Ratings [first, first + n) as they are stored.
  struct Piece {
    std::vector<std::int32_t> items;
    std::vector<std::uint8_t> codes;  // where ratings are coded
    std::vector<float> ratings;       // where they are not
    void reserve(std::int64_t n) {
      items.reserve(n);
      codes.reserve(n);
      ratings.reserve(n);
    }
  };

  // N ratings, of which those from number `begin` on are read and numbered from 0; `values` are the distinct ratings that
  // the bytes of the file number, empty where it holds float32.
  RatingFiles(const std::string& item_path, const std::string& rating_path, std::vector<float> values, std::int64_t n,
              std::int64_t begin, std::int64_t n_items);
  ~RatingFiles();
  RatingFiles(const RatingFiles&) = delete;
  RatingFiles& operator=(const RatingFiles&) = delete;

  bool coded() const { return !values_.empty(); }
  const float* values() const { return values_.data(); }

  // Null, or what is wrong. Does not throw where the piece has memory for n ratings.
  const char* read(std::int64_t first, std::int64_t n, Piece& piece) const;
  // What went wrong, as an error that names the files.
  [[noreturn]] void fail(const char* what) const;

 private:
  std::string item_path_, rating_path_;
  std::vector<float> values_;
  std::int64_t begin_, n_items_;
  int items_ = -1, ratings_ = -1;  // file descriptors
};

}  // namespace mfdmc

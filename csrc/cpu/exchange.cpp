#include "cpu/exchange.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace mfdmc {
namespace {

// Copies of values, one after another, also of none.
template <typename T>
class Writer {
 public:
  explicit Writer(char* to) : to_(to) {}
  void operator()(const T* values, std::int64_t n) {
    if (n) std::memcpy(to_, values, n * sizeof(T));
    to_ += n * sizeof(T);
  }
  char* end() const { return to_; }

 private:
  char* to_;
};

}  // namespace

void Exchange::lay_out(const std::vector<std::int64_t>& sent, const std::vector<std::int64_t>& received) {
  for (auto [messages, sizes] : {std::pair{&sent_, &sent}, std::pair{&received_, &received}}) {
    messages->sizes = *sizes;
    const std::int64_t total = std::accumulate(sizes->begin(), sizes->end(), std::int64_t{0});
    // grows only, as sizes go up and down
    if (static_cast<std::int64_t>(messages->bytes.size()) < total) messages->bytes.resize(total);
  }
}

void Exchange::share_counts(const std::int32_t* counts, std::int64_t n) {
  constexpr std::int64_t size = sizeof(std::int32_t);
  std::vector<std::int64_t> sent, received;
  for (int r = 0; r < n_processes_; ++r) {
    sent.push_back(n * (first_item(r + 1) - first_item(r)) * size);
    received.push_back(n * own_items() * size);
  }
  lay_out(sent, received);
  Writer<std::int32_t> write(sent_.bytes.data());
  for (int r = 0; r < n_processes_; ++r)
    for (std::int64_t b = 0; b < n; ++b) write(counts + b * n_items_ + first_item(r), first_item(r + 1) - first_item(r));
  swap_(sent_, received_);
  n_batches_ = n;
  counts_.resize(n_processes_ * n * own_items());
  if (!counts_.empty()) std::memcpy(counts_.data(), received_.bytes.data(), counts_.size() * size);
}

void Exchange::begin(std::int64_t index, const GroupedBatch& batch) {
  const std::int64_t n = own_items();
  owned_.rows.clear();
  owned_.offsets.assign(1, 0);
  wanted_.resize(n_processes_);
  for (std::vector<std::int32_t>& rows : wanted_) rows.clear();
  for (std::int64_t i = 0; i < n; ++i) {
    std::int64_t total = 0;
    for (int r = 0; r < n_processes_; ++r) {
      const std::int32_t count = counts_[(r * n_batches_ + index) * n + i];
      if (count) wanted_[r].push_back(static_cast<std::int32_t>(owned_.rows.size()));
      total += count;
    }
    if (!total) continue;
    owned_.rows.push_back(i);
    owned_.offsets.push_back(owned_.offsets.back() + total);
  }
  bounds_.resize(n_processes_ + 1);
  const std::vector<std::int64_t>& rows = batch.item.rows;
  for (int r = 0; r <= n_processes_; ++r)
    bounds_[r] = std::lower_bound(rows.begin(), rows.end(), first_item(r)) - rows.begin();
}

void Exchange::share_items(const BatchSide& owned, const LossSetup& loss, BatchSide& items) {
  const std::int64_t dim = loss.embedding_dim, padded = loss.padded_dim, size = (dim + 1) * sizeof(float);
  std::vector<std::int64_t> sent, received;
  for (int r = 0; r < n_processes_; ++r) {
    sent.push_back(static_cast<std::int64_t>(wanted_[r].size()) * size);
    received.push_back((bounds_[r + 1] - bounds_[r]) * size);
  }
  lay_out(sent, received);
  Writer<float> write(sent_.bytes.data());
  for (const std::vector<std::int32_t>& rows : wanted_)
    for (const std::int32_t row : rows) {
      write(owned.embeddings + row * padded, dim);
      write(owned.bias + row, 1);
    }
  swap_(sent_, received_);
  // what has come is in the order of the items, as their owners are
  const char* from = received_.bytes.data();
  for (std::int64_t row = 0; row < items.n_rows; ++row, from += size) {
    float* const embedding = items.embeddings + row * padded;
    std::memcpy(embedding, from, dim * sizeof(float));
    std::fill(embedding + dim, embedding + padded, 0.0f);
    std::memcpy(items.bias + row, from + dim * sizeof(float), sizeof(float));
  }
}

void Exchange::sum_items(const BatchSide& items, const LossSetup& loss, BatchSide& owned, double* more,
                         std::int64_t n) {
  const std::int64_t dim = loss.embedding_dim, padded = loss.padded_dim, size = (dim + 1) * sizeof(float);
  const std::int64_t more_size = n * static_cast<std::int64_t>(sizeof(double));
  std::vector<std::int64_t> sent, received;
  for (int r = 0; r < n_processes_; ++r) {
    sent.push_back(more_size + (bounds_[r + 1] - bounds_[r]) * size);
    received.push_back(more_size + static_cast<std::int64_t>(wanted_[r].size()) * size);
  }
  lay_out(sent, received);
  char* to = sent_.bytes.data();
  for (int r = 0; r < n_processes_; ++r) {
    Writer<double> write_more(to);
    write_more(more, n);
    Writer<float> write(write_more.end());
    for (std::int64_t row = bounds_[r]; row < bounds_[r + 1]; ++row) {
      write(items.grad + row * padded, dim);
      write(items.grad_bias + row, 1);
    }
    to = write.end();
  }
  swap_(sent_, received_);
  std::fill(more, more + n, 0.0);
  std::fill(owned.grad, owned.grad + owned.n_rows * padded, 0.0f);
  std::fill(owned.grad_bias, owned.grad_bias + owned.n_rows, 0.0f);
  const char* from = received_.bytes.data();
  std::vector<double> of_process(n);
  std::vector<float> row_of_process(dim + 1);
  for (int r = 0; r < n_processes_; ++r) {
    if (n) std::memcpy(of_process.data(), from, more_size);
    from += more_size;
    for (std::int64_t j = 0; j < n; ++j) more[j] += of_process[j];
    for (const std::int32_t row : wanted_[r]) {
      std::memcpy(row_of_process.data(), from, size);
      from += size;
      float* const grad = owned.grad + row * padded;
      for (std::int64_t c = 0; c < dim; ++c) grad[c] += row_of_process[c];
      owned.grad_bias[row] += row_of_process[dim];
    }
  }
}

void Exchange::sum(double* values, std::int64_t n) {
  if (n == 0) return;  // in all processes
  const std::int64_t size = n * static_cast<std::int64_t>(sizeof(double));
  lay_out(std::vector<std::int64_t>(n_processes_, size), std::vector<std::int64_t>(n_processes_, size));
  Writer<double> write(sent_.bytes.data());
  for (int r = 0; r < n_processes_; ++r) write(values, n);
  swap_(sent_, received_);
  std::fill(values, values + n, 0.0);
  std::vector<double> of_process(n);
  for (int r = 0; r < n_processes_; ++r) {
    std::memcpy(of_process.data(), received_.bytes.data() + r * size, size);
    for (std::int64_t j = 0; j < n; ++j) values[j] += of_process[j];
  }
}

}  // namespace mfdmc

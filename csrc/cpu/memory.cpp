#include "memory.h"

#include <algorithm>
#include <memory>

#include "pool.h"

namespace ghost {
namespace {

constexpr int64_t kLeast = 32 << 10;  // bytes; smaller blocks malloc keeps by itself

struct Lent {
  char* data;
  int64_t bytes;

  explicit Lent(int64_t size) : data(Pool::of_process().take(size)), bytes(size) {}
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;
  ~Lent() {
    if (data) Pool::of_process().give(data, bytes);
  }
};

}  // namespace

abi::Tensor new_tensor(std::initializer_list<int64_t> sizes, abi::DType dtype, abi::Layout layout) {
  const int64_t dim = static_cast<int64_t>(sizes.size());
  int64_t strides[abi::kMaxDim];
  const int64_t bytes = abi::dense_strides(sizes.begin(), dim, layout, strides) * abi::size_of(dtype);
  const bool is_empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
  if (bytes >= kLeast && !is_empty && torch_from_blob) {
    auto lent = std::make_unique<Lent>(bytes);
    if (lent->data) {
      const auto give = [](void*, void* lent) { delete static_cast<Lent*>(lent); };
      abi::Tensor t = abi::over(lent->data, sizes.begin(), strides, dim, dtype, give, lent.get());
      lent.release();
      return t;
    }
  }
  abi::Tensor t = abi::empty(sizes, dtype, layout);
  if (!is_empty) advise_huge_pages(t.data<char>(), bytes);
  return t;
}

}  // namespace ghost

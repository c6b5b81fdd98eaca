// Memory whose neighbours are pages that must not be touched.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

namespace sanitize {

/// Where a block lies: in malloc's memory, which AddressSanitizer surrounds, or between two pages without access, at
/// the first one's end or at the second one's beginning.
enum class Place { heap, begins, ends };

class Block {
 public:
  Block(int64_t bytes, Place place, int fill) : bytes_(bytes > 0 ? bytes : 1) {
    if (place == Place::heap) {
      data_ = static_cast<char*>(::operator new(static_cast<size_t>(bytes_)));
    } else {
      const int64_t page = sysconf(_SC_PAGESIZE), usable = (bytes_ + page - 1) / page * page;
      mapped_ = usable + 2 * page;
      void* found = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (found == MAP_FAILED) throw std::bad_alloc();
      base_ = static_cast<char*>(found);
      if (mprotect(base_ + page, usable, PROT_READ | PROT_WRITE)) {
        munmap(base_, mapped_);
        throw std::bad_alloc();
      }
      data_ = base_ + page + (place == Place::ends ? usable - bytes_ : 0);
    }
    std::memset(data_, fill, bytes_);
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() {
    if (base_)
      munmap(base_, mapped_);
    else
      ::operator delete(data_);
  }

  char* data() const { return data_; }

 private:
  int64_t bytes_, mapped_ = 0;
  char *base_ = nullptr, *data_;
};

}  // namespace sanitize

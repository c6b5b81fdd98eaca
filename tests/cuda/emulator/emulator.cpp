// The fibers behind emulated.h: stacks by ucontext, switches by setjmp, which costs no system call.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "emulated.h"

namespace ghost::cuda::emulated {

int thread, threads, block, row_of_blocks, rows_of_blocks, layer_of_blocks;
std::string left_out_file;
int left_out_line;

namespace {

constexpr size_t kStack = 64 << 10, kMargin = 4096;

enum class State { ready, at_block, at_warp, done };

struct Copy {
  void* to;
  unsigned char bytes[16];
  int count;
};

struct Fiber {
  std::vector<Copy> copies;  // that it has begun
  ucontext_t start;
  jmp_buf at;
  State state;
  bool begun;
};

struct Warp {
  int waiting = 0;
  void (*what)(Exchange&);
  Exchange exchange;
};

std::vector<Fiber> fibers;
std::vector<Warp> the_warps;
int waiting, alive;
jmp_buf scheduler;
size_t turn;  // of the scheduler, which longjmp must not roll back
bool moved, parted;
Place meeting;  // where the first of the threads that wait has come to
unsigned char* shared;
int shared_bytes;
bool outside;
const std::function<void(unsigned char*)>* body;

void leave(State state) {
  Fiber& fiber = fibers[thread];
  fiber.state = state;
  if (_setjmp(fiber.at) == 0) _longjmp(scheduler, 1);
}

void release_block_if_complete() {
  if (waiting < alive) return;
  waiting = 0;
  for (int i = 0; i < threads; i++)
    if (fibers[i].state == State::at_block) fibers[i].state = State::ready;
}

void enter() {
  (*body)(shared);
  alive--;
  outside |= !fibers[thread].copies.empty();
  fibers[thread].state = State::done;
  if (waiting) release_block_if_complete();
  _longjmp(scheduler, 1);
}

bool run_block(std::vector<int>& order, std::mt19937* random, std::vector<unsigned char>& stacks) {
  waiting = 0, alive = threads, parted = false;
  the_warps.assign(threads / kWarp, Warp{});
  for (int i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    fiber.state = State::ready, fiber.begun = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks.data() + i * kStack, fiber.start.uc_stack.ss_size = kStack;
    makecontext(&fiber.start, enter, 0);
  }
  while (alive) {
    moved = false;
    if (random) std::shuffle(order.begin(), order.end(), *random);
    for (turn = 0; turn < order.size(); turn++) {
      Fiber& fiber = fibers[order[turn]];
      if (fiber.state != State::ready) continue;
      moved = true;
      thread = order[turn];
      if (_setjmp(scheduler) == 0) {
        if (fiber.begun) _longjmp(fiber.at, 1);
        fiber.begun = true;
        setcontext(&fiber.start);
      }
    }
    if (!moved) return false;
  }
  return !parted;
}

}  // namespace

void wait_for_block(Place place) {
  if (waiting++ == 0) meeting = place;
  parted |= place != meeting;
  fibers[thread].state = State::at_block;
  release_block_if_complete();
  leave(fibers[thread].state);
}

void meet(void (*what)(Exchange&)) {
  Warp& warp = the_warps[thread / kWarp];
  if (warp.waiting == 0) warp.what = what;
  parted |= what != warp.what;
  if (++warp.waiting < kWarp) return leave(State::at_warp);
  warp.waiting = 0;
  if (!parted) what(warp.exchange);
  const int first = thread / kWarp * kWarp;
  for (int i = first; i < first + kWarp; i++)
    if (fibers[i].state == State::at_warp) fibers[i].state = State::ready;
}

bool counts_banks;
std::map<std::pair<std::string_view, std::string_view>, Banks> banks;

void count_banks(std::string_view file, std::string_view kind, unsigned char* const* rows, int matrices) {
  Banks& count = banks[{file, kind}];
  for (int i = 0; i < matrices; i++) {
    std::set<uintptr_t> at[8];  // the rows in each 16 bytes of the 128 that all banks have side by side
    size_t most = 0;
    for (int row = 8 * i; row < 8 * i + 8; row++) {
      auto& there = at[reinterpret_cast<uintptr_t>(rows[row]) / 16 % 8];
      there.insert(reinterpret_cast<uintptr_t>(rows[row]));
      most = std::max(most, there.size());
    }
    count.matrices++, count.cycles += static_cast<int64_t>(most);
  }
}

void expect_shared(const void* begin, int bytes) {
  const auto* at = static_cast<const unsigned char*>(begin);
  outside |= at < shared || at + bytes > shared + shared_bytes;
}

void begin_copy(void* to, const void* from, int bytes) {
  Copy copy{to, {}, bytes};
  std::memcpy(copy.bytes, from, bytes);
  fibers[thread].copies.push_back(copy);
}

void finish_copies() {
  for (const Copy& copy : fibers[thread].copies) std::memcpy(copy.to, copy.bytes, copy.count);
  fibers[thread].copies.clear();
}

Exchange& exchange() { return the_warps[thread / kWarp].exchange; }

const char* run(int64_t blocks, int64_t rows, int64_t layers, int count, int bytes, Order order, uint32_t seed,
                const std::function<void(unsigned char*)>& kernel) {
  threads = count, body = &kernel, shared_bytes = bytes, outside = false;
  fibers.resize(count);
  std::vector<unsigned char> stacks(count * kStack);
  std::vector<unsigned char> memory(bytes + 2 * kMargin + 128);
  shared = memory.data() + kMargin + (128 - (reinterpret_cast<uintptr_t>(memory.data()) + kMargin) % 128) % 128;
  std::vector<int> turns(count);
  std::iota(turns.begin(), turns.end(), 0);
  if (order == kBackward) std::reverse(turns.begin(), turns.end());
  std::mt19937 random(seed);
  rows_of_blocks = static_cast<int>(rows);
  for (int64_t i = 0; i < blocks * rows * layers; i++) {
    block = static_cast<int>(i % blocks), row_of_blocks = static_cast<int>(i / blocks % rows);
    layer_of_blocks = static_cast<int>(i / blocks / rows);
    std::fill(memory.begin(), memory.end(), 0xff);
    if (!run_block(turns, order == kRandom ? &random : nullptr, stacks)) return "threads wait at different barriers";
    if (outside) return "a read beside shared memory, or a copy without a wait";
    const auto untouched = [](unsigned char c) { return c == 0xff; };
    if (!std::all_of(memory.data(), shared, untouched) || !std::all_of(shared + bytes, &*memory.end(), untouched))
      return "a write beside shared memory";
  }
  return nullptr;
}

}  // namespace ghost::cuda::emulated

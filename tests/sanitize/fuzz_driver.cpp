// What libFuzzer does, as far as a target needs it, for compilers that lack it: inputs are changed, and those that
// reach a new place of the code are changed further. gcc's -fsanitize-coverage=trace-pc tells which places are reached.
//
//   fuzz -max_total_time=SECONDS [-seed=N] FOLDER...    draws inputs, from those of the folders on
//   fuzz FILE...                                        runs these inputs once
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed);
extern "C" size_t LLVMFuzzerCustomCrossOver(const uint8_t* a, size_t a_size, const uint8_t* b, size_t b_size,
                                            uint8_t* out, size_t most, unsigned seed);
extern "C" void __asan_set_death_callback(void (*callback)());

namespace {

using Bytes = std::vector<uint8_t>;
constexpr size_t kMost = 4096, kPlaces = 1 << 16;

uint8_t reached[kPlaces];
size_t places = 0;  // that were ever reached
std::minstd_rand drawn;
const Bytes* running = nullptr;

size_t below(size_t n) { return static_cast<size_t>(drawn()) / 7 % n; }

/// A sanitizer has found something: the input is kept.
void keep_running() {
  if (!running) return;
  std::ofstream("crash-input", std::ios::binary)
      .write(reinterpret_cast<const char*>(running->data()), static_cast<std::streamsize>(running->size()));
  std::fprintf(stderr, "the input is in crash-input\n");
}

/// Whether it reaches a place that none before it did.
bool is_new(const Bytes& input) {
  const size_t before = places;
  running = &input;
  LLVMFuzzerTestOneInput(input.data(), input.size());
  running = nullptr;
  return places > before;
}

Bytes read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

/// Called at the start of each block of instrumented code.
extern "C" __attribute__((no_sanitize("address", "undefined"))) void __sanitizer_cov_trace_pc() {
  const auto pc = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  uint8_t& place = reached[(pc ^ pc >> 16) % kPlaces];
  if (!place) place = 1, places++;
}

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most) {
  for (size_t changes = 1 + below(4); changes > 0; changes--) {
    if (below(8) == 0 && size < most)
      data[size++] = static_cast<uint8_t>(below(256));
    else if (below(16) == 0 && size > 1)
      size -= 1 + below(std::min<size_t>(size - 1, 16));
    else if (size)
      data[below(size)] = static_cast<uint8_t>(below(256));
  }
  return size;
}

int main(int argc, char** argv) {
  LLVMFuzzerInitialize(&argc, &argv);
  double seconds = 0;
  std::vector<std::filesystem::path> paths;
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i];
    if (word.rfind("-max_total_time=", 0) == 0)
      seconds = std::stod(word.substr(16));
    else if (word.rfind("-seed=", 0) == 0)
      drawn.seed(static_cast<unsigned>(std::stoul(word.substr(6))));
    else if (word[0] != '-')
      paths.push_back(word);
  }
  __asan_set_death_callback(keep_running);
  std::vector<Bytes> corpus;
  size_t runs = 0;
  for (const auto& path : paths) {
    if (std::filesystem::is_directory(path)) {
      for (const auto& entry : std::filesystem::directory_iterator(path)) corpus.push_back(read(entry.path()));
    } else {
      corpus.push_back(read(path));
    }
  }
  for (const Bytes& input : corpus) is_new(input), runs++;
  if (corpus.empty()) corpus.push_back(Bytes(64));
  const auto start = std::chrono::steady_clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  for (; passed() < seconds; runs++) {
    Bytes input(kMost);
    const Bytes& from = corpus[below(corpus.size())];
    size_t size = std::min(from.size(), kMost);
    std::memcpy(input.data(), from.data(), size);
    if (below(8) == 0) {
      const Bytes& other = corpus[below(corpus.size())];
      size = LLVMFuzzerCustomCrossOver(from.data(), size, other.data(), std::min(other.size(), kMost), input.data(),
                                       kMost, static_cast<unsigned>(drawn()));
    }
    for (size_t changes = 1 + below(3); changes > 0; changes--)
      size = LLVMFuzzerCustomMutator(input.data(), size, kMost, static_cast<unsigned>(drawn()));
    input.resize(size);
    if (is_new(input)) corpus.push_back(std::move(input));
  }
  std::printf("%zu runs, %zu inputs kept, %zu places reached\n", runs, corpus.size(), places);
  return 0;
}

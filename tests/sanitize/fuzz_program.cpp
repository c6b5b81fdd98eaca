// The decoder of programs and the reader of packed tensors, on lists of integers and tensors that nobody checked: each
// call ends in a result or in an error. A target of libFuzzer, and of fuzz_driver.cpp where there is no clang.
//
// An input is a header of bytes, which says what is called with what, and the list of steps as 64-bit words. Weights
// are of their right size or hardly so: their values are drawn, since no kernel decides by them what it reads.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>

#include "cpu/program/plan.h"
#include "torch.h"

using sanitize::make_list;
using sanitize::make_tensor;

extern "C" int64_t ghost_ops_cpu_program_scratch(const int64_t* steps, int64_t count, int64_t images, int64_t h,
                                                 int64_t w);

namespace {

constexpr size_t kHeader = 16;
constexpr int64_t kMostBytes = 8 << 20;  // of a tensor
constexpr int64_t kMostFlops = 1 << 26;  // of a call: more would only take long
constexpr int kMostParameters = 40;

const int32_t kFloat32 = sanitize::code_of_name("float32"), kBfloat16 = sanitize::code_of_name("bfloat16");

/// What an input says.
struct Input {
  uint8_t header[kHeader] = {};
  std::vector<int64_t> steps;

  Input(const uint8_t* data, size_t size) {
    std::memcpy(header, data, std::min(size, kHeader));
    if (size <= kHeader) return;
    steps.resize((size - kHeader) / 8);
    if (!steps.empty()) std::memcpy(steps.data(), data + kHeader, steps.size() * 8);
  }
  int64_t operator()(int field, int64_t least, int64_t most) const {
    return least + header[field] % (most - least + 1);
  }
};

/// Numbers for a tensor: mostly normal ones, and now and then what is none.
void fill(AtenTensorHandle t, uint32_t seed) {
  std::minstd_rand random(seed + 1);
  char* data = sanitize::data_of(t);
  const int64_t size = sanitize::element_size(sanitize::dtype_of(t));
  constexpr float kOdd[] = {0.f, -0.f, INFINITY, -INFINITY, NAN, 1e-40f, 3e38f, -3e38f};
  const bool odd = seed % 4 == 0;
  for (int64_t i = 0; i + size <= sanitize::span_of(t); i += size) {
    const uint32_t drawn = static_cast<uint32_t>(random());
    const float value = odd && drawn % 16 == 0 ? kOdd[drawn / 16 % 8] : static_cast<float>(drawn % 2048) / 1024.f - 1.f;
    uint64_t bits = 0;
    std::memcpy(&bits, &value, 4);
    if (sanitize::dtype_of(t) == kBfloat16) bits >>= 16;
    std::memcpy(data + i, &bits, static_cast<size_t>(size));
  }
}

std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(1, sizes[i]);
  return strides;
}

StableIValue value_of(AtenTensorHandle t) { return reinterpret_cast<StableIValue>(t); }

AtenTensorHandle drawn(const std::vector<int64_t>& sizes, int32_t dtype, uint32_t seed) {
  AtenTensorHandle t = make_tensor(sizes, dense_strides(sizes), dtype);
  fill(t, seed);
  return t;
}

/// Any layout: NCHW, NHWC, or with gaps.
StableIValue map_of(const Input& in, int64_t channels) {
  const int64_t n = in(1, 0, 3), h = in(2, 0, 20), w = in(3, 0, 20), c = channels + (in.header[4] > 250 ? 1 : 0);
  const int32_t dtype = in.header[5] % 3 == 0 ? kBfloat16 : kFloat32;
  std::vector<int64_t> strides = dense_strides({n, c, h, w});
  if (in.header[6] % 3 == 1) strides = {h * w * c, 1, w * c, c};
  if (in.header[6] % 3 == 2) strides = {(h + 1) * (w + 2) * c, 1, (w + 2) * c, c};
  AtenTensorHandle x = make_tensor({n, c, h, w}, strides, dtype);
  fill(x, in.header[7]);
  return value_of(x);
}

StableIValue packed_of(const Input& in, int64_t floats, int32_t dtype) {
  const uint8_t how = in.header[8];
  if (how == 1) floats += 1;
  if (how == 2) floats -= 1;
  if (how == 3) floats = 0;
  if (how == 4) dtype = sanitize::code_of_name("int64");
  if (how == 5) dtype = dtype == kFloat32 ? sanitize::code_of_name("int32") : kFloat32;
  if (how == 6) dtype = kBfloat16;
  std::vector<int64_t> sizes{std::max<int64_t>(0, floats)}, strides{how == 7 ? 2 : how == 8 ? 0 : 1};
  if (how == 9) sizes = {1, sizes[0]}, strides = {sizes[1], 1};
  AtenTensorHandle packed = make_tensor(sizes, strides, dtype);
  fill(packed, in.header[9]);
  return value_of(packed);
}

StableIValue steps_of(const Input& in) { return make_list({in.steps.begin(), in.steps.end()}); }

sanitize::Outcome finish(const char* op, const std::vector<StableIValue>& arguments) {
  sanitize::Outcome out = sanitize::call(op, arguments);
  const auto& types = sanitize::schema_of(op).results;
  for (size_t i = 0; i < out.results.size(); i++) sanitize::release(out.results[i], types[i]);
  return out;
}

/// Shapes of the parameters that program_pack takes for these steps: its own messages say what it expects.
std::vector<std::vector<int64_t>> parameter_shapes(const Input& in) {
  std::vector<std::vector<int64_t>> shapes;
  for (int tries = 0; tries < 2 * kMostParameters; tries++) {
    std::vector<StableIValue> tensors;
    for (const auto& shape : shapes) tensors.push_back(value_of(drawn(shape, kFloat32, in.header[9])));
    const std::string why = finish("program_pack", {make_list(tensors), steps_of(in)}).error;
    const size_t shape = why.find("expected shape ");
    if (why.find("more of them") != std::string::npos) {
      if (shapes.size() == kMostParameters) break;
      shapes.push_back({});
    } else if (shape != std::string::npos) {
      std::istringstream text(why.substr(shape + 15, why.find(',') - shape - 15));
      shapes.back().clear();
      for (std::string size; std::getline(text, size, 'x');) shapes.back().push_back(std::stoll(size));
    } else if (why.find("1 slope or one per channel") != std::string::npos) {
      shapes.back() = {1};
    } else {
      break;
    }
    int64_t elements = 1;
    for (const int64_t size : shapes.back()) elements *= size;
    if (elements > kMostBytes / 4) return {};
  }
  return shapes;
}

std::vector<StableIValue> parameters_of(const Input& in) {
  std::vector<StableIValue> tensors;
  auto shapes = parameter_shapes(in);
  const uint8_t how = in.header[8];
  if (!shapes.empty() && how % 16 == 1) shapes.pop_back();
  if (!shapes.empty() && how % 16 == 2) shapes.push_back(shapes.back());
  if (!shapes.empty() && how % 16 == 3 && !shapes[how / 16 % shapes.size()].empty())
    shapes[how / 16 % shapes.size()].back() -= 1;
  for (const auto& shape : shapes) tensors.push_back(value_of(drawn(shape, kFloat32, in.header[9])));
  return tensors;
}

/// Whether a call of the program would take long: what is too long is not called, only parsed and planned.
bool is_long(const ghost::Program& p, const Input& in) {
  if (in(2, 0, 20) == 0 || in(3, 0, 20) == 0) return false;
  const ghost::Plan plan(p, in(2, 0, 20), in(3, 0, 20), 1);
  double elements = 0;
  for (const auto& step : p.steps) {
    const ghost::StepPlan& s = plan.steps[step->index];
    const ghost::Work work = step->work();
    const double lanes = static_cast<double>(step->out_channels.width());
    elements += static_cast<double>(s.h) * static_cast<double>(s.w) *
                (static_cast<double>(work.products) + static_cast<double>(work.taps) + 8 * lanes);
  }
  return plan.flops > kMostFlops || 3 * elements > static_cast<double>(kMostFlops);
}

void run(const Input& in) {
  sanitize::settings.threads = static_cast<uint32_t>(in(10, 1, 3));
  const int64_t kind = in(0, 0, 5);
  if (kind == 0 || in.steps.empty()) {  // of any size, as Python asks it
    ghost_ops_cpu_program_scratch(in.steps.data(), static_cast<int64_t>(in.steps.size()), in(1, 0, 200), in(11, 0, 40),
                                  in(12, 0, 3) == 3 ? int64_t{1} << in(13, 0, 63) : in(13, 0, 40));
    return;
  }
  const ghost::Program p = ghost::Program::parse(in.steps, kind == 3);
  const bool floats = p.format->dtype == ghost::abi::DType::float32;
  const int32_t dtype = floats ? kFloat32 : sanitize::code_of_name("int32");
  if (kind == 2) {
    finish("program_pack", {make_list(parameters_of(in)), steps_of(in)});
    return;
  }
  if (p.packed_floats > kMostBytes / 4 || is_long(p, in)) return;
  if (kind == 3) {
    std::vector<StableIValue> parameters = parameters_of(in);
    finish("program_eval", {map_of(in, p.in_channels), make_list(parameters), steps_of(in)});
    return;
  }
  const StableIValue x = map_of(in, p.in_channels);
  finish(kind == 1 ? "program" : "program_maps", {x, packed_of(in, p.packed_floats, dtype), steps_of(in)});
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  sanitize::leave_out_pool();
  sanitize::settings.most_bytes = kMostBytes;
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    run(Input(data, size));
  } catch (const std::exception&) {  // an error is an answer
  }
  return 0;
}

/// Words of the list are what programs are made of: changed, copied, left out, or whole runs of them put elsewhere.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  std::minstd_rand random(seed + 1);
  const auto below = [&](size_t n) { return static_cast<size_t>(random()) / 7 % n; };
  if (size < kHeader + 8 || below(12) == 0) return LLVMFuzzerMutate(data, size, most);
  if (below(6) == 0) data[below(kHeader)] = static_cast<uint8_t>(below(2) ? below(12) : below(256));
  Input in(data, size);
  std::vector<int64_t>& words = in.steps;
  constexpr int64_t kLimits[] = {-1, 1 << 20, (1 << 20) + 1,    1 << 24,          63,        64,
                                 65, 1 << 10, int64_t{1} << 31, int64_t{1} << 40, INT64_MAX, INT64_MIN};
  for (size_t changes = 1 + below(3); changes-- > 0 && !words.empty();) {
    int64_t& word = words[below(words.size())];
    const size_t from = below(words.size()), count = 1 + below(std::min<size_t>(words.size() - from, 30));
    const std::vector<int64_t> some(words.begin() + from, words.begin() + from + count);
    switch (below(8)) {
      case 0:
      case 1:
        word = static_cast<int64_t>(below(26)) - 1;
        break;
      case 2:
        word = static_cast<int64_t>(static_cast<uint64_t>(word) + (below(2) ? 1 : ~uint64_t{0}));
        break;
      case 3:
        word = kLimits[below(std::size(kLimits))];
        break;
      case 4:
        word = words[from];
        break;
      case 5:
        words.insert(words.begin() + below(words.size() + 1), some.begin(), some.end());
        break;
      case 6:
        words.erase(words.begin() + from, words.begin() + from + count);
        break;
      default:
        word = static_cast<int64_t>(below(300));
    }
  }
  words.resize(std::min(words.size(), (most - kHeader) / 8));
  std::memcpy(data, in.header, kHeader);
  if (!words.empty()) std::memcpy(data + kHeader, words.data(), words.size() * 8);
  return kHeader + words.size() * 8;
}

/// The steps of two programs, from where the format and its kin have been read.
extern "C" size_t LLVMFuzzerCustomCrossOver(const uint8_t* a, size_t a_size, const uint8_t* b, size_t b_size,
                                            uint8_t* out, size_t most, unsigned seed) {
  std::minstd_rand random(seed + 1);
  const Input first(a, a_size), second(b, b_size);
  std::vector<int64_t> words = first.steps;
  if (!words.empty()) words.resize(1 + static_cast<size_t>(random()) % words.size());
  if (second.steps.size() > 3)
    words.insert(words.end(), second.steps.begin() + 3 + static_cast<size_t>(random()) % (second.steps.size() - 3),
                 second.steps.end());
  words.resize(std::min(words.size(), (most - kHeader) / 8));
  std::memcpy(out, first.header, kHeader);
  if (!words.empty()) std::memcpy(out + kHeader, words.data(), words.size() * 8);
  return kHeader + words.size() * 8;
}

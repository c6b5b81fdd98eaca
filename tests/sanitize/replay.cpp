// Recorded calls of every operator, without torch: on every instruction set, each tensor between two pages that must
// not be touched. What a call returns must not depend on where its memory lies, nor on what fresh memory holds.
//
//   replay CALLS [isa=avx2,baseline] [threads=3] [callers=2] [hostile=20] [seed=0]
//
// isa: those to run; all of the machine. threads: in place of the recorded number. callers: so many threads make the
// calls at the same time, each in another order; nothing is compared. hostile: so many times each call is made with
// arguments that do not fit together, which must end in a result or an error.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <random>
#include <sstream>
#include <thread>

#include "cpu/isa.h"
#include "torch.h"

namespace {

using Sizes = std::vector<int64_t>;
using Random = std::minstd_rand;

struct Shape {
  int32_t dtype = 0;
  Sizes sizes, strides;
};

/// An argument: N none, T a tensor, L tensors, I integers, i an integer, b a truth value, f a number.
struct Argument {
  char kind = 'N';
  std::vector<Shape> tensors;
  Sizes ints;
  double number = 0;
};

struct Call {
  std::string op;
  uint32_t threads = 1;
  std::vector<Argument> arguments;
};

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, by);) parts.push_back(part);
  return parts;
}

Sizes numbers(const std::string& text, char by) {
  Sizes found;
  for (const std::string& part : split(text, by)) found.push_back(std::stoll(part));
  return found;
}

Shape shape_of(const std::string& text) {
  std::vector<std::string> parts = split(text, ':');
  parts.resize(4);
  return {sanitize::code_of_name(parts[1]), numbers(parts[2], 'x'), numbers(parts[3], 'x')};
}

Argument argument_of(const std::string& text) {
  Argument a{text[0], {}, {}, 0};
  const std::string rest = text.size() > 2 ? text.substr(2) : "";
  if (a.kind == 'T') a.tensors = {shape_of(text)};
  if (a.kind == 'L')
    for (const std::string& one : split(rest, ';')) a.tensors.push_back(shape_of(one));
  if (a.kind == 'I') a.ints = numbers(rest, ';');
  if (a.kind == 'i') a.ints = {std::stoll(rest)};
  if (a.kind == 'b') a.ints = {rest == "True"};
  if (a.kind == 'f') a.number = std::stod(rest);
  return a;
}

/// All but those of operators that Python makes of others.
std::vector<Call> read_calls(const char* path) {
  std::ifstream file(path);
  std::vector<Call> calls;
  const std::vector<std::string> known = sanitize::operators();
  for (std::string line; std::getline(file, line);) {
    const std::vector<std::string> words = split(line, ' ');
    if (std::find(known.begin(), known.end(), words.at(0)) == known.end()) continue;
    Call call{words.at(0), static_cast<uint32_t>(std::stoul(words.at(1))), {}};
    for (size_t i = 2; i < words.size(); i++) call.arguments.push_back(argument_of(words[i]));
    if (call.arguments.size() != sanitize::schema_of(call.op).arguments.size())
      throw std::invalid_argument(call.op + ": expected the arguments of its schema");
    calls.push_back(std::move(call));
  }
  return calls;
}

/// Values in [-1, 1]; of vectors, which may be variances, in [0.5, 1.5].
StableIValue tensor_of(const Shape& s, uint32_t seed) {
  AtenTensorHandle t = sanitize::make_tensor(s.sizes, s.strides, s.dtype);
  Random random(seed + 1);
  const int64_t size = sanitize::element_size(s.dtype);
  for (int64_t i = 0; i < sanitize::span_of(t); i += size) {
    const float value = static_cast<float>(random() % 4096) / 2048.f - 1.f;
    const float drawn = s.sizes.size() < 2 ? 1.f + value / 2 : value;
    uint64_t bits = 0;
    std::memcpy(&bits, &drawn, 4);
    if (size == 2) bits >>= 16;
    std::memcpy(sanitize::data_of(t) + i, &bits, static_cast<size_t>(size));
  }
  return reinterpret_cast<StableIValue>(t);
}

StableIValue value_of(const Argument& a, const std::string& type, uint32_t seed) {
  const auto tensor = [&](size_t i) { return tensor_of(a.tensors[i], seed * 31 + static_cast<uint32_t>(i)); };
  if (type == "Tensor") return tensor(0);
  if (type == "Tensor?") return a.kind == 'N' ? 0 : reinterpret_cast<StableIValue>(new StableIValue(tensor(0)));
  if (type == "Tensor[]") {
    std::vector<StableIValue> items;
    for (size_t i = 0; i < a.tensors.size(); i++) items.push_back(tensor(i));
    return sanitize::make_list(items);
  }
  if (type == "int[]") return sanitize::make_list({a.ints.begin(), a.ints.end()});
  return type == "float" ? ghost::abi::pack(a.number) : ghost::abi::pack(a.ints[0]);
}

/// Bytes of all results, or why there are none.
struct Made {
  std::vector<char> bytes;
  std::string error;
};

Made make(const Call& call) {
  const sanitize::Schema& schema = sanitize::schema_of(call.op);
  std::vector<StableIValue> values;
  try {
    for (size_t i = 0; i < call.arguments.size(); i++)
      values.push_back(value_of(call.arguments[i], schema.arguments[i], static_cast<uint32_t>(i)));
  } catch (const std::bad_alloc&) {  // hostile sizes
    for (size_t i = 0; i < values.size(); i++) sanitize::release(values[i], schema.arguments[i]);
    return {{}, "no memory for the arguments"};
  }
  const sanitize::Outcome out = sanitize::call(call.op, values);
  Made made{{}, out.error};
  for (size_t i = 0; i < out.results.size(); i++) {
    const bool is_list = schema.results[i] == "Tensor[]";
    for (const StableIValue one : is_list ? sanitize::items_of(out.results[i]) : std::vector{out.results[i]}) {
      const auto t = reinterpret_cast<AtenTensorHandle>(one);
      made.bytes.insert(made.bytes.end(), sanitize::data_of(t), sanitize::data_of(t) + sanitize::span_of(t));
    }
    sanitize::release(out.results[i], schema.results[i]);
  }
  return made;
}

bool is_handed_on(const Made& made) { return made.error.find("_reference failed") != std::string::npos; }

/// One argument of a call becomes another one.
void spoil(Call& call, Random& random) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random()) / 7 % n; };
  const auto odd = [&](int64_t v) {
    const auto wrapped = [&](uint64_t factor, uint64_t more) {
      return static_cast<int64_t>(static_cast<uint64_t>(v) * factor + more);
    };
    const int64_t all[] = {wrapped(1, 1), wrapped(1, -1),   0,         -1,        1, wrapped(2, 0),
                           1 << 20,       int64_t{1} << 40, INT64_MAX, INT64_MIN, 7, 99};
    return all[below(std::size(all))];
  };
  const size_t at = below(call.arguments.size());
  Argument& a = call.arguments[at];
  const std::string& type = sanitize::schema_of(call.op).arguments[at];
  if (type == "Tensor?" && below(3) == 0) {
    if (a.kind == 'N')
      a.kind = 'T', a.tensors = {call.arguments[0].tensors[0]}, a.tensors[0].sizes = {odd(8)},
      a.tensors[0].strides = {1};
    else
      a.kind = 'N';
  } else if (!a.tensors.empty()) {
    Shape& s = a.tensors[below(a.tensors.size())];
    const size_t side = below(s.sizes.size() + 1);
    constexpr int32_t kDTypes[] = {0, 3, 4, 5, 6, 7, 15};
    if (side == s.sizes.size())
      s.dtype = kDTypes[below(std::size(kDTypes))];
    else if (const size_t how = below(8); how == 0)
      s.strides[side] = below(2) ? 0 : s.strides[side] * 2;
    else if (how == 1)
      s.sizes.erase(s.sizes.begin() + side), s.strides.erase(s.strides.begin() + side);
    else if (how == 2)
      s.sizes.insert(s.sizes.begin() + side, 1), s.strides.insert(s.strides.begin() + side, 1);
    else if (how == 3 && a.kind == 'L')
      a.tensors.pop_back();
    else if (how == 4)
      std::swap(s.sizes[side], s.sizes[below(s.sizes.size())]);
    else
      s.sizes[side] = how == 5 ? std::max<int64_t>(0, std::min<int64_t>(odd(s.sizes[side]), 300))
                               : std::max<int64_t>(0, s.sizes[side] + (how == 6 ? 1 : -1));
  } else if (a.kind == 'I' && !a.ints.empty()) {
    int64_t& word = a.ints[below(a.ints.size())];
    word = odd(word);
  } else if (a.kind == 'i') {
    a.ints[0] = odd(a.ints[0]);
  } else if (a.kind == 'f') {
    const double all[] = {NAN, INFINITY, -1.0, 0.0, 1e300};
    a.number = all[below(std::size(all))];
  }
}

struct Count {
  int64_t calls = 0, results = 0, errors = 0, handed_on = 0;
};

/// Twice, on fresh memory of other places and other contents.
bool compare(const Call& call, const std::string& isa, Count& count) {
  sanitize::settings.place = sanitize::Place::ends, sanitize::settings.fill = 0xff;
  const Made first = make(call);
  sanitize::settings.place = sanitize::Place::begins, sanitize::settings.fill = 0;
  const Made second = make(call);
  count.calls += 2;
  if (is_handed_on(first) && is_handed_on(second)) return count.handed_on += 2, true;
  count.results += 2;
  if (!first.error.empty() || first.error != second.error)
    return std::cout << call.op << " on " << isa << ": " << first.error << " / " << second.error << "\n", false;
  if (first.bytes != second.bytes)
    return std::cout << call.op << " on " << isa << ": results depend on what fresh memory holds\n", false;
  return true;
}

void make_hostile(const Call& call, int64_t times, Random& random, Count& count) {
  sanitize::settings.place = sanitize::Place::ends, sanitize::settings.fill = 0xff;
  for (int64_t i = 0; i < times; i++) {
    Call spoilt = call;
    for (int64_t changes = 1 + random() / 7 % 2; changes > 0; changes--) spoil(spoilt, random);
    const Made made = make(spoilt);
    count.calls++, (made.error.empty() ? count.results : count.errors)++;
  }
}

/// All callers are under way together.
void make_together(const std::vector<Call>& calls, int64_t callers, Count& count) {
  sanitize::settings.place = sanitize::Place::ends;
  std::atomic<int64_t> results{0}, handed_on{0};
  std::vector<std::thread> all;
  for (int64_t i = 0; i < callers; i++)
    all.emplace_back([&, i] {
      const size_t n = calls.size();
      for (size_t j = 0; j < n; j++) {
        const Made made = make(calls[i % 2 ? n - 1 - j : (j + static_cast<size_t>(i) * 7) % n]);
        (is_handed_on(made) ? handed_on : results)++;
      }
    });
  for (std::thread& t : all) t.join();
  count.results += results, count.handed_on += handed_on, count.calls += results + handed_on;
}

int run(int argc, char** argv) {
  if (argc < 2) return std::cerr << "replay CALLS [isa=...] [threads=N] [callers=N] [hostile=N] [seed=N]\n", 2;
  std::map<std::string, std::string> options;
  for (int i = 2; i < argc; i++) {
    const std::string option = argv[i];
    options[option.substr(0, option.find('='))] = option.substr(option.find('=') + 1);
  }
  const auto number = [&](const char* name, int64_t otherwise) {
    return options.count(name) ? std::stoll(options[name]) : otherwise;
  };
  std::vector<Call> calls = read_calls(argv[1]);
  for (Call& call : calls) call.threads = static_cast<uint32_t>(number("threads", call.threads));
  sanitize::settings.most_bytes = 64 << 20;
  if (!options.count("callers")) sanitize::leave_out_pool();
  bool fine = true;
  for (const std::string& isa : split(options.count("isa") ? options["isa"] : ghost::names(), ',')) {
    if (!ghost::use_isa(isa.c_str())) throw std::invalid_argument("isa: expected one that runs here, got " + isa);
    Count count;
    Random random(static_cast<uint32_t>(number("seed", 0)) + 1);
    if (options.count("callers")) {
      sanitize::settings.threads = static_cast<uint32_t>(number("threads", 2));
      make_together(calls, number("callers", 2), count);
    } else {
      for (const Call& call : calls) {
        sanitize::settings.threads = call.threads;
        if (options.count("hostile"))
          make_hostile(call, number("hostile", 20), random, count);
        else
          fine &= compare(call, isa, count);
      }
    }
    std::printf("%s: %lld calls, %lld results, %lld errors, %lld left to the reference\n", isa.c_str(),
                static_cast<long long>(count.calls), static_cast<long long>(count.results),
                static_cast<long long>(count.errors), static_cast<long long>(count.handed_on));
    fine &= count.results > 0;
  }
  return fine ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "replay: " << error.what() << "\n";
    return 2;
  }
}

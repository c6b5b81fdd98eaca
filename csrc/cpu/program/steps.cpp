#include "steps.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace ghost {
namespace {

constexpr int64_t kFormat = 3;

[[noreturn]] void refuse(const std::string& why) {
  throw std::runtime_error("ghost_ops.program: steps: expected a list that ghost_ops wrote: " + why);
}

/// Reads the list in order; nothing past its end, and no number outside the range asked for.
class Reader {
 public:
  explicit Reader(const std::vector<int64_t>& list) : list_(list) {}
  bool at_end() const { return at_ == list_.size(); }
  int64_t any() {
    if (at_end()) refuse("it ends within a step");
    return list_[at_++];
  }
  int64_t within(int64_t low, int64_t high, const char* what) {
    const int64_t value = any();
    if (value < low || value > high)
      refuse(std::string(what) + " is " + std::to_string(value) + " at " + std::to_string(at_ - 1));
    return value;
  }
  bool flag(const char* what) { return within(0, 1, what) != 0; }
  double real() {
    const int64_t bits = any();
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

 private:
  const std::vector<int64_t>& list_;
  size_t at_ = 0;
};

constexpr int64_t kMostChannels = int64_t{1} << 20;

int64_t channels(Reader& r, const char* what) { return r.within(1, kMostChannels, what); }

Conv conv(Reader& r) {
  Conv c;
  const int64_t parts = r.within(0, 31, "parts");
  c.bias = parts & 1, c.norm = parts & 2, c.gamma = parts & 4, c.beta = parts & 8, c.slopes = parts & 16;
  c.eps = r.real();
  c.act = static_cast<Act>(r.within(0, kActs - 1, "act"));
  c.slope = r.real();
  if ((c.act == kPrelu) != c.slopes) refuse("a PReLU without slopes, or slopes without one");
  return c;
}

int64_t odd_kernel(Reader& r) {
  const int64_t kernel = r.within(1, 7, "kernel");
  if (kernel % 2 == 0) refuse("a kernel of even size");
  return kernel;
}

/// What is known of the values on the way, and how many channels the squeeze, the excitation and the features have.
struct State {
  std::vector<int64_t> writer;  // of each slot, the step; -1: none yet
  int64_t squeeze = 0, excitation = 0, features = 0;

  int64_t step_of(int64_t slot) const {
    if (writer[slot] < 0) refuse("slot " + std::to_string(slot) + " is read before it is written");
    return writer[slot];
  }
};

Step parse_step(Reader& r, Program& p, State& s) {
  Step t;
  t.kind = static_cast<Kind>(r.within(0, static_cast<int64_t>(Kind::store), "kind"));
  const auto slot = [&] { return r.within(0, p.slots - 1, "slot"); };
  const auto read = [&](int64_t from, int64_t expected) {
    const int64_t step = s.step_of(from);
    t.in_channels = p.steps[step].out_channels;
    t.channels = expected ? expected : t.in_channels.count();
    if (t.in_channels.count() != t.channels) refuse("channels that do not fit the slot that is read");
    return step;
  };
  const auto overwrites = [&](int64_t step) { return step >= 0 && p.steps[step].out == t.out; };
  switch (t.kind) {
    case Kind::load:
      t.out = slot(), t.channels = channels(r, "channels"), t.by_lanes = r.flag("by_lanes");
      t.out_channels = {t.channels, 0};
      break;
    case Kind::conv:
      t.out = slot(), t.channels = channels(r, "channels"), t.primary = channels(r, "out");
      t.kernel = r.within(1, kMostRuns / t.channels, "kernel"), t.stride = r.within(1, 64, "stride");
      t.padding = r.within(0, 64, "padding"), t.first = conv(r);
      t.out_channels = {t.primary, 0};
      break;
    case Kind::ghost: {
      const int64_t in = slot();
      t.out = slot();
      if (const int64_t residual = r.within(-1, p.slots - 1, "residual"); residual >= 0)
        t.residual = s.step_of(residual);
      t.scaled = r.flag("scaled"), t.squeeze = r.flag("squeeze");
      t.in = read(in, channels(r, "channels"));
      t.primary = channels(r, "primary"), t.made = r.within(0, kMostChannels, "made");
      const int64_t out = channels(r, "out");
      t.kernel = odd_kernel(r), t.first = conv(r);
      if (t.made) t.second = conv(r);
      if (t.made % t.primary) refuse("a cheap operation whose channels are no multiple of the primary ones");
      if (out > t.primary + t.made || (t.made ? out <= t.primary : out != t.primary)) refuse("channels kept");
      t.out_channels = {t.primary, out - t.primary};
      if (t.residual >= 0 && p.steps[t.residual].out_channels.count() != out) refuse("a residual of other channels");
      if (t.scaled && s.excitation != t.channels) refuse("an excitation of other channels");
      if (overwrites(t.in) || overwrites(t.residual)) refuse("a slot that is read and written at once");
      break;
    }
    case Kind::depthwise: {
      const int64_t in = slot();
      t.out = slot(), t.squeeze = r.flag("squeeze"), t.in = read(in, channels(r, "channels"));
      t.kernel = odd_kernel(r), t.stride = r.within(1, 64, "stride"), t.first = conv(r);
      t.out_channels = t.in_channels;
      if (p.steps[t.in].kind == Kind::load && !p.steps[t.in].by_lanes) refuse("whole vectors of an input by channels");
      if (overwrites(t.in)) refuse("a slot that is read and written at once");
      break;
    }
    case Kind::excite:
      t.channels = channels(r, "channels"), t.hidden = channels(r, "hidden");
      t.gate = r.within(0, kGates - 1, "gate"), t.first = conv(r), t.second = conv(r);
      if (s.squeeze != t.channels) refuse("an excitation without the squeeze of as many channels");
      s.excitation = t.channels;
      break;
    case Kind::pool:
      t.channels = channels(r, "channels");
      if (s.squeeze != t.channels || s.features) refuse("a pooling without the squeeze of as many channels");
      s.features = t.channels;
      break;
    case Kind::dense:
      t.channels = channels(r, "channels"), t.primary = channels(r, "out"), t.first = conv(r);
      if (s.features != t.channels) refuse("a layer of other features");
      s.features = t.primary;
      break;
    case Kind::store: {
      t.in = read(slot(), 0);
      break;
    }
  }
  if (s.features && t.kind != Kind::pool && t.kind != Kind::dense) refuse("a map's step after the pooling");
  if (t.out >= 0) s.writer[t.out] = static_cast<int64_t>(p.steps.size());
  if (t.squeeze) s.squeeze = t.out_channels.count();
  return t;
}

}  // namespace

Pieces pieces(const Step& t) {
  Pieces p{};
  int64_t at = 0;
  const auto take = [&](int64_t floats) {
    const int64_t here = at;
    at += aligned(floats);
    return here;
  };
  const auto panels = [&](int64_t n, int64_t k) { return panel_floats(n, t.depth(k)); };
  const auto conv = [&](const Conv& c, int64_t weight, int64_t channels, int64_t& w, int64_t& b, int64_t& s) {
    w = take(weight), b = take(padded(channels)), s = at;
    if (c.has_slopes()) take(padded(channels));
  };
  const int64_t taps = t.kernel * t.kernel;
  switch (t.kind) {
    case Kind::conv:
      conv(t.first, panels(t.primary, taps * t.channels), t.primary, p.weight, p.bias, p.slopes);
      break;
    case Kind::ghost:
      conv(t.first, panels(t.primary, t.channels), t.primary, p.weight, p.bias, p.slopes);
      if (t.made) conv(t.second, taps * padded(t.kept()), t.kept(), p.second_weight, p.second_bias, p.second_slopes);
      break;
    case Kind::depthwise:
      conv(t.first, taps * padded(t.in_channels.pixel()), t.in_channels.pixel(), p.weight, p.bias, p.slopes);
      break;
    case Kind::excite:
      conv(t.first, t.raw ? 0 : panels(t.hidden, t.channels), t.hidden, p.weight, p.bias, p.slopes);
      conv(t.second, t.raw ? 0 : panels(t.channels, t.hidden), t.channels, p.second_weight, p.second_bias,
           p.second_slopes);
      break;
    case Kind::dense:
      conv(t.first, panels(t.primary, t.channels), t.primary, p.weight, p.bias, p.slopes);
      break;
    default:
      break;
  }
  p.end = at;
  return p;
}

Program Program::parse(const std::vector<int64_t>& list, bool raw) {
  Reader r(list);
  if (r.any() != kFormat) refuse("its format is not " + std::to_string(kFormat));
  Program p;
  p.slots = r.within(1, 1 << 10, "slots");
  p.pairs = r.within(0, 1, "precision") == 1;
  State s;
  s.writer.assign(p.slots, -1);
  bool stored = false;
  while (!r.at_end()) {
    if (stored) refuse("steps after the last one");
    Step t = parse_step(r, p, s);
    const bool first = p.steps.empty(), entry = t.kind == Kind::load || t.kind == Kind::conv;
    if (first != entry) refuse("a first step that does not read the input, or another that does");
    if (first) p.in_channels = t.channels;
    t.pairs = p.pairs, t.packed = p.packed_floats,
    t.raw = raw && t.kind == Kind::excite && !t.first.norm && !t.second.norm;
    p.packed_floats += pieces(t).end;
    stored = t.kind == Kind::store;
    p.steps.push_back(t);
  }
  p.returns_features = s.features > 0;
  if (!stored && !p.returns_features) refuse("neither a map nor features come out");
  return p;
}

}  // namespace ghost

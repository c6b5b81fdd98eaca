#include "parse.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace ghost {
namespace {

constexpr int64_t kFormat = 4;
constexpr int64_t kMostKinds = 64;
constexpr int64_t kMostSteps = 1 << 12;  // a walk through them calls itself for each step that another reads

/// Filled when the library is loaded, before anything is parsed.
std::array<StepKind::Parse, kMostKinds>& kinds() {
  static std::array<StepKind::Parse, kMostKinds> all{};
  return all;
}

/// From the beginning of one packed piece to the next.
constexpr int64_t aligned(int64_t floats) { return padded(floats); }

}  // namespace

StepKind::StepKind(int64_t code, Parse parse) {
  if (kinds().at(code)) std::abort();  // two kinds have the same number
  kinds()[code] = parse;
}

void StepReader::refuse(const std::string& why) {
  throw std::runtime_error("ghost_ops.program: steps: expected a list that ghost_ops wrote: " + why);
}

int64_t StepReader::any() {
  if (at_end()) refuse("it ends within a step");
  return list_[at_++];
}

int64_t StepReader::within(int64_t low, int64_t high, const char* what) {
  const int64_t value = any();
  if (value < low || value > high)
    refuse(std::string(what) + " is " + std::to_string(value) + " at " + std::to_string(at_ - 1));
  return value;
}

double StepReader::real() {
  const int64_t bits = any();
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

int64_t StepReader::channels(const char* what) { return within(1, kMostChannels, what); }

int64_t StepReader::odd_kernel() {
  const int64_t kernel = within(1, 7, "kernel");
  if (kernel % 2 == 0) refuse("a kernel of even size");
  return kernel;
}

Layer StepReader::layer() {
  Layer l;
  const int64_t parts = within(0, 31, "parts");
  l.has_bias = parts & 1, l.has_norm = parts & 2, l.has_gamma = parts & 4, l.has_beta = parts & 8;
  l.has_slopes = parts & 16;
  l.eps = real();
  l.act = static_cast<Act>(within(0, kActs - 1, "act"));
  l.slope = real();
  if ((l.act == kPrelu) != l.has_slopes) refuse("a PReLU without slopes, or slopes without one");
  return l;
}

const Source& StepReader::map_in(int64_t slot) {
  if (maps_[slot].step < 0) refuse("slot " + std::to_string(slot) + " is read before it is written");
  read_.push_back(slot);
  return maps_[slot];
}

const Source& StepReader::read_map(Step& t, int64_t slot, int64_t channels) {
  t.sources.push_back(map_in(slot));
  const Source& source = t.sources.back();
  if (channels && source.channels.count() != channels) refuse("channels that do not fit the slot that is read");
  if (t.sources.size() == 1) t.channels = source.channels.count();
  return source;
}

const Source& StepReader::read_vectors(Step& t, int64_t slot, int64_t channels) {
  const Source& source = read_map(t, slot, channels);
  if (!step(source.step).whole_vectors) refuse("whole vectors of an input by channels");
  return source;
}

void StepReader::view(int64_t slot, Source source) {
  if (std::count(read_.begin(), read_.end(), slot)) refuse("a slot that is read and written at once");
  if (source.step == 0) program_.copies_entry = true;
  maps_[slot] = std::move(source);
}

void StepReader::begin_features(int64_t channels) {
  if (!are_returned_) refuse("features that are not returned");
  features = channels;
}

int64_t StepReader::take(int64_t floats) {
  const int64_t at = program_.packed_floats;
  if (floats > kMostFloats || (program_.packed_floats += aligned(floats)) > kMostFloats)
    refuse("its weights are more than memory holds");
  return at;
}

void StepReader::place(Layer& l, int64_t weight_floats, int64_t channels) {
  l.weight = take(weight_floats), l.bias = take(channels);
  place_slopes(l, channels);
}

void StepReader::place_slopes(Layer& l, int64_t channels) { l.slopes = take(l.packs_slopes() ? channels : 0); }

void StepReader::place_product(Layer& l, int64_t n, int64_t k) { place(l, format().floats(n, k), n); }

void StepReader::place_vector_products(Layer& first, int64_t n1, int64_t k1, Layer& second, int64_t n2, int64_t k2) {
  if (!for_one_call_ || first.has_norm || second.has_norm)
    return place_product(first, n1, k1), place_product(second, n2, k2);
  first.raw = program_.raw_layers++, second.raw = program_.raw_layers++;
  place(first, 0, n1), place(second, 0, n2);
}

Program Program::parse(const std::vector<int64_t>& list, bool for_one_call) {
  Program p;
  StepReader r(list, p, for_one_call);
  const auto refuse = StepReader::refuse;
  if (r.any() != kFormat) refuse("its format is not " + std::to_string(kFormat));
  p.slots = r.within(1, 1 << 10, "slots");
  const auto unknown = [&](const char* what, int64_t value) {
    refuse(std::string(what) + " is " + std::to_string(value) + " at " + std::to_string(r.at_ - 1));
  };
  const int64_t precision = r.any();
  p.format = weight_format(precision);
  if (!p.format) unknown("precision", precision);
  r.maps_.assign(p.slots, {});
  while (!r.at_end()) {
    const int64_t code = r.any();
    if (code < 0 || code >= kMostKinds || !kinds()[code]) unknown("kind", code);
    r.read_.clear();
    std::unique_ptr<Step> step = kinds()[code](r);
    const bool returns = step && (step->returns_map() || step->returns_features());
    if (!p.outputs.empty() && !returns && !(step && step->makes_features())) refuse("steps after the last one");
    if (!step) continue;
    if (p.size() == kMostSteps) refuse("it has more than " + std::to_string(kMostSteps) + " steps");
    Step& t = *step;
    p.results += returns;
    if (t.makes_features() || t.returns_features()) r.are_returned_ = t.returns_features();
    if (t.begins_features()) t.features_place = p.begun_features++;
    if (p.steps.empty() != t.is_entry()) refuse("a first step that does not read the input, or another that does");
    if (std::count(r.read_.begin(), r.read_.end(), t.out)) refuse("a slot that is read and written at once");
    if (t.is_entry()) p.in_channels = t.channels;
    t.index = t.container = p.size(), t.packed_end = p.packed_floats;
    if (t.out >= 0) r.maps_[t.out] = {t.index, 0, t.out_channels};
    if (t.squeeze) r.squeeze = t.out_channels.count();
    if (t.returns_map()) p.outputs.push_back(t.index);
    p.steps.push_back(std::move(step));
  }
  p.ends_in_features = p.results == 0;
  if (p.ends_in_features && !r.features) refuse("neither a map nor features come out");
  if (!p.ends_in_features && !r.are_returned_) refuse("features that are not returned");
  if (p.ends_in_features) p.out_channels = r.features, p.results = 1;
  p.place_in_containers();
  return p;
}

/// Lets maps that are concatenated be made side by side where the concatenation is, each in the first one that takes
/// it.
void Program::place_in_containers() {
  const auto may_move = [&](const Source& source) {
    const Step& t = *steps[source.step];
    return t.container == t.index && source.lane == 0 && source.channels.count() == t.out_channels.count();
  };
  for (const auto& step : steps) {
    if (!step->holds_sources()) continue;
    int64_t lane = 0;
    Channels all;
    for (const Source& source : step->sources) {
      lane = all.append(source.channels);
      if (!may_move(source)) continue;
      Step& t = *steps[source.step];
      t.container = step->index, t.container_lane = lane;
      if (source.step == 0) copies_entry = true;
    }
  }
  for (const auto& step : steps)  // a container may be within another
    for (int64_t at = step->container; steps[at]->container != at; step->container = at = steps[at]->container)
      step->container_lane += steps[at]->container_lane;
}

}  // namespace ghost

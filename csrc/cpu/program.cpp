// program, program_pack, program_eval: a net, or part of one, in one call.
#include "checks.h"
#include "maps.h"
#include "operators.h"
#include "program/image.h"
#include "program/pack.h"
#include "program/team.h"

namespace ghost {
namespace {

constexpr int64_t kShareFlops = 1 << 19;  // less than this is not worth a thread

/// The steps over features: each layer of all images at once, its columns shared out.
void dense(const Program& p, const float* packed, int64_t n, int64_t row, float* from, float* to, float** result) {
  const Kernels& k = kernels();
  for (const Step& t : p.steps) {
    if (t.kind != Kind::dense) continue;
    const Pieces at = pieces(t);
    const float* base = packed + t.packed;
    const int64_t panels = padded(t.primary) / kPanel, flops = 2 * n * t.channels * kPanel;
    abi::parallel_for(panels, std::max<int64_t>(1, kShareFlops / flops), [&](int64_t begin, int64_t end) {
      const int64_t c0 = begin * kPanel, columns = std::min(t.primary, end * kPanel) - c0;
      k.pointwise({from, row, 1, n, t.channels, columns, base + at.weight + c0 * t.channels, 0, base + at.bias + c0,
                   to + c0, row, true, t.first.act == kRelu, false});
      if (t.first.act != kNone && t.first.act != kRelu)
        k.affine(to + c0, row, {nullptr, nullptr, t.first.act, base + at.slopes + c0}, to + c0, row, n, columns);
    });
    std::swap(from, to);
  }
  *result = from;
}

/// Images one after the other, each by all threads.
void together(const Program& p, const Plan& plan, const float* packed, const Map& x, const Map* out, float* features,
              int64_t row, int64_t begin, int64_t end, Scratch& scratch) {
  Image image(p, plan, packed, x, out, features, row, scratch.floats(plan.workspace.floats));
  std::vector<std::pair<int64_t, int64_t>> phases;
  for (size_t i = 0; i < plan.steps.size(); i++)
    for (int64_t phase = 0; phase < plan.steps[i].phases; phase++) phases.push_back({i, phase});
  for (int64_t i = begin; i < end; i++) {
    image.begin(i);
    Team(static_cast<int64_t>(phases.size()), plan.shares).work([&](int64_t phase, int64_t share) {
      image.run(phases[phase].first, phases[phase].second, share);
    });
  }
}

Tensor run(const Program& p, const float* packed, const Tensor& x) {
  const Checks check("program");
  check.shape("x", x, {-1, p.in_channels, -1, -1});
  const int64_t n = x.size(0), h = x.size(2), w = x.size(3), threads = abi::num_threads();
  const Plan alone(p, h, w, 1);
  const int64_t shares = std::max<int64_t>(1, std::min({threads, kMostShares, alone.flops / kShareFlops}));
  Tensor out = p.returns_features
                   ? abi::empty({n, p.steps.back().primary ? p.steps.back().primary : p.steps.back().channels}, x.dtype())
                   : new_map({n, p.steps[p.steps.back().in].out_channels.count(), alone.out_h, alone.out_w}, x);
  if (x.numel() == 0) return out;
  const Map from(x), to = p.returns_features ? Map() : Map(out), *map = p.returns_features ? nullptr : &to;
  Scratch scratch;
  const int64_t row = alone.features;
  float* features = scratch.floats(n * row);
  const auto on_this_thread = [&](int64_t begin, int64_t end) {
    Scratch own;
    Image image(p, alone, packed, from, map, features, row, own.floats(alone.workspace.floats));
    for (int64_t i = begin; i < end; i++) image.run_alone(i);
  };
  // Whole images to each thread, as many to each; what is left of them by all threads together.
  const bool serial = threads == 1 || n * alone.flops < kShareFlops;
  const int64_t apart = serial ? 0 : n / threads * threads;
  if (apart)
    abi::parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
      on_this_thread(apart * begin / threads, apart * end / threads);
    });
  if (serial || shares == 1)
    on_this_thread(apart, n);
  else if (apart < n)
    together(p, Plan(p, h, w, shares), packed, from, map, features, row, apart, n, scratch);
  if (p.returns_features) {
    float* result = features;
    dense(p, packed, n, row, features, scratch.floats(n * row), &result);
    const int64_t columns = out.size(1);
    kernels().scatter(result, n * row, row, 1, n, columns,
                      {out.data<char>(), out.dtype() == abi::DType::bfloat16, 1, n * columns, columns});
  }
  return out;
}

}  // namespace

Tensor program(const Tensor& x, const Tensor& packed, const Ints& steps) {
  if (!all_readable(x, packed)) return abi::call<Tensor>("ghost_ops::program_reference", "", x, packed, steps);
  const Program p = Program::parse(steps);
  const Checks check("program");
  check.shape("packed", packed, {p.packed_floats});
  Scratch scratch;
  return run(p, dense(packed, scratch), x);
}

Tensor program_pack(const Tensors& parameters, const Ints& steps) {
  for (const Tensor& t : parameters)
    if (!readable(t)) return abi::call<Tensor>("ghost_ops::program_pack_reference", "", parameters, steps);
  const Program p = Program::parse(steps);
  Tensor packed = abi::empty({p.packed_floats}, abi::DType::float32);
  pack_program(p, parameters, packed.data<float>());
  return packed;
}

Tensor program_eval(const Tensor& x, const Tensors& parameters, const Ints& steps) {
  bool known = readable(x);
  for (const Tensor& t : parameters) known = known && readable(t);
  if (!known) return abi::call<Tensor>("ghost_ops::program_eval_reference", "", x, parameters, steps);
  const Program p = Program::parse(steps);
  Scratch scratch;
  float* packed = scratch.floats(p.packed_floats);
  pack_program(p, parameters, packed);
  return run(p, packed, x);
}

}  // namespace ghost

// program, program_pack, program_eval: a net, or part of one, in one call.
#include "checks.h"
#include "exported.h"
#include "maps.h"
#include "operators.h"
#include "pool.h"
#include "program/image.h"
#include "program/known.h"
#include "program/pack.h"
#include "program/team.h"

namespace ghost {
namespace {

constexpr int64_t kShareFlops = 1 << 19;  // less than this is not worth a thread
constexpr int64_t kTogether = 8;          // images that a thread has under way at once

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
      const auto product = t.pairs ? k.gemm_bf16 : k.gemm;
      product({from, row, 1, n, t.channels, columns, base + at.weight + c0 * t.depth(t.channels), 0,
               base + at.bias + c0, to + c0, row, true, t.first.act == kRelu, false});
      if (t.first.act != kNone && t.first.act != kRelu)
        k.affine(to + c0, row, {nullptr, nullptr, t.first.act, base + at.slopes + c0}, to + c0, row, n, columns);
      k.release_tiles();
    });
    std::swap(from, to);
  }
  *result = from;
}

/// What a call hands to every image.
struct Call {
  const Program& program;
  const float* packed;
  const std::vector<RawLayers>& raw;
  const Map& x;
  const Map* out;
  float* features;
  int64_t features_row;

  Image image(const Plan& plan, float* shared, float* own) const {
    return Image(program, plan, packed, raw, x, out, features, features_row, shared, own);
  }
};

/// Images by this thread alone, some at once.
void alone(const Call& call, const Plan& plan, int64_t begin, int64_t end) {
  if (begin >= end) return;
  Scratch scratch;
  const int64_t most = std::min(kTogether, end - begin), own = plan.workspace.own_floats;
  float *shared = scratch.floats(plan.workspace.shared_floats), *memory = scratch.floats(most * own);
  std::vector<Image> images;
  for (int64_t i = 0; i < most; i++) images.push_back(call.image(plan, shared, memory + i * own));
  for (int64_t i = begin; i < end; i += static_cast<int64_t>(images.size())) {
    while (static_cast<int64_t>(images.size()) > end - i) images.pop_back();
    for (size_t j = 0; j < images.size(); j++) images[j].begin(i + static_cast<int64_t>(j));
    Image::run_alone(images);
  }
  kernels().release_tiles();
}

/// Images one after the other, each by all threads.
void together(const Call& call, const Plan& plan, int64_t begin, int64_t end) {
  Scratch scratch;
  Image image =
      call.image(plan, scratch.floats(plan.workspace.shared_floats), scratch.floats(plan.workspace.own_floats));
  std::vector<Image> bands;
  if (plan.bands)
    for (int64_t i = 0; i < plan.shares; i++) {
      const Workspace& m = plan.bands->workspace;
      bands.push_back(call.image(*plan.bands, scratch.floats(m.shared_floats), scratch.floats(m.own_floats)));
    }
  std::vector<std::pair<int64_t, int64_t>> phases;
  for (size_t i = 0; i < plan.steps.size(); i++)
    for (int64_t phase = 0; phase < plan.steps[i].phases; phase++) phases.push_back({i, phase});
  for (int64_t i = begin; i < end; i++) {
    image.begin(i);
    Team(static_cast<int64_t>(phases.size()), plan.shares)
        .work(
            [&](int64_t phase, int64_t share) {
              if (phases[phase].first < plan.end_of_bands)
                bands[share].run_band(image, share);
              else
                image.run(phases[phase].first, phases[phase].second, share);
            },
            kernels().release_tiles);
  }
}

Tensor run(KnownProgram& known, const float* packed, const std::vector<RawLayers>& raw, const Tensor& x) {
  const Program& p = known.program();
  const Checks check("program");
  check.shape("x", x, {-1, p.in_channels, -1, -1});
  const int64_t n = x.size(0), h = x.size(2), w = x.size(3), threads = abi::num_threads();
  const Plan& plan = known.plan(h, w, 1);
  const int64_t shares = std::max<int64_t>(1, std::min({threads, kMostShares, plan.flops / kShareFlops}));
  const Step& last = p.steps.back();
  Tensor out = p.returns_features ? abi::empty({n, last.kind == Kind::dense ? last.primary : last.channels}, x.dtype())
                                  : new_map({n, p.steps[last.in].out_channels.count(), plan.out_h, plan.out_w}, x);
  if (x.numel() == 0) return out;
  const Map from(x), to = p.returns_features ? Map() : Map(out);
  Scratch scratch;
  const int64_t row = plan.features;
  float* features = scratch.floats(n * row);
  const Call call{p, packed, raw, from, p.returns_features ? nullptr : &to, features, row};
  // Whole images to each thread, as many to each; what is left of them by all threads together.
  const bool serial = threads == 1 || n * plan.flops < kShareFlops;
  const int64_t apart = serial ? 0 : n / threads * threads;
  if (apart)
    abi::parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
      alone(call, plan, apart * begin / threads, apart * end / threads);
    });
  if (serial || shares == 1)
    alone(call, plan, apart, n);
  else if (apart < n)
    together(call, known.plan(h, w, shares), apart, n);
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
  const bool words = packed.dtype() == abi::DType::int32;  // the form that pairs of bfloat16 are packed in
  if (!readable(x) || !(words ? packed.is_cpu() && packed.is_contiguous() : readable(packed)))
    return abi::call<Tensor>("ghost_ops::program_reference", "", x, packed, steps);
  KnownProgram& known = KnownProgram::of(steps, false);
  const Program& p = known.program();
  const Checks check("program");
  check.that(words == p.pairs, "packed",
             p.pairs ? "int32 for steps of precision 1 (bfloat16)" : "floats for steps of precision 0 (float32)",
             Checks::text(packed.dtype()));
  check.shape("packed", packed, {p.packed_floats});
  Scratch scratch;
  return run(known, words ? packed.data<const float>() : dense(packed, scratch), {}, x);
}

Tensor program_pack(const Tensors& parameters, const Ints& steps) {
  for (const Tensor& t : parameters)
    if (!readable(t)) return abi::call<Tensor>("ghost_ops::program_pack_reference", "", parameters, steps);
  const Program p = Program::parse(steps);
  Tensor packed = abi::empty({p.packed_floats}, p.pairs ? abi::DType::int32 : abi::DType::float32);
  advise_huge_pages(packed.data<char>(), 4 * p.packed_floats);
  Scratch scratch;
  std::fill_n(packed.data<float>(), p.packed_floats, 0.f);  // what aligns the pieces, too
  pack_program(p, parameters, packed.data<float>(), scratch);
  return packed;
}

Tensor program_eval(const Tensor& x, const Tensors& parameters, const Ints& steps) {
  Checks("program_eval").map("x", x);
  bool known = readable(x);
  for (const Tensor& t : parameters) known = known && readable(t);
  if (!known) return abi::call<Tensor>("ghost_ops::program_eval_reference", "", x, parameters, steps);
  KnownProgram& program = KnownProgram::of(steps, x.size(0) == 1);
  const Program& p = program.program();
  Checks("program_eval").that(!p.pairs, "steps", "those of precision 0 (float32)", "those of precision 1 (bfloat16)");
  Scratch scratch;
  float* packed = scratch.floats(p.packed_floats);
  const std::vector<RawLayers> raw = pack_program(p, parameters, packed, scratch);
  return run(program, packed, raw, x);
}

}  // namespace ghost

/// The bytes that a thread works in when it has this many images of h x w pixels; -1 where the program or the size is
/// refused.
GHOST_EXPORTED int64_t ghost_ops_cpu_program_scratch(const int64_t* steps, int64_t count, int64_t images, int64_t h,
                                                     int64_t w) {
  return ghost::guarded(int64_t{-1}, [&] {
    const ghost::Plan plan(ghost::Program::parse({steps, steps + count}), h, w, 1);
    const ghost::Workspace& m = plan.workspace;
    return 4 * (m.shared_floats + std::min(images, ghost::kTogether) * m.own_floats);
  });
}

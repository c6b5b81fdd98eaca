// program, program_maps, program_pack, program_eval: a net, or part of one, in one call.
#include "checks.h"
#include "exported.h"
#include "maps.h"
#include "operator.h"
#include "pool.h"
#include "program/packer.h"
#include "program/phase_barrier.h"
#include "program/program_cache.h"
#include "program/program_run.h"

namespace ghost {
namespace {

constexpr int64_t kTogether = 8;  // images that a thread has under way at once

/// Images by this thread, some at once.
void run_on_one_thread(const ProgramCall& call, const Plan& plan, int64_t begin, int64_t end) {
  if (begin >= end) return;
  Scratch scratch;
  const int64_t most = std::min(kTogether, end - begin), own = plan.workspace.own_floats;
  float *shared = scratch.floats(plan.workspace.shared_floats), *memory = scratch.floats(most * own);
  std::vector<ProgramRun> images;
  for (int64_t i = 0; i < most; i++) images.emplace_back(call, plan, shared, memory + i * own);
  for (int64_t i = begin; i < end; i += static_cast<int64_t>(images.size())) {
    while (static_cast<int64_t>(images.size()) > end - i) images.pop_back();
    for (size_t j = 0; j < images.size(); j++) images[j].begin(i + static_cast<int64_t>(j));
    ProgramRun::run_images(images);
  }
  kernels().release_tiles();
}

/// Images one after the other, each by all threads.
void run_on_all_threads(const ProgramCall& call, const Plan& plan, int64_t begin, int64_t end) {
  Scratch scratch;
  ProgramRun image(call, plan, scratch.floats(plan.workspace.shared_floats), scratch.floats(plan.workspace.own_floats));
  std::vector<ProgramRun> bands;
  if (plan.bands)
    for (int64_t i = 0; i < plan.shares; i++) {
      const Workspace& m = plan.bands->workspace;
      bands.emplace_back(call, *plan.bands, scratch.floats(m.shared_floats), scratch.floats(m.own_floats));
    }
  std::vector<std::pair<int64_t, int64_t>> phases;
  for (size_t i = 0; i < plan.steps.size(); i++)
    for (int64_t phase = 0; phase < plan.steps[i].phases; phase++) phases.push_back({i, phase});
  for (int64_t i = begin; i < end; i++) {
    image.begin(i);
    PhaseBarrier(static_cast<int64_t>(phases.size()), plan.shares)
        .work(
            [&](int64_t phase, int64_t share) {
              if (phases[phase].first < plan.end_of_bands)
                bands[share].run_band(image, share);
              else
                image.run_phase(phases[phase].first, phases[phase].second, share);
            },
            kernels().release_tiles);
  }
}

Tensors run_program(ProgramCache& cache, const float* packed, const std::vector<const float*>& raw, const Tensor& x) {
  const Program& p = cache.program();
  const Checks check("program");
  check.shape("x", x, {-1, p.in_channels, -1, -1});
  const int64_t n = x.size(0), h = x.size(2), w = x.size(3), threads = abi::num_threads();
  const Plan& plan = cache.plan(h, w, 1);
  const int64_t most = std::min(threads, kMostShares);
  const int64_t shares = plan.flops < static_cast<double>(most * kShareFlops)
                             ? std::max<int64_t>(1, static_cast<int64_t>(plan.flops) / kShareFlops)
                             : most;
  Tensors out;
  std::vector<Map> to;
  for (const auto& step : p.steps) {
    const StepPlan& s = plan.steps[step->index];
    if (step->returns_map()) to.emplace_back(out.emplace_back(new_map({n, step->channels, s.h, s.w}, x)));
    if (step->returns_features()) out.push_back(abi::empty({n, step->channels}, x.dtype()));
  }
  if (p.ends_in_features) out.push_back(abi::empty({n, p.out_channels}, x.dtype()));
  if (x.numel() == 0) return out;
  const Map from(x);
  Scratch scratch;
  const int64_t row = plan.features;
  float* begun = scratch.floats(p.begun_features * n * row);
  const ProgramCall call{p, packed, raw, from, to.empty() ? nullptr : to.data(), begun, row, n};
  // Whole images to each thread, as many to each; what is left of them by all threads together.
  const bool serial = threads == 1 || static_cast<double>(n) * plan.flops < kShareFlops;
  const int64_t apart = serial ? 0 : n / threads * threads;
  if (apart)
    abi::parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
      run_on_one_thread(call, plan, apart * begin / threads, apart * end / threads);
    });
  if (serial || shares == 1)
    run_on_one_thread(call, plan, apart, n);
  else if (apart < n)
    run_on_all_threads(call, cache.plan(h, w, shares), apart, n);
  if (row == 0) return out;
  float *features = nullptr, *next = scratch.floats(n * row);
  size_t result = 0;
  const auto store = [&](int64_t columns) {
    Tensor& t = out[result];
    kernels().scatter(features, n * row, row, 1, n, columns,
                      {t.data<char>(), t.dtype() == abi::DType::bfloat16, 1, n * columns, columns});
  };
  for (const auto& step : p.steps) {
    if (step->begins_features())
      features = begun + step->features_place * n * row;
    else if (step->run_features({p, packed, n, row, features, next}))
      std::swap(features, next);
    if (step->returns_features()) store(step->channels);
    result += step->returns_map() || step->returns_features();
  }
  if (p.ends_in_features) store(p.out_channels);
  return out;
}

/// The one result of a program.
Tensor only(Tensors&& results) { return std::move(results[0]); }

const Program& with_one_result(const Program& p, const char* name) {
  Checks(name).that(p.results == 1, "steps", "those of a program with one result", p.results);
  return p;
}

/// "steps of precision 0 (float32)"
std::string text_of(const WeightFormat& f) {
  return " of precision " + std::to_string(f.precision) + " (" + f.name + ")";
}

/// Whether the kernels read an input and packed parameters.
bool are_readable(const Tensor& x, const Tensor& packed) {
  const bool words = packed.dtype() == abi::DType::int32;  // packed numbers that are not float32
  return readable(x) && (words ? packed.is_cpu() && packed.is_contiguous() : readable(packed));
}

Tensors run_packed(ProgramCache& cache, const Tensor& x, const Tensor& packed) {
  const Program& p = cache.program();
  const bool floats = p.format->dtype == abi::DType::float32;
  const Checks check("program");
  check.that(floats ? readable(packed) : packed.dtype() == p.format->dtype, "packed",
             (floats ? "floats" : Checks::text(p.format->dtype)) + " for steps" + text_of(*p.format),
             Checks::text(packed.dtype()));
  check.shape("packed", packed, {p.packed_floats});
  Scratch scratch;
  return run_program(cache, floats ? dense(packed, scratch) : packed.data<const float>(), {}, x);
}

}  // namespace

Tensor program(const Tensor& x, const Tensor& packed, const Ints& steps) {
  if (!are_readable(x, packed)) return abi::call<Tensor>("ghost_ops::program_reference", "", x, packed, steps);
  ProgramCache& cache = ProgramCache::of(steps, false);
  with_one_result(cache.program(), "program");
  return only(run_packed(cache, x, packed));
}

GHOST_OPERATOR(program);

Tensors program_maps(const Tensor& x, const Tensor& packed, const Ints& steps) {
  if (!are_readable(x, packed)) return abi::call<Tensors>("ghost_ops::program_maps_reference", "", x, packed, steps);
  return run_packed(ProgramCache::of(steps, false), x, packed);
}

GHOST_OPERATOR(program_maps);

Tensor program_pack(const Tensors& parameters, const Ints& steps) {
  for (const Tensor& t : parameters)
    if (!readable(t)) return abi::call<Tensor>("ghost_ops::program_pack_reference", "", parameters, steps);
  const Program p = Program::parse(steps);
  Tensor packed = abi::empty({p.packed_floats}, p.format->dtype);
  advise_huge_pages(packed.data<char>(), 4 * p.packed_floats);
  Scratch scratch;
  std::fill_n(packed.data<float>(), p.packed_floats, 0.f);  // what aligns the pieces, too
  pack_program(p, parameters, packed.data<float>(), scratch);
  return packed;
}

GHOST_OPERATOR(program_pack);

Tensor program_eval(const Tensor& x, const Tensors& parameters, const Ints& steps) {
  Checks("program_eval").map("x", x);
  bool known = readable(x);
  for (const Tensor& t : parameters) known = known && readable(t);
  if (!known) return abi::call<Tensor>("ghost_ops::program_eval_reference", "", x, parameters, steps);
  ProgramCache& cache = ProgramCache::of(steps, x.size(0) == 1);
  const Program& p = with_one_result(cache.program(), "program_eval");
  const WeightFormat& expected = *weight_format(0);
  Checks("program_eval")
      .that(p.format == &expected, "steps", "those" + text_of(expected), "those" + text_of(*p.format));
  Scratch scratch;
  float* packed = scratch.floats(p.packed_floats);
  const std::vector<const float*> raw = pack_program(p, parameters, packed, scratch);
  return only(run_program(cache, packed, raw, x));
}

GHOST_OPERATOR(program_eval);

}  // namespace ghost

/// The bytes that a thread works in when it has this many images of h x w pixels; -1 where the program or the size is
/// refused.
GHOST_EXPORTED int64_t ghost_ops_cpu_program_scratch(const int64_t* steps, int64_t count, int64_t images, int64_t h,
                                                     int64_t w) {
  return ghost::guarded(int64_t{-1}, [&] {
    const ghost::Plan plan(ghost::Program::parse({steps, steps + count}), h, w, 1);
    const ghost::Workspace& m = plan.workspace;
    return 4 * (m.shared_floats + std::clamp<int64_t>(images, 0, ghost::kTogether) * m.own_floats);
  });
}

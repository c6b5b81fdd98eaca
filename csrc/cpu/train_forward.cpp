// ghost_module_train: F1 takes the statistics of z1, F2 writes y1 and takes those of z2, F3 writes y2.
// cheap_concat_train: the same passes over a z1 that is given.
#include "operator.h"
#include "train.h"

namespace ghost {
namespace {

constexpr int64_t kMostStep = 56;  // step_rows never gives more

void primary_statistics(const TrainContext& t, Scratch& scratch) {
  Moments moments(t.groups(), t.m, scratch);
  const int64_t step = step_rows(t.w, t.h);
  // What is kept is made where it is kept, if whole vectors may be written there.
  const bool in_place = t.z1 && by_eight(t.m) <= t.z1_pixel;
  t.for_units(false, [&](int64_t group, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    float *x = own.floats(rows_scratch(t.x, step)), *z = own.floats(step * t.w * by_eight(t.m));
    for (int64_t y = begin; y < end; y += step) {
      const int64_t count = std::min(step, end - y), pixels = count * t.w;
      if (!t.has_product()) {
        const Rows given = t.z1_rows(image, y, count, x, z);
        moments.add(group, given.data, given.pixel, pixels);
        continue;
      }
      const Rows to = in_place ? t.kept_rows(image, y) : Rows{z, by_eight(t.m)};
      t.product(rows_of(t.x, image, y, count, x, 0, t.c), count, to, next_rows(t.x, image, y, count));
      moments.add(group, to.data, to.pixel, pixels);
      if (t.z1 && !in_place)
        kernels().affine(to.data, to.pixel, {nullptr, nullptr, kNone, nullptr}, t.kept_rows(image, y).data, t.z1_pixel,
                         pixels, t.m);
    }
  });
  moments.finish(t.primary.mean, t.primary.var);
}

/// y1 where it is in the output: what the cheap operation reads need not be copied into rings.
class StoredRows {
 public:
  StoredRows(const TrainContext& t, const Map& out, int64_t image, Scratch& scratch)
      : t_(t), out_(out), image_(image), zeros_(scratch.zeros(t.w * out.pixel)) {}
  /// The kernels read whole vectors of a pixel: beyond m channels, never beyond the pixel.
  static bool serves(const TrainContext& t, const Map& out) {
    return out.direct && !t.cheap.expands() && by_eight(t.m) <= out.c;
  }
  float* row(int64_t y) const { return reinterpret_cast<float*>(out_.at(image_, y, 0)); }
  int64_t window(int64_t y, int64_t count, const float** rows) const {
    const int64_t halo = t_.cheap.halo();
    for (int64_t i = y - halo; i < y + count + halo; i++) *rows++ = i < 0 || i >= t_.h ? zeros_ : row(i);
    return out_.pixel;
  }

 private:
  const TrainContext& t_;
  const Map& out_;
  int64_t image_;
  const float* zeros_;
};

/// y1 is made in rings and copied into the output: any layout, any bands.
void write_y1_by_rings(const TrainContext& t, const Map& out, Moments& moments) {
  const int64_t step = step_rows(t.w, t.h), halo = t.cheap.halo(), pixel = by_eight(t.cheap.channels);
  t.for_units(true, [&](int64_t group, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    PrimaryRows primary(t, image, begin, end, halo, step, step + 2 * halo, false, own);
    float *out_rows = own.floats(rows_scratch(out, step)), *z2 = own.floats(step * t.w * pixel);
    const float* rows[kMostStep + 6];
    for (int64_t y = begin; y < end; y += step) {
      const int64_t count = std::min(step, end - y);
      primary.ensure(y + count + halo);
      const Rows to = rows_to_write(out, image, y, out_rows, 0, t.m);
      for (int64_t i = 0; i < count; i++)
        kernels().affine(primary.y1(y + i), by_eight(t.m), {nullptr, nullptr, kNone, nullptr},
                         to.data + i * t.w * to.pixel, to.pixel, t.w, t.m);
      finish_rows(out, image, y, count, to, 0, t.m);
      const int64_t in_pixel = primary.window(y, count, rows);
      kernels().depthwise({rows, in_pixel, count, t.w, t.cheap.channels, t.cheap.kernel, t.cheap.weight,
                           t.cheap.weight_row, nullptr, z2, t.w * pixel, pixel, false});
      moments.add(group, z2, pixel, count * t.w);
    }
  });
}

/// y1 is made in the output: whole images, whose halo no other thread makes.
void write_y1_in_place(const TrainContext& t, const Map& out, Moments& moments) {
  const int64_t step = step_rows(t.w, t.h), halo = t.cheap.halo(), pixel = by_eight(t.cheap.channels);
  t.for_units(true, [&](int64_t group, int64_t image, int64_t, int64_t) {
    Scratch own;
    const StoredRows y1(t, out, image, own);
    float *x = own.floats(rows_scratch(t.x, step)), *z1 = own.floats(t.z1 ? 0 : step * t.w * by_eight(t.m));
    float* z2 = own.floats(step * t.w * pixel);
    const float* rows[kMostStep + 6];
    for (int64_t y = 0, made = 0; y < t.h; y += step) {
      const int64_t count = std::min(step, t.h - y), wanted = std::min(t.h, y + count + halo);
      while (made < wanted) {
        const int64_t more = std::min(step, t.h - made);
        const Rows z = t.z1_rows(image, made, more, x, z1);
        kernels().affine(z.data, z.pixel, t.primary.affine(), y1.row(made), out.pixel, more * t.w, t.m);
        made += more;
      }
      const int64_t in_pixel = y1.window(y, count, rows);
      kernels().depthwise({rows, in_pixel, count, t.w, t.cheap.channels, t.cheap.kernel, t.cheap.weight,
                           t.cheap.weight_row, nullptr, z2, t.w * pixel, pixel, false});
      moments.add(group, z2, pixel, count * t.w);
    }
  });
}

void write_y1(const TrainContext& t, const Map& out, Scratch& scratch) {
  Moments moments(t.groups(), t.cheap.channels, scratch);
  const bool in_place = StoredRows::serves(t, out) && t.bands() == 1;
  (in_place ? write_y1_in_place : write_y1_by_rings)(t, out, moments);
  moments.finish(t.cheap_norm.mean, t.cheap_norm.var);
}

/// Only the channels that out keeps. The BatchNorm is in the cheap operation's weights by now, as in inference. With a
/// gate, what is written is multiplied by it: y1 too, as soon as the cheap operation has read it.
void write_y2(TrainContext t, const Map& out, int64_t kept, Scratch& scratch) {
  const int64_t taps = t.cheap.kernel * t.cheap.kernel;
  float* weight = scratch.floats(taps * t.cheap.weight_row);
  for (int64_t i = 0; i < taps * t.cheap.weight_row; i++)
    weight[i] = t.cheap.weight[i] * t.cheap_norm.scale[i % t.cheap.weight_row];
  t.cheap.channels = kept;
  const Act act = t.cheap_norm.act;
  const bool in_place = StoredRows::serves(t, out) && (!t.gate || t.bands() == 1);
  const int64_t step = step_rows(t.w, t.h), halo = t.cheap.halo();
  t.for_units(false, [&](int64_t, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    const StoredRows stored(t, out, image, own);
    std::optional<PrimaryRows> made;  // else y1 is read where it is stored
    if (!in_place) made.emplace(t, image, begin, end, halo, step, step + 2 * halo, false, own);
    float* out_rows = own.floats(rows_scratch(out, step));
    const float* rows[kMostStep + 6];
    int64_t gated = begin;  // rows of y1 above it are
    const auto gate_y1 = [&](int64_t limit) {
      for (; gated < limit; gated++) {
        const Rows to = rows_to_write(out, image, gated, out_rows, 0, t.m);
        const Rows from = made ? Rows{made->y1(gated), by_eight(t.m)} : to;
        t.gate.multiply(from, image, gated, 1, 0, t.m, to);
        finish_rows(out, image, gated, 1, to, 0, t.m);
      }
    };
    for (int64_t y = begin; y < end; y += step) {
      const int64_t count = std::min(step, end - y);
      if (made) made->ensure(y + count + halo);
      const int64_t in_pixel = made ? made->window(y, count, rows) : stored.window(y, count, rows);
      const Rows to = rows_to_write(out, image, y, out_rows, t.m, kept);
      kernels().depthwise({rows, in_pixel, count, t.w, kept, t.cheap.kernel, weight, t.cheap.weight_row,
                           t.cheap_norm.shift, to.data, t.w * to.pixel, to.pixel, act == kRelu});
      if (act != kNone && act != kRelu)
        kernels().affine(to.data, to.pixel, {nullptr, nullptr, act, t.cheap_norm.slope}, to.data, to.pixel, count * t.w,
                         kept);
      if (t.gate) t.gate.multiply(to, image, y, count, t.m, kept, to);
      finish_rows(out, image, y, count, to, t.m, kept);
      if (t.gate) gate_y1(made ? y + count : y + count - halo);
    }
    if (t.gate) gate_y1(end);
  });
}

/// Whether F1 should keep z1 in out's first half: where computing it again costs more than writing and reading it. Not
/// with several bands an image, where one band's y1 would overwrite the z1 of its neighbour's halo.
bool worth_keeping(const TrainContext& t, const Map& out) {
  return t.has_product() && out.direct && t.bands() == 1 && t.product_cost() > 3 * t.m;
}

/// All three passes; `gate` is null where there is none.
Results<6> train(const TrainArguments& a, const Tensor* gate, bool keep_primary) {
  Scratch scratch;
  TrainContext t = make_context(a, scratch);
  if (gate) set_gate(t, a.op, *gate, a.out_channels, scratch);
  t.primary.allocate(scratch);
  t.cheap_norm.allocate(scratch);
  const int64_t cheap_channels = t.cheap.channels;
  Tensor result = new_map({t.n, a.out_channels, t.h, t.w}, a.x);
  const Map out(result);
  Tensor primary =
      keep_primary ? new_tensor({t.n, t.h, t.w, t.m}, abi::DType::float32) : abi::empty({0}, abi::DType::float32);
  if (keep_primary)
    t.keep_z1(primary.data<float>(), t.m);
  else if (worth_keeping(t, out))
    t.keep_z1(reinterpret_cast<float*>(out.data), out.pixel);
  primary_statistics(t, scratch);
  t.primary.set_affine();
  write_y1(t, out, scratch);
  t.cheap_norm.set_affine();
  if (t.has_product()) t.z1 = nullptr;  // y1 may be in its place
  write_y2(t, out, a.out_channels - t.m, scratch);
  const auto f32 = abi::DType::float32;
  return {std::move(result),
          ghost::result(t.primary.mean, {t.m}, f32),
          ghost::result(t.primary.var, {t.m}, f32),
          ghost::result(t.cheap_norm.mean, {cheap_channels}, f32),
          ghost::result(t.cheap_norm.var, {cheap_channels}, f32),
          std::move(primary)};
}

}  // namespace

Results<6> ghost_module_train(const Tensor& x, const Tensor& w1, const Optional& b1, const Optional& gamma1,
                              const Optional& beta1, const Tensor& w2, const Optional& b2, const Optional& gamma2,
                              const Optional& beta2, const Optional& act_weight, const Optional& cheap_act_weight,
                              int64_t out_channels, int64_t act, int64_t cheap_act, double act_slope,
                              double cheap_act_slope, double eps1, double eps2, bool keep_primary) {
  if (!all_readable(x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2, act_weight, cheap_act_weight) ||
      !cheap_kernel_known(w2) || lacks_statistics(x))
    return abi::call<Results<6>>("ghost_ops::ghost_module_train_reference", "", x, w1, b1, gamma1, beta1, w2, b2,
                                 gamma2, beta2, act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
                                 cheap_act_slope, eps1, eps2, keep_primary);
  return train({"ghost_module_train", x, &w1, gamma1, beta1, w2, gamma2, beta2, act_weight, cheap_act_weight,
                out_channels, act, cheap_act, act_slope, cheap_act_slope, eps1, eps2},
               nullptr, keep_primary);
}

GHOST_OPERATOR(ghost_module_train);

Results<5> ghost_module_train_gated(const Tensor& x, const Tensor& gate, const Tensor& w1, const Optional& b1,
                                    const Optional& gamma1, const Optional& beta1, const Tensor& w2, const Optional& b2,
                                    const Optional& gamma2, const Optional& beta2, const Optional& act_weight,
                                    const Optional& cheap_act_weight, int64_t out_channels, int64_t act,
                                    int64_t cheap_act, double act_slope, double cheap_act_slope, double eps1,
                                    double eps2) {
  if (!all_readable(x, gate, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2, act_weight, cheap_act_weight) ||
      !cheap_kernel_known(w2) || lacks_statistics(x))
    return abi::call<Results<5>>("ghost_ops::ghost_module_train_gated_reference", "", x, gate, w1, b1, gamma1, beta1,
                                 w2, b2, gamma2, beta2, act_weight, cheap_act_weight, out_channels, act, cheap_act,
                                 act_slope, cheap_act_slope, eps1, eps2);
  auto [out, mean1, var1, mean2, var2, primary] =
      train({"ghost_module_train_gated", x, &w1, gamma1, beta1, w2, gamma2, beta2, act_weight, cheap_act_weight,
             out_channels, act, cheap_act, act_slope, cheap_act_slope, eps1, eps2},
            &gate, false);
  return {std::move(out), std::move(mean1), std::move(var1), std::move(mean2), std::move(var2)};
}

GHOST_OPERATOR(ghost_module_train_gated);

Results<5> cheap_concat_train(const Tensor& z, const Optional& b1, const Optional& gamma1, const Optional& beta1,
                              const Tensor& w2, const Optional& b2, const Optional& gamma2, const Optional& beta2,
                              const Optional& act_weight, const Optional& cheap_act_weight, int64_t out_channels,
                              int64_t act, int64_t cheap_act, double act_slope, double cheap_act_slope, double eps1,
                              double eps2) {
  if (!all_readable(z, b1, gamma1, beta1, w2, b2, gamma2, beta2, act_weight, cheap_act_weight) ||
      !cheap_kernel_known(w2) || lacks_statistics(z))
    return abi::call<Results<5>>("ghost_ops::cheap_concat_train_reference", "", z, b1, gamma1, beta1, w2, b2, gamma2,
                                 beta2, act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
                                 cheap_act_slope, eps1, eps2);
  auto [out, mean1, var1, mean2, var2, primary] =
      train({"cheap_concat_train", z, nullptr, gamma1, beta1, w2, gamma2, beta2, act_weight, cheap_act_weight,
             out_channels, act, cheap_act, act_slope, cheap_act_slope, eps1, eps2},
            nullptr, false);
  return {std::move(out), std::move(mean1), std::move(var1), std::move(mean2), std::move(var2)};
}

GHOST_OPERATOR(cheap_concat_train);

}  // namespace ghost

#include "train.h"

namespace ghost {

int64_t TrainContext::groups() const {
  const int64_t work = has_product() ? c * m : m * cheap.kernel * cheap.kernel;  // of a pixel
  const bool small = values() * work < kSerialFlops;
  return small ? 1 : std::min(n * bands(), abi::num_threads());
}

int64_t TrainContext::bands() const {
  constexpr int64_t kLeastRows = 14;  // below this the halos of a band cost more than its thread gains
  return std::max<int64_t>(1, std::min(bands_for(n, h, abi::num_threads()), h / kLeastRows));
}

Rows TrainContext::z1_rows(int64_t image, int64_t y, int64_t count, float* x_scratch, float* to) const {
  if (z1) return kept_rows(image, y);
  const Rows made{to, by_eight(m)};
  if (has_product())
    product(rows_of(x, image, y, count, x_scratch, 0, c), count, made, next_rows(x, image, y, count));
  else
    kernels().gather({x.at(image, y), x.bf16, x.channel, x.row, x.pixel}, count, w, m, to, w * made.pixel, made.pixel);
  return made;
}

void TrainContext::product(const Rows& x, int64_t count, const Rows& to, Ahead ahead) const {
  kernels().gemm({x.data, x.pixel, 1, count * w, c, m, panels, 0, nullptr, to.data, to.pixel, true, false, false,
                  nullptr, 0, &ahead});
}

PrimaryRows::PrimaryRows(const TrainContext& t, int64_t image, int64_t begin, int64_t end, int64_t reach, int64_t step,
                         int64_t span, bool keep_z1, Scratch& scratch)
    : t_(t),
      image_(image),
      next_(std::max<int64_t>(0, begin - reach)),
      bottom_(std::min(t.h, end + reach)),
      step_(step),
      keep_z1_(keep_z1 && !t.z1) {
  if (keep_z1_) z_ = RowRing(next_, step, span, t.h, t.w, by_eight(t.m), scratch);
  y1_ = RowRing(next_, step, span, t.h, t.w, by_eight(t.m), scratch);
  if (t.cheap.expands()) expanded_ = RowRing(next_, step, span, t.h, t.w, by_eight(t.cheap.channels), scratch);
  x_scratch_ = scratch.floats(rows_scratch(t.x, step));
}

void PrimaryRows::ensure(int64_t limit) {
  const Kernels& k = kernels();
  for (limit = std::min(limit, bottom_); next_ < limit;) {
    const int64_t count = std::min(step_, bottom_ - next_), pixels = count * t_.w, pixel = by_eight(t_.m);
    float *y1 = y1_.row(next_), *z = keep_z1_ ? z_.row(next_) : y1;
    if (t_.z1_out) z = t_.z1_out + (image_ * t_.h + next_) * t_.w * pixel;
    const Rows rows = t_.z1_rows(image_, next_, count, x_scratch_, z);
    k.affine(rows.data, rows.pixel, t_.primary.affine(), y1, pixel, pixels, t_.m);
    if (t_.cheap.expands())
      expand_channels(y1, pixel, expanded_.row(next_), by_eight(t_.cheap.channels), pixels, t_.cheap.channels,
                      t_.cheap.multiplier);
    next_ += count;
  }
}

int64_t PrimaryRows::window(int64_t y, int64_t count, const float** rows) const {
  (t_.cheap.expands() ? expanded_ : y1_).window(y, count, t_.cheap.halo(), rows);
  return by_eight(t_.cheap.expands() ? t_.cheap.channels : t_.m);
}

TrainContext make_context(const TrainArguments& a, Scratch& scratch) {
  const Checks check(a.op);
  check.map(a.primary_weight ? "x" : "z", a.x);
  const int64_t channels = a.x.size(1);
  if (a.primary_weight) check.shape("primary_weight", *a.primary_weight, {-1, channels, 1, 1});
  const int64_t m = a.primary_weight ? a.primary_weight->size(0) : channels;
  check.that(m > 0, "primary_weight", "at least one output channel", m);
  check.shape("cheap_weight", a.cheap_weight, {-1, 1, -1, -1});
  const int64_t cheap_channels = a.cheap_weight.size(0);
  check.that(cheap_channels > 0 && cheap_channels % m == 0, "cheap_weight",
             "a positive multiple of the primary channels first", cheap_channels);
  check.shape("primary_gamma", a.primary_gamma, {m});
  check.shape("primary_beta", a.primary_beta, {m});
  check.shape("cheap_gamma", a.cheap_gamma, {cheap_channels});
  check.shape("cheap_beta", a.cheap_beta, {cheap_channels});
  check.that(a.out_channels > m && a.out_channels <= m + cheap_channels, "out_channels",
             "more than the primary and at most all channels", a.out_channels);
  check.that(a.act >= 0 && a.act < kActs, "act", "an activation's code", a.act);
  check.that(a.cheap_act >= 0 && a.cheap_act < kActs, "cheap_act", "an activation's code", a.cheap_act);
  check.slopes("act_weight", a.act == kPrelu, a.act_weight, m);
  check.slopes("cheap_act_weight", a.cheap_act == kPrelu, a.cheap_act_weight, cheap_channels);

  TrainContext t;
  t.x = Map(a.x);
  t.n = t.x.n, t.h = t.x.h, t.w = t.x.w, t.c = channels, t.m = m;
  const auto half = [&](int64_t count, int64_t act, double slope, const std::optional<abi::Tensor>& weight,
                        const std::optional<abi::Tensor>& gamma, const std::optional<abi::Tensor>& beta, double eps) {
    BatchNormState h;
    h.channels = count, h.act = static_cast<Act>(act), h.eps = eps;
    h.slope = pack_slopes(h.act, slope, weight, count, scratch);
    h.gamma = dense(gamma, scratch), h.beta = dense(beta, scratch);
    return h;
  };
  t.primary = half(m, a.act, a.act_slope, a.act_weight, a.primary_gamma, a.primary_beta, a.primary_eps);
  t.cheap_norm = half(cheap_channels, a.cheap_act, a.cheap_act_slope, a.cheap_act_weight, a.cheap_gamma, a.cheap_beta,
                      a.cheap_eps);
  if (a.primary_weight) {
    float* panels = scratch.floats(padded(m) * channels);
    kernels().pack({dense(*a.primary_weight, scratch), channels, 1, m, channels, nullptr, nullptr, panels});
    t.panels = panels;
  } else if (t.x.direct) {
    t.z1 = reinterpret_cast<float*>(t.x.data), t.z1_pixel = t.x.pixel, t.z1_image = t.x.image;
  }
  t.cheap.kernel = a.cheap_weight.size(2);
  t.cheap.multiplier = cheap_channels / m;
  t.cheap.channels = cheap_channels;
  t.cheap.weight = pack_cheap(dense(a.cheap_weight, scratch), t.cheap.kernel, cheap_channels, nullptr, scratch);
  t.cheap.weight_row = padded(cheap_channels);
  return t;
}

void set_gate(TrainContext& t, const char* op, const abi::Tensor& gate, int64_t out_channels, Scratch& scratch) {
  const Checks check(op);
  check.shape("gate", gate, {t.n, out_channels, -1, -1});
  check.that(gate.size(2) > 0 && gate.size(3) > 0, "gate", "at least one pixel", Checks::text(gate));
  t.gate = make_gate(gate, t.h, t.w, scratch);
}

}  // namespace ghost

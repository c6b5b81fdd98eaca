// dfc_gate_train: a pass for each convolution and its statistics, and one for the gate.
#include "dfc_gate.h"

#include "operator.h"

namespace ghost {

bool dfc_known(const DfcArguments& a) {
  const auto taps = [](const abi::Tensor& weight, int64_t axis) {
    const int64_t k = weight.dim() == 4 ? weight.size(axis) : 0;
    return k == 1 || k == 3 || k == 5 || k == 7;
  };
  const bool large = a.x.dim() == 4 && a.x.size(2) > 1 && a.x.size(3) > 1;
  return all_readable(a.x, a.weight, a.gamma, a.beta, a.row_weight, a.row_gamma, a.row_beta, a.column_weight,
                      a.column_gamma, a.column_beta) &&
         taps(a.row_weight, 3) && taps(a.column_weight, 2) && large && a.x.numel() > 0 &&
         a.x.size(0) * (a.x.size(2) / 2) * (a.x.size(3) / 2) > 1;
}

DfcContext make_context(const DfcArguments& a, Scratch& scratch) {
  const Checks check(a.op);
  check.map("x", a.x);
  const int64_t channels = a.x.size(1);
  check.shape("weight", a.weight, {-1, channels, 1, 1});
  const int64_t m = a.weight.size(0);
  check.that(m > 0, "weight", "at least one output channel", m);
  check.shape("row_weight", a.row_weight, {m, 1, 1, -1});
  check.shape("column_weight", a.column_weight, {m, 1, -1, 1});
  check.that(a.gate >= 0 && a.gate < kGates, "gate", "a gate's code", a.gate);

  DfcContext t;
  t.x = Map(a.x);
  t.n = t.x.n, t.h = t.x.h / 2, t.w = t.x.w / 2, t.c = channels, t.m = m;
  const auto norm = [&](const char* gamma_name, const std::optional<abi::Tensor>& gamma, const char* beta_name,
                        const std::optional<abi::Tensor>& beta, double eps, Act act) {
    check.shape(gamma_name, gamma, {m});
    check.shape(beta_name, beta, {m});
    BatchNormState s;
    s.channels = m, s.act = act, s.eps = eps;
    s.gamma = dense(gamma, scratch), s.beta = dense(beta, scratch);
    s.allocate(scratch);
    return s;
  };
  t.norm = norm("gamma", a.gamma, "beta", a.beta, a.eps, kNone);
  t.row_norm = norm("row_gamma", a.row_gamma, "row_beta", a.row_beta, a.row_eps, kNone);
  t.column_norm = norm("column_gamma", a.column_gamma, "column_beta", a.column_beta, a.column_eps, act_of_gate(a.gate));
  const auto axis = [&](const abi::Tensor& weight, int64_t taps) {
    const float* from = dense(weight, scratch);
    float *to = scratch.zeros(taps * padded(m)), *flipped = scratch.zeros(taps * padded(m));
    for (int64_t i = 0; i < m; i++)
      for (int64_t j = 0; j < taps; j++)
        to[j * padded(m) + i] = flipped[(taps - 1 - j) * padded(m) + i] = from[i * taps + j];
    return AxisLayer{taps, to, flipped};
  };
  t.row = axis(a.row_weight, a.row_weight.size(3));
  t.column = axis(a.column_weight, a.column_weight.size(2));
  float* panels = scratch.floats(padded(m) * channels);
  kernels().pack({dense(a.weight, scratch), channels, 1, m, channels, nullptr, nullptr, panels});
  t.panels = panels;
  return t;
}

Rows DfcContext::read(const Map& map, int64_t row, int64_t count, float* scratch) const {
  if (is_flat(map)) return {reinterpret_cast<float*>(map.data) + row * w * map.pixel, map.pixel};
  const int64_t pixel = padded(m);
  for_images(row, count, [&](int64_t image, int64_t y, int64_t part, int64_t done) {
    kernels().gather({map.at(image, y), map.bf16, map.channel, map.row, map.pixel}, part, w, m,
                     scratch + done * w * pixel, w * pixel, pixel);
  });
  return {scratch, pixel};
}

Rows DfcContext::pool(int64_t row, int64_t count, Scratch& scratch) const {
  const int64_t pixel = by_eight(c);
  float *x_rows = scratch.floats(rows_scratch(x, 2)), *out = scratch.floats(count * w * pixel);
  for (int64_t i = 0; i < count; i++) {
    const Rows from = rows_of(x, (row + i) / h, (row + i) % h * 2, 2, x_rows, 0, c);
    kernels().pool_pairs(from.data, from.data + x.w * from.pixel, from.pixel, w, c, out + i * w * pixel, pixel);
  }
  return {out, pixel};
}

void DfcContext::product(const Rows& pooled, int64_t row, int64_t count, float* to) const {
  const Rows rows = at(to, row);
  kernels().gemm({pooled.data, pooled.pixel, 1, count * w, c, m, panels, 0, nullptr, rows.data, rows.pixel,
                  by_eight(m) == m, false, false});
}

float* DfcContext::normalise(float* from, const BatchNormState& state, int64_t row, int64_t count,
                             Scratch& scratch) const {
  float* to = scratch.floats(count * w * m);
  kernels().affine(at(from, row).data, m, state.affine(), to, m, count * w, m);
  return to;
}

std::vector<const float*> DfcContext::addresses(const float* first, int64_t count) const {
  std::vector<const float*> rows(count);
  for (int64_t i = 0; i < count; i++) rows[i] = first + i * w * m;
  return rows;
}

void DfcContext::convolve_rows(const float* in, const float* weight, int64_t count, float* to) const {
  const auto rows = addresses(in, count);
  kernels().axis_conv({rows.data(), m, 0, count, w, m, row.taps, weight, padded(m), to, w * m, m});
}

void DfcContext::convolve_columns(const NormalisedRows& in, const float* weight, int64_t count, float* to) const {
  kernels().axis_conv({in.taps(), m, count, count, w, m, column.taps, weight, padded(m), to, w * m, m});
}

NormalisedRows::NormalisedRows(const DfcContext& t, int64_t row, int64_t count, Scratch& scratch)
    : row_(row),
      first_(std::max<int64_t>(0, row - t.column.halo())),
      past_(std::min(t.all_rows(), row + count + t.column.halo())),
      pitch_(t.w * t.m),
      data_(scratch.floats((past_ - first_) * pitch_)),
      taps_(count * t.column.taps) {
  const float* zeros = scratch.zeros(pitch_);
  for (int64_t i = 0; i < count; i++)
    for (int64_t j = 0; j < t.column.taps; j++) {
      const int64_t at = i + j - t.column.halo(), y = (row + i) % t.h + j - t.column.halo();
      taps_[j * count + i] = y < 0 || y >= t.h ? zeros : data_ + (row - first_ + at) * pitch_;
    }
}

Results<8> dfc_gate_train(const Tensor& x, const Tensor& weight, const Optional& gamma, const Optional& beta,
                          const Tensor& row_weight, const Optional& row_gamma, const Optional& row_beta,
                          const Tensor& column_weight, const Optional& column_gamma, const Optional& column_beta,
                          int64_t gate, double eps, double row_eps, double column_eps) {
  const DfcArguments a{"dfc_gate_train", x,         weight,   gamma,         beta,
                       row_weight,       row_gamma, row_beta, column_weight, column_gamma,
                       column_beta,      gate,      eps,      row_eps,       column_eps};
  if (!dfc_known(a))
    return abi::call<Results<8>>("ghost_ops::dfc_gate_train_reference", "", x, weight, gamma, beta, row_weight,
                                 row_gamma, row_beta, column_weight, column_gamma, column_beta, gate, eps, row_eps,
                                 column_eps);
  Scratch scratch;
  DfcContext t = make_context(a, scratch);
  Tensor made = new_map({t.n, t.m, t.h, t.w}, x), kept = new_tensor({t.n, t.h, t.w, t.m}, abi::DType::float32);
  Tensor row_map = new_tensor({t.floats()}, abi::DType::float32);
  Tensor column_map = new_tensor({t.floats()}, abi::DType::float32);
  float *product = kept.data<float>(), *of_rows = row_map.data<float>(), *of_columns = column_map.data<float>();
  const int64_t groups = t.groups();

  Moments moments(groups, t.m, scratch), row_moments(groups, t.m, scratch), column_moments(groups, t.m, scratch);
  t.for_rows(t.step(), [&](int64_t group, int64_t row, int64_t count) {
    Scratch own;
    t.product(t.pool(row, count, own), row, count, product);
    moments.add(group, t.at(product, row).data, t.m, count * t.w);
  });
  moments.finish(t.norm.mean, t.norm.var);
  t.norm.set_affine();
  t.for_rows(t.step(), [&](int64_t group, int64_t row, int64_t count) {
    Scratch own;
    float* to = t.at(of_rows, row).data;
    t.convolve_rows(t.normalise(product, t.norm, row, count, own), t.row.weight, count, to);
    row_moments.add(group, to, t.m, count * t.w);
  });
  row_moments.finish(t.row_norm.mean, t.row_norm.var);
  t.row_norm.set_affine();
  t.for_rows(t.column_step(), [&](int64_t group, int64_t row, int64_t count) {
    Scratch own;
    const NormalisedRows in(t, row, count, own);
    kernels().affine(t.at(of_rows, in.first()).data, t.m, t.row_norm.affine(), in.data(), t.m, in.count() * t.w, t.m);
    float* to = t.at(of_columns, row).data;
    t.convolve_columns(in, t.column.weight, count, to);
    column_moments.add(group, to, t.m, count * t.w);
  });
  column_moments.finish(t.column_norm.mean, t.column_norm.var);
  t.column_norm.set_affine();
  const Map out(made);
  t.for_rows(t.step(), [&](int64_t, int64_t row, int64_t count) {
    Scratch own;
    const bool flat = DfcContext::is_flat(out);
    const int64_t pixel = flat ? out.pixel : padded(t.m);
    float* to = flat ? reinterpret_cast<float*>(out.data) + row * t.w * pixel : own.floats(count * t.w * pixel);
    kernels().affine(t.at(of_columns, row).data, t.m, t.column_norm.affine(), to, pixel, count * t.w, t.m);
    if (flat) return;
    t.for_images(row, count, [&](int64_t image, int64_t y, int64_t part, int64_t done) {
      finish_rows(out, image, y, part, {to + done * t.w * pixel, pixel});
    });
  });
  const auto vector = [&](const float* p) { return result(p, {t.m}, abi::DType::float32); };
  return {std::move(made),        vector(t.norm.mean),        vector(t.norm.var),        vector(t.row_norm.mean),
          vector(t.row_norm.var), vector(t.column_norm.mean), vector(t.column_norm.var), std::move(kept)};
}

GHOST_OPERATOR(dfc_gate_train);

}  // namespace ghost

// The CPU implementations that csrc/register.cpp registers. Arguments are those of ghost_ops/ops/schemas.inc, in order.
#pragma once
#include <optional>
#include <tuple>

#include "abi_lists.h"

namespace ghost {

using abi::Tensor;
using Optional = std::optional<Tensor>;
using Ints = std::vector<int64_t>;
using Tensors = std::vector<Tensor>;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Eight = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Nine = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Two ghost_module(const Tensor& x, const Tensor& primary_weight, const Optional& primary_bias,
                 const Optional& cheap_weight, const Optional& cheap_bias, const Optional& input_scale,
                 const Optional& residual, const Optional& act_weight, const Optional& cheap_act_weight,
                 int64_t out_channels, int64_t act, int64_t cheap_act, double act_slope, double cheap_act_slope,
                 bool return_squeeze);

Two ghost_module_eval(const Tensor& x, const Tensor& primary_weight, const Optional& primary_bias,
                      const Optional& primary_gamma, const Optional& primary_beta, const Tensor& primary_mean,
                      const Tensor& primary_var, const Tensor& cheap_weight, const Optional& cheap_bias,
                      const Optional& cheap_gamma, const Optional& cheap_beta, const Tensor& cheap_mean,
                      const Tensor& cheap_var, const Optional& input_scale, const Optional& residual,
                      const Optional& act_weight, const Optional& cheap_act_weight, int64_t out_channels, int64_t act,
                      int64_t cheap_act, double act_slope, double cheap_act_slope, double primary_eps, double cheap_eps,
                      bool return_squeeze);

Two cheap_concat(const Tensor& z, const Tensor& cheap_weight, const Optional& cheap_bias, const Optional& residual,
                 const Optional& act_weight, const Optional& cheap_act_weight, int64_t out_channels, int64_t act,
                 int64_t cheap_act, double act_slope, double cheap_act_slope, bool return_squeeze);

Six ghost_module_train(const Tensor& x, const Tensor& primary_weight, const Optional& primary_bias,
                       const Optional& primary_gamma, const Optional& primary_beta, const Tensor& cheap_weight,
                       const Optional& cheap_bias, const Optional& cheap_gamma, const Optional& cheap_beta,
                       const Optional& act_weight, const Optional& cheap_act_weight, int64_t out_channels, int64_t act,
                       int64_t cheap_act, double act_slope, double cheap_act_slope, double primary_eps,
                       double cheap_eps, bool keep_primary);

Nine ghost_module_train_backward(const Tensor& grad_out, const Tensor& x, const Tensor& primary_weight,
                                 const Optional& primary_gamma, const Optional& primary_beta,
                                 const Tensor& cheap_weight, const Optional& cheap_gamma, const Optional& cheap_beta,
                                 const Optional& act_weight, const Optional& cheap_act_weight,
                                 const Tensor& primary_mean, const Tensor& primary_var, const Tensor& cheap_mean,
                                 const Tensor& cheap_var, const Optional& primary, int64_t out_channels, int64_t act,
                                 int64_t cheap_act, double act_slope, double cheap_act_slope, double primary_eps,
                                 double cheap_eps);

Four squeeze_excite(const Tensor& x, const Tensor& reduce_weight, const Optional& reduce_bias,
                    const Tensor& expand_weight, const Optional& expand_bias, int64_t act, int64_t gate);

Tensor excite(const Tensor& squeeze, const Tensor& reduce_weight, const Optional& reduce_bias,
              const Tensor& expand_weight, const Optional& expand_bias, int64_t act, int64_t gate);

Five squeeze_excite_backward(const Tensor& grad_out, const Tensor& x, const Tensor& squeeze, const Tensor& hidden,
                             const Tensor& logits, const Tensor& reduce_weight, const Optional& reduce_bias,
                             const Tensor& expand_weight, const Optional& expand_bias, int64_t act, int64_t gate);

Tensor depthwise(const Tensor& x, const Tensor& weight, const Optional& bias, int64_t stride);

Three depthwise_backward(const Tensor& grad_out, const Tensor& x, const Tensor& weight, const Optional& bias,
                         int64_t stride, bool input_wanted, bool weight_wanted);

Tensor program(const Tensor& x, const Tensor& packed, const Ints& steps);

Tensor program_pack(const Tensors& parameters, const Ints& steps);

Tensor program_eval(const Tensor& x, const Tensors& parameters, const Ints& steps);

}  // namespace ghost

// Parameters of a net into the packed form that a program reads: BatchNorms folded, weights in panels.
#pragma once
#include <initializer_list>
#include <vector>

#include "cpu/checks.h"
#include "cpu/scratch.h"
#include "program.h"

namespace ghost {

class Packer {
 public:
  Packer(const Program& program, const std::vector<abi::Tensor>& parameters, float* packed, Scratch& scratch)
      : program_(program), parameters_(parameters), packed_(packed), scratch_(scratch), raw_(program.raw_layers) {}

  const WeightFormat& format() const { return *program_.format; }
  float* at(int64_t float_index) const { return packed_ + float_index; }

  /// The next parameter, dense; raises where its shape is another.
  const float* weight(std::initializer_list<int64_t> sizes);
  /// Bias, BatchNorm and slopes of a layer of `channels`, of which the first `kept` are written (-1: all). Returns the
  /// BatchNorm's scale, or null.
  const float* epilogue(const Layer& layer, int64_t channels, float* bias, float* slopes, int64_t kept = -1);
  const float* epilogue(const Layer& layer, int64_t channels, int64_t kept = -1) {
    return epilogue(layer, channels, at(layer.bias), at(layer.slopes), kept);
  }
  /// The same of a layer that goes on all lanes of a pixel; without a bias where none is packed.
  const float* lanes_epilogue(const Layer& layer, const Channels& channels, bool has_bias = true);
  /// All of a layer that is a product of n x k weights.
  void product(const Layer& layer, int64_t n, int64_t k);
  /// n x k weights, each row times its scale.
  void panels(const Layer& layer, const float* weight, int64_t n, int64_t k, const float* scale) const {
    program_.format->pack(weight, n, k, scale, at(layer.weight));
  }
  /// [channels][taps] as [taps] rows of `row` floats, each of `channels` in its lane; those past them are left out.
  void taps(const Layer& layer, const float* weight, int64_t taps, const float* scale, const Channels& channels,
            int64_t row) const;

  /// The weights that are not packed, by the layers' numbers. Raises where parameters are left.
  std::vector<const float*> finish() const;

 private:
  const abi::Tensor& next();
  const float* vector(bool present, int64_t channels);

  const Checks check_{"program_pack"};
  const Program& program_;
  const std::vector<abi::Tensor>& parameters_;
  float* packed_;
  size_t next_ = 0;
  Scratch& scratch_;
  std::vector<const float*> raw_;
};

/// Packs `parameters`, in the order of the steps, into p.packed_floats floats. Returns the weights that are not packed,
/// by the layers' numbers; they are in the parameters or in scratch.
std::vector<const float*> pack_program(const Program& p, const std::vector<abi::Tensor>& parameters, float* packed,
                                       Scratch& scratch);

}  // namespace ghost

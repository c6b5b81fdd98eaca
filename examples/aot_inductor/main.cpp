// Runs a frozen net that AOTInductor has packed, without Python (docs/toolchains.md).
//
//   main <ghost_ops/_cpu.so> <net.pt2> <N> <C> <H> <W> <input> <output>
//
// input and output are files of float32 numbers, the input's N x C x H x W.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <fstream>
#include <iostream>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 9) {
    std::cerr << "usage: " << argv[0] << " <ghost_ops/_cpu.so> <net.pt2> <N> <C> <H> <W> <input> <output>\n";
    return 2;
  }
  // The library defines the operators ghost_ops::* as it is loaded. It must be loaded before the package, and by a
  // program that has loaded libtorch, whose functions it calls.
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::cerr << "cannot load the kernels: " << dlerror() << "\n";
    return 1;
  }
  std::vector<int64_t> shape;
  for (int i = 3; i < 7; ++i) shape.push_back(std::stoll(argv[i]));
  at::Tensor x = at::empty(shape, at::kFloat);
  std::ifstream input(argv[7], std::ios::binary);
  if (!input.read(static_cast<char*>(x.data_ptr()), x.nbytes())) {
    std::cerr << "cannot read " << x.numel() << " numbers from " << argv[7] << "\n";
    return 1;
  }
  try {
    c10::InferenceMode guard;
    torch::inductor::AOTIModelPackageLoader net(argv[2]);
    at::Tensor y = net.run({x}).at(0).contiguous();
    std::ofstream(argv[8], std::ios::binary).write(static_cast<const char*>(y.data_ptr()), y.nbytes());
    std::cout << y.sizes() << "\n";
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}

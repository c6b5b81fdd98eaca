#include "sequence.h"

#include <climits>

namespace ghost::launch {

/// Goes through the words of a sequence; throws where they end too early or are out of range.
class Reader {
 public:
  explicit Reader(const Words& words) : words_(words) {}

  int64_t next(int64_t least, int64_t most) {
    if (at_ == words_.size()) abi::fail("a sequence of launches ends too early");
    const int64_t word = words_[at_++];
    if (word < least || word > most) abi::fail("a sequence of launches has a number that is out of range");
    return word;
  }
  int64_t any() { return next(INT64_MIN, INT64_MAX); }
  unsigned natural() { return static_cast<unsigned>(next(0, INT_MAX)); }
  unsigned positive() { return static_cast<unsigned>(next(1, INT_MAX)); }
  /// A place among `size` things.
  size_t place(size_t size) { return static_cast<size_t>(next(0, static_cast<int64_t>(size) - 1)); }
  /// The length of a list, whose items follow.
  size_t count() { return static_cast<size_t>(next(0, static_cast<int64_t>(words_.size()))); }
  bool is_done() const { return at_ == words_.size(); }

 private:
  const Words& words_;
  size_t at_ = 0;
};

namespace {

Form form_of(const Tensor& t) {
  const int64_t dim = t.dim(), *sizes = t.sizes(), *strides = t.strides();
  Form form{{sizes, sizes + dim}, {strides, strides + dim}, 0, 0, 0};
  abi::check(aoti_torch_get_dtype(t.get(), &form.dtype), "get a tensor's dtype");
  abi::check(aoti_torch_get_device_type(t.get(), &form.device_type), "get a tensor's device");
  abi::check(aoti_torch_get_device_index(t.get(), &form.device_index), "get a tensor's device");
  return form;
}

Tensor allocate(const Form& form) {
  AtenTensorHandle handle = nullptr;
  abi::check(aoti_torch_empty_strided(static_cast<int64_t>(form.sizes.size()), form.sizes.data(), form.strides.data(),
                                      form.dtype, form.device_type, form.device_index, &handle),
             "allocate a tensor");
  return Tensor(handle);
}

Tensor part_of(const Tensor& allocation, const Form& form, int64_t offset) {
  AtenTensorHandle handle = nullptr;
  abi::check(aoti_torch__reinterpret_tensor(allocation.get(), static_cast<int64_t>(form.sizes.size()),
                                            form.sizes.data(), form.strides.data(), offset, &handle),
             "make a tensor of a part of another");
  return Tensor(handle);
}

uint64_t address_of(const Tensor& t) { return reinterpret_cast<uint64_t>(t.data<char>()); }

/// Throws where the driver can tell a kernel's parameters, and they have other sizes.
void check_parameters(Function function, const std::string& name, const std::vector<size_t>& sizes) {
  const auto parameter = driver().parameter;
  if (!parameter) return;
  for (size_t i = 0; i <= sizes.size(); i++) {
    size_t offset = 0, size = 0;
    const Result error = parameter(function, i, &offset, &size);
    if (i < sizes.size() ? error != 0 || size != sizes[i] : error != kInvalidValue) {
      abi::fail("the parameters of the kernel " + name + " are not those that Triton's launcher passes");
    }
  }
}

/// The parameters of a sequence as one thread passes them, each in 8 bytes, and a pointer to each. Kept by the thread.
class Parameters {
 public:
  void** copy(const std::vector<uint64_t>& from) {
    if (values_.size() < from.size()) {
      values_.resize(from.size());
      pointers_.resize(from.size());
      for (size_t i = 0; i < values_.size(); i++) pointers_[i] = &values_[i];
    }
    std::copy(from.begin(), from.end(), values_.begin());
    return pointers_.data();
  }
  void set(size_t place, uint64_t value) { values_[place] = value; }

 private:
  std::vector<uint64_t> values_;
  std::vector<void*> pointers_;
};

}  // namespace

bool Form::operator==(const Form& other) const {
  return sizes == other.sizes && strides == other.strides && dtype == other.dtype && device_type == other.device_type &&
         device_index == other.device_index;
}

Sequence::Sequence(const Tensors& arguments, const Tensors& allocations, const Tensors& results, const Words& words) {
  if (arguments.empty()) abi::fail("a sequence of launches has no arguments");
  Reader reader(words);
  device_ = static_cast<int32_t>(reader.natural());
  const Form first = form_of(arguments[0]);
  scratch_ = {{reader.next(0, INT64_MAX)}, {1}, aoti_torch_dtype_uint8(), first.device_type, first.device_index};
  for (const Tensor& t : allocations) allocations_.push_back(form_of(t));
  for (const Tensor& t : results) {
    const size_t allocation = reader.place(allocations_.size());
    Form form = form_of(t);
    int64_t offset = 0;
    abi::check(aoti_torch_get_storage_offset(t.get(), &offset), "get a tensor's offset");
    const bool is_whole = offset == 0 && form == allocations_[allocation];
    outputs_.push_back({allocation, is_whole, std::move(form), offset});
  }
  for (size_t left = reader.count(); left > 0; left--) {
    read_launch(reader, arguments.size() + allocations_.size() + 1);
  }
  if (!reader.is_done()) abi::fail("a sequence of launches has too many numbers");
}

void Sequence::read_launch(Reader& reader, size_t bases) {
  Launch launch{};
  launch.function = reinterpret_cast<Function>(reader.any());
  for (unsigned& side : launch.grid) side = reader.positive();
  launch.threads = reader.positive();
  launch.shared_bytes = reader.natural();
  launch.overlaps = reader.next(0, 1) != 0;
  for (size_t left = reader.count(); left > 0; left--) launch.name += static_cast<char>(reader.next(0, UCHAR_MAX));
  launch.first_parameter = parameters_.size();
  std::vector<size_t> sizes(reader.count());
  for (size_t& size : sizes) {
    size = static_cast<size_t>(reader.next(1, sizeof(uint64_t)));
    const int64_t base = reader.next(-1, static_cast<int64_t>(bases) - 1), value = reader.any();
    if (base >= 0) patches_.push_back({parameters_.size(), static_cast<size_t>(base), value});
    parameters_.push_back(base >= 0 ? 0 : static_cast<uint64_t>(value));
  }
  check_parameters(launch.function, launch.name, sizes);
  launches_.push_back(std::move(launch));
}

Tensors Sequence::replay(std::vector<uint64_t>& addresses) const {
  const CurrentDevice current(device_);
  Tensors made, results;
  made.reserve(allocations_.size());
  for (const Form& form : allocations_) {
    made.push_back(allocate(form));
    addresses.push_back(address_of(made.back()));
  }
  Tensor scratch;  // the stream is done with it before others get it, as in a full run
  if (scratch_.sizes[0] > 0) scratch = allocate(scratch_);
  addresses.push_back(scratch ? address_of(scratch) : 0);  // tensors without elements lie nowhere
  void* stream = nullptr;
  abi::check(driver().current_stream(device_, &stream), "get the current stream");

  static thread_local Parameters parameters;
  void** pointers = parameters.copy(parameters_);
  for (const Patch& p : patches_) parameters.set(p.parameter, addresses[p.base] + static_cast<uint64_t>(p.distance));
  for (const Launch& launch : launches_) {
    start(launch, pointers + launch.first_parameter, static_cast<Stream>(stream));
  }

  results.reserve(outputs_.size());
  for (const Output& out : outputs_) {
    Tensor& allocation = made[out.allocation];
    results.push_back(out.is_whole ? allocation.share() : part_of(allocation, out.form, out.offset));
  }
  return results;
}

void Sequence::start(const Launch& launch, void** parameters, Stream stream) const {
  Config config{
      launch.grid[0], launch.grid[1], launch.grid[2], launch.threads, 1, 1, launch.shared_bytes, stream, nullptr, 0};
  Attribute overlap{};
  if (launch.overlaps) {
    overlap.id = Attribute::kProgrammaticStreamSerialization;
    overlap.value.number = 1;
    config.attributes = &overlap;
    config.attribute_count = 1;
  }
  const Result error = driver().launch(&config, launch.function, parameters, nullptr);
  if (error != 0) abi::fail("the kernel " + launch.name + " was not started: " + describe(error));
}

}  // namespace ghost::launch

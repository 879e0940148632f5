// A device of type `cuda` made of this machine's memory: every operation on its tensors runs as the CPU's.
//
// Tensors of two devices in one operation are an error, as they are on a GPU; what makes the host wait for a GPU is
// counted. So a test can run code meant for a GPU where there is none, and sees wrong devices and needless waiting, not
// speed and not a GPU's arithmetic.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

namespace {

using at::Tensor;

const c10::Device kGpu(c10::DeviceType::CUDA, 0);
std::atomic<int64_t> waits{0}, bytes_now{0}, bytes_peak{0};

struct Counted {  // memory of the GPU, from birth to death
  explicit Counted(int64_t bytes) : bytes(bytes) {
    const auto now = bytes_now += bytes;
    auto peak = bytes_peak.load();
    while (now > peak && !bytes_peak.compare_exchange_weak(peak, now)) {
    }
  }
  ~Counted() { bytes_now -= bytes; }
  const int64_t bytes;
};

// ---- what torch's own code asks of a backend

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return kGpu; }
  c10::Device getDevice() const override { return kGpu; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, kGpu); }
  c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kGpu); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};

struct Block {
  explicit Block(size_t bytes) : data(bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr), size(bytes) {}
  ~Block() { std::free(data); }
  void* const data;
  Counted size;
};

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block(bytes);
    return {block->data, block, [](void* pointer) { delete static_cast<Block*>(pointer); }, kGpu};
  }
  void copy_data(void* to, const void* from, std::size_t count) const override { std::memcpy(to, from, count); }
};

Memory memory;

struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  void init() const override {}
  c10::DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::DeviceType::CPU); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// ---- tensors of the one device seen as the other's, on the same memory

bool is_gpu(const Tensor& tensor) { return tensor.defined() && tensor.device().is_cuda(); }

Tensor on(c10::DataPtr data, const Tensor& like, c10::DispatchKey key, c10::Allocator* allocator) {
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), like.storage().nbytes(), std::move(data), allocator, /*resizable=*/true);
  auto result = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key), like.dtype());
  result.unsafeGetTensorImpl()->set_storage_offset(like.storage_offset());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides());
  return result;
}

Tensor as_cpu(const Tensor& tensor) {  // lives no longer than the tensor
  c10::DataPtr data(tensor.storage().mutable_data(), c10::Device(c10::kCPU));
  return on(std::move(data), tensor, c10::DispatchKey::CPU, c10::GetAllocator(c10::kCPU));
}

struct Result {
  explicit Result(const Tensor& tensor) : tensor(tensor), size(tensor.storage().nbytes()) {}
  const Tensor tensor;
  Counted size;
};

Tensor as_gpu(const Tensor& tensor) {  // keeps the tensor
  void (*drop)(void*) = [](void* pointer) { delete static_cast<Result*>(pointer); };
  c10::DataPtr data(tensor.storage().mutable_data(), new Result(tensor), drop, kGpu);
  return on(std::move(data), tensor, c10::DispatchKey::CUDA, &memory);
}

// ---- every operation that has no entry of its own

const std::set<std::string> MIXED = {  // operations of a GPU that take tensors of the CPU too
    "aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"};
const std::set<std::string> WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave.Tensor"};

struct Arguments {
  std::string name;
  std::vector<Tensor> from, to;  // of the GPU, and their counterparts

  Tensor operator()(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!is_gpu(tensor)) {
      TORCH_CHECK(
          tensor.dim() == 0 || MIXED.count(name), name, ": expected all tensors on cuda:0, found one of shape ",
          tensor.sizes(), " on ", tensor.device());
      return tensor;
    }
    if (MIXED.count(name) && tensor.scalar_type() == c10::kBool && !from.empty()) waits++;  // a mask is counted first
    from.push_back(tensor);
    to.push_back(as_cpu(tensor));
    return to.back();
  }

  void take_over_resized() const {  // an empty `out=` got its size
    for (size_t place = 0; place < to.size(); ++place) {
      if (to[place].sizes() == from[place].sizes()) continue;
      from[place].resize_(to[place].sizes());
      as_cpu(from[place]).copy_(to[place]);
    }
  }

  Tensor back(const Tensor& tensor) const {
    if (!tensor.defined()) return tensor;
    for (size_t place = 0; place < to.size(); ++place) {
      if (tensor.unsafeGetTensorImpl() == to[place].unsafeGetTensorImpl()) return from[place];
    }
    for (size_t place = 0; place < to.size(); ++place) {
      if (tensor.storage().data() == to[place].storage().data() && tensor.storage().nbytes()) {  // a view
        return at::native::as_strided_tensorimpl(
            from[place], tensor.sizes(), tensor.strides(), tensor.storage_offset());
      }
    }
    return as_gpu(tensor);
  }
};

void on_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  Arguments seen{c10::toString(operation.operator_name())};
  if (WAITING.count(seen.name)) waits++;
  const auto count = operation.schema().arguments().size();
  for (auto& value : torch::jit::last(*stack, count)) {
    auto& entry = const_cast<c10::IValue&>(value);
    if (entry.isTensor()) {
      entry = seen(entry.toTensor());
    } else if (entry.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : entry.toTensorVector()) list.push_back(seen(tensor));
      entry = list;
    } else if (entry.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& tensor : entry.toOptionalTensorList()) {
        list.push_back(tensor ? std::optional<Tensor>(seen(*tensor)) : std::nullopt);
      }
      entry = list;
    } else if (entry.isDevice() && entry.toDevice().is_cuda()) {
      entry = c10::Device(c10::kCPU);
    }
  }
  operation.callBoxed(stack);
  seen.take_over_resized();
  for (auto& value : torch::jit::last(*stack, operation.schema().returns().size())) {
    auto& entry = const_cast<c10::IValue&>(value);
    if (entry.isTensor()) {
      entry = seen.back(entry.toTensor());
    } else if (entry.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : entry.toTensorVector()) list.push_back(seen.back(tensor));
      entry = list;
    }
  }
}

// ---- what makes memory, and what only looks at it in another way

Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  auto type = at::dtype_or_default(dtype);
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA), type, format);
}

Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>) {
  auto type = at::dtype_or_default(dtype);
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA), type);
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  if (is_gpu(source) && !is_gpu(self)) waits++;
  Tensor to = is_gpu(self) ? as_cpu(self) : self;
  to.copy_(is_gpu(source) ? as_cpu(source) : source);
  return self;
}

const Tensor& resize_(const Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  auto* tensor = self.unsafeGetTensorImpl();
  const auto bytes = (c10::multiply_integers(size) + self.storage_offset()) * self.itemsize();
  if (bytes > static_cast<int64_t>(self.storage().nbytes())) {
    auto data = memory.allocate(bytes);
    if (self.storage().nbytes()) std::memcpy(data.get(), self.storage().data(), self.storage().nbytes());
    self.storage().set_data_ptr_noswap(std::move(data));
    self.storage().set_nbytes(bytes);
  }
  tensor->set_sizes_contiguous(size);
  return self;
}

Tensor& set_storage(
    Tensor& self, c10::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, std::move(source), offset, size, stride);
}

Tensor& set_whole_storage(Tensor& self, c10::Storage source) {
  const int64_t count = source.nbytes() / self.itemsize();
  return at::native::set_storage_cpu_(self, std::move(source), 0, {count}, {});
}

Tensor& mm_out(const Tensor& left, const Tensor& right, at::ScalarType dtype, Tensor& out) {  // a GPU's alone
  TORCH_CHECK(is_gpu(left) && is_gpu(right) && is_gpu(out), "aten::mm.dtype_out: expected all tensors on cuda:0");
  auto result = as_cpu(out);
  at::mm_out(result, as_cpu(left).to(dtype), as_cpu(right).to(dtype));
  return out;
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("resize_", &resize_);
  m.impl("mm.dtype_out", &mm_out);
  m.impl("view", &at::native::view);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
}

struct Setup {
  Setup() { c10::SetAllocator(c10::DeviceType::CUDA, &memory, 255); }
} setup;

}  // namespace

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks)
}

extern "C" {
int64_t host_waits() { return waits.load(); }
int64_t memory_allocated() { return bytes_now.load(); }
int64_t max_memory_allocated() { return bytes_peak.load(); }
void reset_peak_memory_stats() { bytes_peak = bytes_now.load(); }
}

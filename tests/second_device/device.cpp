// A second torch device in host memory: the CPU's kernels compute on it, and it refuses what a GPU refuses.
//
// torch dispatches its tensors by the key PrivateUse1. They are allocated like the CPU's; an operator sees them as tensors of the CPU
// that share their memory, and its results become tensors of the device that share the memory of the CPU's. So results equal the
// CPU's bit for bit wherever torch takes the same kernel.

#include <ATen/core/enum_tag.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/copy_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>
#include <string_view>

namespace {

using at::Tensor;
using c10::Storage;

const c10::Device kDevice(c10::DeviceType::PrivateUse1, 0);
constexpr c10::DispatchKeySet kOnDevice(c10::DispatchKey::PrivateUse1);
constexpr c10::DispatchKeySet kOnHost(c10::DispatchKey::CPU);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr memory = c10::GetCPUAllocator()->allocate(bytes);
    memory.unsafe_set_device(kDevice);
    return memory;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Memory memory;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::PrivateUse1> {
  c10::Device exchangeDevice(c10::Device) const override {
    return kDevice;
  }
  c10::Device getDevice() const override {
    return kDevice;
  }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, kDevice);
  }
  c10::Stream exchangeStream(c10::Stream) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, kDevice);
  }
};

// Asked by the backward pass, and by copies that do not wait.
struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override {
    return true;
  }
  c10::DeviceIndex deviceCount() const override {
    return 1;
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return 0;
  }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    return c10::GetCPUAllocator();
  }
};
Hooks hooks;
const bool are_registered = (at::RegisterPrivateUse1HooksInterface(&hooks), true);

bool is_ours(const Tensor& tensor) {
  return tensor.defined() && tensor.device() == kDevice;
}

// The same memory, kept alive by the result.
c10::DataPtr shared(const Storage& owner, c10::Device device) {
  auto release = [](void* owner) { delete static_cast<Storage*>(owner); };
  return {const_cast<void*>(owner.data()), new Storage(owner), release, device};
}

Storage shared_on(const Storage& owner, c10::Device device) {
  c10::Allocator* allocator = device == kDevice ? &memory : c10::GetCPUAllocator();
  return c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), owner.nbytes(), shared(owner, device), allocator, /*resizable=*/true);
}

Tensor shaped(Tensor tensor, const Tensor& like) {
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

Tensor tensor_in(Storage storage, c10::DispatchKeySet keys, const Tensor& like) {
  return shaped(at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype()), like);
}

Tensor view_of(const Tensor& base, const Tensor& like) {
  return shaped(
      at::detail::make_tensor<c10::TensorImpl>(
          c10::TensorImpl::VIEW, Storage(base.storage()), base.key_set(), like.dtype()),
      like);
}

// The tensors of the device that one call takes, and the tensors of the CPU that its kernel sees in their place.
class Call {
 public:
  Tensor to_host(const Tensor& tensor) {
    if (!is_ours(tensor)) {
      return tensor;
    }
    for (const auto& [ours, theirs] : tensors_) {
      if (ours.is_same(tensor)) {
        return theirs;
      }
    }
    Tensor theirs = tensor_in(host_storage(tensor.storage()), kOnHost, tensor);
    tensors_.emplace_back(tensor, theirs);
    return theirs;
  }

  Tensor to_device(const Tensor& tensor) const {
    if (!tensor.defined()) {
      return tensor;
    }
    for (const auto& [ours, theirs] : tensors_) {
      if (theirs.is_same(tensor)) {
        return ours;
      }
    }
    for (const auto& [ours, theirs] : tensors_) {
      if (theirs.is_alias_of(tensor)) {
        return view_of(ours, tensor);
      }
    }
    return tensor_in(shared_on(tensor.storage(), kDevice), kOnDevice, tensor);
  }

  // What the kernel has resized.
  void finish() const {
    for (const auto& [ours, theirs] : storages_) {
      if (ours.data() != theirs.data()) {
        ours.set_data_ptr_noswap(shared(theirs, kDevice));
        ours.set_nbytes(theirs.nbytes());
      }
    }
    for (const auto& [ours, theirs] : tensors_) {
      if (ours.sizes() != theirs.sizes() || ours.strides() != theirs.strides()) {
        ours.unsafeGetTensorImpl()->set_sizes_and_strides(theirs.sizes(), theirs.strides(), theirs.storage_offset());
      }
    }
  }

 private:
  Storage host_storage(const Storage& storage) {
    for (const auto& [ours, theirs] : storages_) {
      if (ours.is_alias_of(storage)) {
        return theirs;
      }
    }
    return storages_.emplace_back(storage, shared_on(storage, c10::kCPU)).second;
  }

  std::vector<std::pair<Tensor, Tensor>> tensors_;
  std::vector<std::pair<Storage, Storage>> storages_;
};

bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// CUDA's rules for tensors of the CPU and its generators beside its own tensors.
void refuse_mixtures(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> values) {
  const auto& schema = op.schema();
  const std::string_view name = schema.name();
  const bool takes_numbers = op.hasTag(at::Tag::pointwise) ||
      is_one_of(name, {"aten::index_put_", "aten::_index_put_impl_", "aten::index_fill_", "aten::masked_fill_"});
  auto check = [&](const Tensor& tensor, const c10::Argument& argument) {
    if (!tensor.defined() || is_ours(tensor) || tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
      return;
    }
    const bool is_written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    TORCH_CHECK(
        tensor.dim() == 0 && takes_numbers && !is_written,
        "Expected all tensors to be on the same device: ", name, " got ", argument.name(), " on ", tensor.device(),
        " beside tensors on ", kDevice);
  };
  for (size_t n = 0; n < values.size(); ++n) {
    const c10::IValue& value = values[n];
    const c10::Argument& argument = schema.arguments()[n];
    if (value.isTensor()) {
      check(value.toTensor(), argument);
    } else if (value.isTensorList()) {
      for (const Tensor& tensor : value.toTensorVector()) {
        check(tensor, argument);
      }
    } else if (value.isOptionalTensorList()) {
      // Indices, which CUDA copies.
    } else if (value.isGenerator()) {
      TORCH_CHECK(false, "Expected a generator on ", kDevice, ": ", name, " got one on ", value.toGenerator().device());
    } else {
      TORCH_CHECK(!value.isDevice(), name, " takes a device, which is not supported on ", kDevice);
    }
  }
}

// For what a GPU's work and copies would have made the host wait, and which host memory copies may still read.
class Queue {
 public:
  // A copy that does not wait reads host memory at some time before the next wait.
  void read_later(const Tensor& source) {
    const std::lock_guard<std::mutex> lock(mutex_);
    reads_.emplace_back(source, source.clone());
  }

  void wait(std::string_view reason) {
    const std::lock_guard<std::mutex> lock(mutex_);
    waits_.emplace_back(reason);
    for (const auto& [source, copied] : std::exchange(reads_, {})) {
      TORCH_CHECK(
          std::memcmp(source.contiguous().const_data_ptr(), copied.const_data_ptr(), copied.nbytes()) == 0,
          "Host memory was changed while a copy to ", kDevice, " that does not wait might still read it");
    }
  }

  std::vector<std::string> take_waits() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(waits_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<Tensor, Tensor>> reads_;
  std::vector<std::string> waits_;
};
Queue queue;

bool is_mask(const Tensor& index) {
  return index.scalar_type() == at::kBool || index.scalar_type() == at::kByte;
}

// The host waits for sizes and numbers that it needs, and for numbers and indices of its own that CUDA's kernels copy first.
void wait_as_cuda(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> values) {
  const std::string_view name = op.schema().name();
  bool waits = is_one_of(
      name,
      {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::bincount", "aten::_unique",
       "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::multinomial"});
  waits |= name == "aten::repeat_interleave" && values.back().isNone();  // without output_size
  const bool copies_numbers = is_one_of(name, {"aten::where", "aten::index_put_", "aten::_index_put_impl_"});
  for (const c10::IValue& value : values) {
    if (value.isTensor()) {
      waits |= copies_numbers && value.toTensor().defined() && !is_ours(value.toTensor());
    } else if (value.isOptionalTensorList()) {
      for (const std::optional<Tensor>& index : value.toOptionalTensorVector()) {
        waits |= index.has_value() && index->defined() && (!is_ours(*index) || is_mask(*index));
      }
    }
  }
  if (waits) {
    queue.wait(name);
  }
}

void compute_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  refuse_mixtures(op, torch::jit::last(*stack, op.schema().arguments().size()));
  wait_as_cuda(op, torch::jit::last(*stack, op.schema().arguments().size()));
  Call call;
  auto replace = [](c10::IValue& value, const auto& replaced) {
    if (value.isTensor()) {
      value = replaced(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> tensors;
      for (const Tensor& tensor : value.toTensorVector()) {
        tensors.push_back(replaced(tensor));
      }
      value = std::move(tensors);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> tensors;
      for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector()) {
        tensors.push_back(tensor.has_value() ? std::optional<Tensor>(replaced(*tensor)) : std::nullopt);
      }
      value = std::move(tensors);
    }
  };
  for (size_t n = stack->size() - op.schema().arguments().size(); n < stack->size(); ++n) {
    replace((*stack)[n], [&](const Tensor& tensor) { return call.to_host(tensor); });
  }
  op.redispatchBoxed(kOnHost, stack);
  call.finish();
  for (size_t n = stack->size() - op.schema().returns().size(); n < stack->size(); ++n) {
    replace((*stack)[n], [&](const Tensor& tensor) { return call.to_device(tensor); });
  }
}

Tensor empty(
    c10::IntArrayRef size,
    std::optional<c10::ScalarType> dtype,
    std::optional<c10::Layout>,
    std::optional<c10::Device>,
    std::optional<bool>,
    std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, kOnDevice, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    c10::IntArrayRef size,
    c10::IntArrayRef stride,
    std::optional<c10::ScalarType> dtype,
    std::optional<c10::Layout>,
    std::optional<c10::Device>,
    std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, kOnDevice, c10::dtype_or_default(dtype));
}

// Also from and to the host. A copy to the host that does not wait would be read before it has arrived: a race on a GPU.
Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  TORCH_CHECK(is_ours(to) || !non_blocking, "A copy from ", kDevice, " to the host must wait: leave non_blocking out");
  if (!is_ours(to)) {
    queue.wait("to the host");
  } else if (!is_ours(from)) {
    non_blocking ? queue.read_later(from) : queue.wait("from the host");
  }
  Call call;
  Tensor target = call.to_host(to);
  at::native::copy_(target, call.to_host(from), non_blocking);
  return to;
}

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory)

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  // torch's own for such a device calls an operator that the CPU does not have.
  library.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&compute_on_host>());
}

// Why the host has waited since the last call.
TORCH_LIBRARY(second_device, library) {
  library.def("take_waits", [] { return queue.take_waits(); });
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&compute_on_host>());
}

}  // namespace

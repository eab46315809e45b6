"""One file of an export in the engine that runs it: tensors by name in, tensors in order out.

Nothing is parsed that is not the file ``model.json`` names.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fastdef._validate import check_installed
from fastdef.export.manifest import MANIFEST, verified
from fastdef.export.tensorrt_engines import tensorrt

_ONNX = {
    "tensor(float)": torch.float32,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(bool)": torch.bool,
}


class InferenceSession(Protocol):
    """What runs a file.

    Attributes:
        inputs: names, in the file's order.
        description: what the exporter wrote about the model, as JSON; None in a file of another's making.
        exact: whether float32 is computed in float32 throughout, which GPUs do not where TF32 will do.
        largest_batch: that it takes; None where any will do.
    """

    inputs: list[str]
    description: str | None
    exact: bool
    largest_batch: int | None

    def run(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs, in the file's order, on the device of the inputs."""
        ...


class OnnxSession:
    """An ONNX file in ONNX Runtime; on CUDA inputs and outputs stay there (I/O binding).

    Args:
        path: the file.
        providers: of ONNX Runtime, the first that can run a part runs it.

    Raises:
        ValueError: if it is no ONNX file or not the one ``model.json`` names, or a provider is not to be had here; and
            from a run that fails.
    """

    def __init__(self, path: Path, providers: Sequence[str]) -> None:
        check_installed("onnxruntime", extra="export", where="an export")
        import onnxruntime

        content = verified(path)
        there = onnxruntime.get_available_providers()
        missing = [provider for provider in providers if provider not in there]
        if missing:
            raise ValueError(f"load_engine needs providers among {', '.join(there)}, got {', '.join(missing)}")
        if any(provider != "CPUExecutionProvider" for provider in providers):
            with suppress(Exception):  # a convenience of newer versions: torch's CUDA libraries serve both
                onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of initialisers that a Loop's body does not use
        options.intra_op_num_threads = torch.get_num_threads()
        self._path = path
        with self._refusing():
            self._session = onnxruntime.InferenceSession(content, options, providers=list(providers))
        self.inputs = [given.name for given in self._session.get_inputs()]
        self.exact = all(provider == "CPUExecutionProvider" for provider in providers)
        self.largest_batch: int | None = None
        self.description = self._session.get_modelmeta().custom_metadata_map.get("fastdef")

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # onnxruntime's own exceptions have no common base below this
            raise ValueError(f"ONNX Runtime refuses {self._path}: {' '.join(str(error).split())[:300]}") from error

    def run(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """See :class:`InferenceSession`."""
        if next(iter(given.values())).is_cuda:
            return self._run_bound(given)
        with self._refusing():
            outputs = self._session.run(None, {name: value.numpy() for name, value in given.items()})
        return tuple(torch.from_numpy(output) for output in outputs)

    def _run_bound(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        device = next(value.device for value in given.values() if value.is_cuda)
        batch = next(len(value) for value in given.values() if value.ndim)
        kept = {name: value.to(device).contiguous() for name, value in given.items()}  # a binding holds addresses alone
        made = {
            output.name: torch.empty(
                [d if isinstance(d, int) else batch for d in output.shape], dtype=_ONNX[output.type], device=device
            )
            for output in self._session.get_outputs()
        }
        binding = self._session.io_binding()
        for bind, tensors in ((binding.bind_input, kept), (binding.bind_output, made)):
            for name, value in tensors.items():
                element = torch.empty(0, dtype=value.dtype).numpy().dtype
                bind(name, "cuda", device.index or 0, element, tuple(value.shape), value.data_ptr())
        torch.cuda.current_stream(device).synchronize()  # ONNX Runtime works on a stream of its own
        with self._refusing():
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        return tuple(made.values())


class TensorRTSession:
    """An engine file in TensorRT, or TensorRT for RTX; on CUDA.

    Args:
        path: that ``export_engines`` wrote, with this version of TensorRT, for this GPU.

    Raises:
        ValueError: if the file is not the one ``model.json`` names, there is no CUDA device, or TensorRT does not take
            the file.
    """

    def __init__(self, path: Path) -> None:
        content = verified(path)
        if not torch.cuda.is_available():
            raise ValueError(f"TensorRT needs a CUDA device to run {path}, and there is none")
        self._trt = tensorrt()
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise ValueError(
                f"{self._trt.__name__} {self._trt.__version__} cannot load {path}: built for another version or GPU?"
            )
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == self._trt.TensorIOMode.INPUT]
        self.exact = False
        self.largest_batch: int | None = self._engine.get_tensor_profile_shape(self.inputs[0], 0)[2][0]
        self._outputs = [name for name in names if modes[name] == self._trt.TensorIOMode.OUTPUT]
        manifest = path.parent / MANIFEST
        self.description = manifest.read_text() if manifest.is_file() else None

    def run(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """See :class:`InferenceSession`; on torch's current stream."""
        kept = {name: value.cuda().contiguous() for name, value in given.items()}
        for name, value in kept.items():
            if not self._context.set_input_shape(name, tuple(value.shape)):
                raise ValueError(
                    f"the engine takes no {name} of shape {tuple(value.shape)}: see the batches it was built for"
                )
            self._context.set_tensor_address(name, value.data_ptr())
        outputs = []
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            outputs.append(
                torch.empty(shape, dtype=_torch(self._trt, self._engine.get_tensor_dtype(name)), device="cuda")
            )
            self._context.set_tensor_address(name, outputs[-1].data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise ValueError("TensorRT could not run the engine")
        for value in kept.values():
            value.record_stream(torch.cuda.current_stream())
        return tuple(outputs)


def _torch(trt: Any, dtype: Any) -> torch.dtype:
    known = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32}
    known |= {"INT64": torch.int64, "BOOL": torch.bool}
    return next(value for name, value in known.items() if dtype == getattr(trt.DataType, name))

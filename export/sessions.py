"""One file of an export in the engine that runs it: tensors by name in, tensors in order out.

Nothing is parsed that is not the file ``model.json`` names.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastdef._validate import check_installed
from fastdef.export.manifest import MANIFEST, verified
from fastdef.export.tensorrt_engines import tensorrt

Provider = str | tuple[str, Mapping[str, Any]]

_CPU = "CPUExecutionProvider"
_ON_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
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
        device: where it takes and gives tensors without a copy.
        replayable: whether a run may be captured in a CUDA graph: it only queues work, on torch's current stream.
    """

    inputs: list[str]
    description: str | None
    exact: bool
    largest_batch: int | None
    device: str
    replayable: bool

    def run(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs, in the file's order, on the device of the inputs."""
        ...


class OnnxSession:
    """An ONNX file in ONNX Runtime; on CUDA inputs and outputs stay there (I/O binding).

    Args:
        path: the file.
        providers: of ONNX Runtime, names or pairs of a name and options; the first that can run a part runs it.
        spinning: whether idle threads wait busily. That costs the cores that others could use, twice the CPU time in
            all, and gains where a session alone is on the machine.
        graphed: a CUDA graph for each batch size, which keeps buffers of its own; not run on a GPU yet.

    Raises:
        ValueError: if it is no ONNX file or not the one ``model.json`` names, or a provider is not to be had here, or
            ONNX Runtime took others in its place; and from a run that fails.
    """

    def __init__(
        self, path: Path, providers: Sequence[Provider], *, spinning: bool = True, graphed: bool = False
    ) -> None:
        check_installed("onnxruntime", extra="export", where="an export")
        import onnxruntime

        content = verified(path)
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
        if graphed:
            providers = _with_graphs(providers)
        there = onnxruntime.get_available_providers()
        missing = [name for name in names if name not in there]
        if missing:
            raise ValueError(f"load_engine needs providers among {', '.join(there)}, got {', '.join(missing)}")
        if any(name != _CPU for name in names):
            with suppress(Exception):  # a convenience of newer versions: torch's CUDA libraries serve both
                onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of initialisers that a Loop's body does not use
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        self._path = path
        with self._refusing():
            self._session = onnxruntime.InferenceSession(content, options, providers=list(providers))
        check_providers(names, self._session.get_providers())
        self._session.disable_fallback()  # nor later
        self.inputs = [given.name for given in self._session.get_inputs()]
        self.exact = all(name == _CPU for name in names)
        self.largest_batch: int | None = None
        self.replayable = False  # it waits for its own stream
        self._graphed = graphed
        self._running = threading.Lock()  # of the buffers that graphs keep
        self._bindings: dict[tuple[torch.Size, ...], _Binding] = {}
        self.device = "cuda" if names[0] in _ON_CUDA and torch.cuda.is_available() else "cpu"
        self.description = self._session.get_modelmeta().custom_metadata_map.get("fastdef")

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # onnxruntime's own exceptions have no common base below this
            raise ValueError(f"ONNX Runtime refuses {self._path}: {' '.join(str(error).split())[:300]}") from error

    def run(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """See :class:`InferenceSession`."""
        if self._graphed:
            with self._running:
                return self._run_bound(given, torch.device("cuda"))
        first = next(iter(given.values()))
        if first.is_cuda:
            return self._run_bound(given, first.device)
        with self._refusing():
            outputs = self._session.run(None, {name: value.numpy() for name, value in given.items()})
        return tuple(torch.from_numpy(output) for output in outputs)

    def _run_bound(self, given: dict[str, Tensor], device: torch.device) -> tuple[Tensor, ...]:
        shapes = tuple(value.shape for value in given.values())
        binding = self._bindings.get(shapes)
        if binding is None:
            binding = self._bind(given, device)
            if self._graphed:
                self._bindings[shapes] = binding
        else:
            for name, value in given.items():
                binding.inputs[name].copy_(value)
        torch.cuda.current_stream(device).synchronize()  # ONNX Runtime works on a stream of its own
        with self._refusing():
            self._session.run_with_iobinding(binding.bound, self._run_options(shapes))
            binding.bound.synchronize_outputs()
        return tuple(value.clone() if self._graphed else value for value in binding.outputs)

    def _bind(self, given: dict[str, Tensor], device: torch.device) -> "_Binding":
        batch = next(len(value) for value in given.values() if value.ndim)
        inputs = {name: value.to(device, copy=self._graphed).contiguous() for name, value in given.items()}
        outputs = {
            output.name: torch.empty(
                [d if isinstance(d, int) else batch for d in output.shape], dtype=_ONNX[output.type], device=device
            )
            for output in self._session.get_outputs()
        }
        bound = self._session.io_binding()
        for bind, tensors in ((bound.bind_input, inputs), (bound.bind_output, outputs)):
            for name, value in tensors.items():
                element = torch.empty(0, dtype=value.dtype).numpy().dtype
                bind(name, "cuda", device.index or 0, element, tuple(value.shape), value.data_ptr())
        return _Binding(bound, inputs, list(outputs.values()))

    def _run_options(self, shapes: tuple[torch.Size, ...]) -> Any:
        """Which of its graphs ONNX Runtime captures or replays."""
        if not self._graphed:
            return None
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(1 + list(self._bindings).index(shapes)))
        return options


class _Binding(NamedTuple):
    """What a run reads and writes; a binding of ONNX Runtime holds addresses alone."""

    bound: Any
    inputs: dict[str, Tensor]
    outputs: list[Tensor]


def check_providers(asked: Sequence[str], got: Sequence[str]) -> None:
    """Refuse a session that runs elsewhere than asked: ONNX Runtime goes to the CPU where a library is missing.

    Raises:
        ValueError: naming what was asked and what there is.
    """
    lost = [name for name in asked if name not in got]
    if lost:
        raise ValueError(
            f"ONNX Runtime cannot run {', '.join(lost)} here and took {', '.join(got)}: install the libraries it needs "
            "(for CUDA: onnxruntime-gpu with CUDA and cuDNN of its version), or ask for what it took"
        )


def _with_graphs(providers: Sequence[Provider]) -> list[Provider]:
    """The same, the first with CUDA graphs.

    Raises:
        ValueError: if that is not CUDA's.
    """
    first, *others = providers
    name, options = (first, {}) if isinstance(first, str) else first
    if name != "CUDAExecutionProvider":
        raise ValueError(f"cuda_graphs need TensorRT or the CUDAExecutionProvider, got {name}")
    return [(name, {**options, "enable_cuda_graph": "1"}), *others]


class TensorRTSession:
    """An engine file in TensorRT, or TensorRT for RTX; on CUDA.

    Args:
        path: that ``export_engines`` wrote, with this version of TensorRT, for this GPU.
        graphed: its runs are to be captured in CUDA graphs, each with a context of its own; not run on a GPU yet.

    Raises:
        ValueError: if the file is not the one ``model.json`` names, there is no CUDA device, or
            TensorRT does not take the file.
    """

    def __init__(self, path: Path, *, graphed: bool = False) -> None:
        self.replayable = graphed
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
        self._contexts: dict[tuple[torch.Size, ...], Any] = {}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == self._trt.TensorIOMode.INPUT]
        self.exact = False
        self.device = "cuda"
        self.largest_batch: int | None = self._engine.get_tensor_profile_shape(self.inputs[0], 0)[2][0]
        self._outputs = [name for name in names if modes[name] == self._trt.TensorIOMode.OUTPUT]
        manifest = path.parent / MANIFEST
        self.description = manifest.read_text() if manifest.is_file() else None

    def run(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """See :class:`InferenceSession`; on torch's current stream."""
        kept = {name: value.cuda().contiguous() for name, value in given.items()}
        context = self._context_of(tuple(value.shape for value in kept.values()))
        for name, value in kept.items():
            if not context.set_input_shape(name, tuple(value.shape)):
                raise ValueError(
                    f"the engine takes no {name} of shape {tuple(value.shape)}: see the batches it was built for"
                )
            context.set_tensor_address(name, value.data_ptr())
        outputs = []
        for name in self._outputs:
            shape = tuple(context.get_tensor_shape(name))
            outputs.append(
                torch.empty(shape, dtype=_torch(self._trt, self._engine.get_tensor_dtype(name)), device="cuda")
            )
            context.set_tensor_address(name, outputs[-1].data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise ValueError("TensorRT could not run the engine")
        for value in kept.values():
            value.record_stream(torch.cuda.current_stream())
        return tuple(outputs)

    def _context_of(self, shapes: tuple[torch.Size, ...]) -> Any:
        """One for all shapes; where runs are captured, one for each."""
        if not self.replayable:
            return self._context
        if shapes not in self._contexts:
            self._contexts[shapes] = self._engine.create_execution_context()
        return self._contexts[shapes]


def _torch(trt: Any, dtype: Any) -> torch.dtype:
    known = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32}
    known |= {"INT64": torch.int64, "BOOL": torch.bool}
    return next(value for name, value in known.items() if dtype == getattr(trt.DataType, name))

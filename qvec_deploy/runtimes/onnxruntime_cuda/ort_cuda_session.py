"""ONNX Runtime on an NVIDIA GPU: the stored model in float16, its packed Linears as MatMulNBits, nothing on the CPU."""

from __future__ import annotations

import contextlib
import io
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.files import require_file
from qvec_deploy.runtimes.cuda_driver import Cuda
from qvec_deploy.runtimes.onnxruntime_cuda import LARGEST_BLOCK, ONNXRUNTIME_CUDA
from qvec_deploy.runtimes.session import largest_batch, require_images
from qvec_deploy.tensors import Float32

if TYPE_CHECKING:
    import onnx

    from qvec_deploy.packed import PackedFile
    from qvec_deploy.runtimes.session import Session

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
BATCH = "batch"  # name of the exported graph's one free dimension
SESSIONS = 2  # batch sizes kept loaded: one that is measured, and the last batch of a dataset

Arrays = dict[str, NDArray[Any]]


class OnnxRuntimeCuda:
    """The `onnxruntime-cuda` runtime.

    Args:
        provider: ONNX Runtime's name of the GPU; with the CPU's, the same graphs run there, for tests.
    """

    def __init__(self, provider: str = CUDA) -> None:
        self._provider = provider

    def missing(self, lowering: str | None = None) -> str | None:
        """Why ONNX Runtime cannot use a GPU here; None if it can."""
        try:
            import onnxruntime
        except ImportError as error:
            return f"onnxruntime cannot be imported: {error}"
        if self._provider not in onnxruntime.get_available_providers():
            return f"onnxruntime {onnxruntime.__version__} has no {self._provider}: it is not onnxruntime-gpu"
        if self._provider == CPU:
            return None
        try:
            Cuda()  # asked without torch, which an engine here does not need
        except IncompatibleError as error:
            return error.message
        if _provider_loads():
            return None
        return (
            f"onnxruntime {onnxruntime.__version__} cannot load {CUDA}: "
            f"the libraries of CUDA {onnxruntime.cuda_version} or cuDNN are missing"
        )

    @contextlib.contextmanager
    def open(self, directory: Path, lowering: str, threads: int) -> Iterator[Session]:
        """Load the engine from model.onnx and the packed weights; the threads only launch kernels."""
        reason = self.missing()
        if reason is not None:
            raise IncompatibleError(reason, hint="`qvec-deploy doctor` says what each runtime needs")
        session = CudaSession(*half_model(directory, lowering), lowering, threads, self._provider)
        session.load(1)
        try:
            yield session
        finally:
            session.close()


class CudaSession:
    """A model in float16; every batch size is loaded on its own when it first comes.

    With the batch known, ONNX Runtime computes all shapes while it loads. No node is left for the CPU then, and that
    none is left can be demanded.
    """

    def __init__(self, model: onnx.ModelProto, arrays: Arrays, lowering: str, threads: int, provider: str) -> None:
        import onnxruntime

        dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        self.input_shape = dims[1], dims[2], dims[3]
        self._input, self._output = model.graph.input[0].name, model.graph.output[0].name
        self._model, self._names = model.SerializeToString(), list(arrays)
        self._values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        self._lowering, self._threads, self._provider = lowering, threads, provider
        self._sessions: OrderedDict[int, Any] = OrderedDict()

    def run(self, images: Float32) -> Float32:
        """As `Session.run`; images that the GPU's memory does not take are refused with a batch that it does."""
        require_images(images, self.input_shape)
        try:
            return self._run(np.ascontiguousarray(images))
        except IncompatibleError as error:
            if not _out_of_memory(error.message):
                raise
            refused = error.message
        fits = largest_batch(len(images), self._runs)
        hint = f"batch {fits} fits" if fits else "free GPU memory, or use a smaller batch"
        raise IncompatibleError(refused, hint=hint)

    def _run(self, images: Float32) -> Float32:
        session = self.load(len(images))
        try:
            logits: Float32 = session.run([self._output], {self._input: images})[0]
        except Exception as error:
            self._sessions.pop(len(images))
            raise self._refused(f"fails at batch {len(images)}", error) from error
        return logits

    def _runs(self, batch: int) -> bool:
        """Whether a batch runs with no other loaded."""
        self.close()
        try:
            self._run(np.zeros((batch, *self.input_shape), np.float32))
        except IncompatibleError as error:
            if not _out_of_memory(error.message):
                raise
            return False
        return True

    def load(self, batch: int) -> Any:
        """ONNX Runtime's session for one batch size.

        Raises:
            IncompatibleError: ONNX Runtime refuses the model, or would run some of it on another provider.
        """
        if batch in self._sessions:
            self._sessions.move_to_end(batch)
            return self._sessions[batch]
        import onnxruntime

        while len(self._sessions) >= SESSIONS:
            self._sessions.popitem(last=False)
        options = session_options(self._threads, batch, strict=self._provider != CPU)
        options.add_external_initializers(self._names, self._values)
        try:
            session = onnxruntime.InferenceSession(self._model, options, providers=[self._provider], enable_fallback=0)
        except Exception as error:
            raise self._refused(f"cannot be loaded at batch {batch}", error) from error
        # ONNX Runtime adds the CPU behind every other provider; that it got no node, the options have seen to.
        if session.get_providers()[0] != self._provider:
            raise IncompatibleError(
                f"the engine runs on {session.get_providers()}", hint=f"{self._provider} was asked for"
            )
        self._sessions[batch] = session
        return session

    def close(self) -> None:
        """Let the loaded sessions go."""
        self._sessions.clear()

    def _refused(self, what: str, error: Exception) -> IncompatibleError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next(filter(_out_of_memory, lines), lines[0])
        hint = "free GPU memory" if _out_of_memory(reason) else "`qvec-deploy verify` checks the bundle"
        return IncompatibleError(f"lowering `{self._lowering}` on {self._provider} {what}: {reason}", hint=hint)


def _out_of_memory(said: str) -> bool:
    return any(words in said.lower() for words in ("out of memory", "failed to allocate", "bfcarena"))


def session_options(threads: int, batch: int, *, strict: bool) -> Any:
    """Options of a session for one batch size.

    Args:
        strict: Refuse a model of which any node would run on the CPU.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what it would print, with names of the graph as they are, is raised too
    options.add_free_dimension_override_by_name(BATCH, batch)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if strict:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def half_model(directory: Path, lowering: str) -> tuple[onnx.ModelProto, Arrays]:
    """A bundle's model in float16 between float32 ends, and the arrays of all its external initializers by name."""
    from qvec_deploy.packed import PackedFile
    from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
    from qvec_deploy.runtimes.graph import DOMAIN
    from qvec_deploy.runtimes.graph.stored import load_stored
    from qvec_deploy.runtimes.onnxruntime_cuda.ort_cuda_lowering import lower_in_memory
    from qvec_deploy.runtimes.registry import find_lowering

    row = find_lowering(ONNXRUNTIME_CUDA.name, lowering)
    model = load_stored(directory)
    weights = PackedFile.open(require_file(directory / WEIGHTS_FILE, what="weights"))
    arrays: Arrays = {}
    if row.implementation is not None:
        model, arrays = lower_in_memory(model, weights, row.load())
        _fit_kernels(model.graph, arrays)
    elif any(node.domain == DOMAIN for node in model.graph.node):
        raise IncompatibleError("lowering `float` cannot take packed Linears", hint="use int4")
    return model, _halve(model.graph, weights, arrays)


def _fit_kernels(graph: onnx.GraphProto, arrays: Arrays) -> None:
    """Blocks of at most 128, and the bias in a node of its own: ONNX Runtime's CUDA kernels take no others."""
    from onnx import NodeProto, helper

    nodes = []
    for stored in graph.node:
        node = NodeProto()
        node.CopyFrom(stored)
        nodes.append(node)
        if node.op_type != "MatMulNBits":
            continue
        (block,) = (attribute for attribute in node.attribute if attribute.name == "block_size")
        if block.i > LARGEST_BLOCK:  # the same codes in the same order; several blocks share what was one scale
            parts = block.i // LARGEST_BLOCK
            _, codes, scales, *_ = node.input
            rows, blocks, width = arrays[codes].shape
            arrays[codes] = arrays[codes].reshape(rows, blocks * parts, width // parts)
            arrays[scales] = arrays[scales].repeat(parts, axis=1)
            block.i = LARGEST_BLOCK
        bias, output = node.input[5], node.output[0]
        del node.input[3:]
        node.output[0] = f"{output}_product"
        nodes.append(helper.make_node("Add", [node.output[0], bias], [output], name=f"{output}_bias"))
    graph.ClearField("node")
    graph.node.extend(nodes)


def _halve(graph: onnx.GraphProto, weights: PackedFile, arrays: Arrays) -> Arrays:
    """Make a graph's arithmetic float16, in place, and return all its external initializers, the float ones halved."""
    from onnx import TensorProto, numpy_helper

    from qvec_deploy.runtimes.graph.float16 import cast_at_the_ends, half, halve_node
    from qvec_deploy.runtimes.onnxruntime_cuda.ort_cuda_lowering import external_initializer

    halved: Arrays = {}
    initializers = []
    for tensor in graph.initializer:
        name, external = tensor.name, tensor.data_location == TensorProto.EXTERNAL
        if not external:
            array = numpy_helper.to_array(tensor)
        else:
            array = arrays[name] if name in arrays else weights.array(name)
        if array.dtype == np.float32:
            array = half(name, array)
        if not external:
            initializers.append(numpy_helper.from_array(array, name))
            continue
        halved[name] = array
        initializers.append(external_initializer(name, array))
    nodes = [halve_node(node) for node in graph.node]
    for field, values in (("node", nodes), ("initializer", initializers), ("value_info", [])):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    cast_at_the_ends(graph)
    return halved


def providers() -> list[str]:
    """What the installed ONNX Runtime was built with; none where it cannot be imported."""
    try:
        import onnxruntime
    except ImportError:
        return []
    found: list[str] = onnxruntime.get_available_providers()
    return found


def _provider_loads() -> bool:
    """Whether a session of one node gets the CUDA provider: its libraries are only looked for then."""
    import onnxruntime
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()  # from the nvidia packages that torch brings
    options = session_options(1, 1, strict=True)
    options.log_severity_level = 4
    onnxruntime.set_default_logger_severity(4)  # the answer is wanted, not a page about libraries
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CUDA], enable_fallback=0)
    except Exception:  # noqa: BLE001 - whatever it says, it cannot be used
        return False
    finally:
        onnxruntime.set_default_logger_severity(2)
    return True

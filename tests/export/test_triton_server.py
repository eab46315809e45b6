"""A real Triton Inference Server serves the repository, on the CPU; its TensorRT and a GPU remain unproven."""

import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdef.checkpoint import Checkpoint
from fastdef.defense import ActiveDefense
from fastdef.export.files import export_onnx
from fastdef.export.triton_repository import write_repository
from tests.ports import free_port

INSTALLED = Path(sys.prefix) / "triton-server"  # `make test-slow` puts the wheel nvidia-pytriton there
SERVER = INSTALLED / "pytriton" / "tritonserver"
CLIENTS = 8

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SERVER.is_dir(), reason="needs the server: make .venv/.triton-server"),
    # The client's own, of gevent and of protobuf.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def quiet_checkpoint(checkpoint):
    """Of so little noise that a client that does not know it can tell the answers beforehand."""
    defense = {**checkpoint.defense, "sigma": 1e-6}
    return Checkpoint(checkpoint.model, checkpoint.architecture, checkpoint.classes, defense, None)


@pytest.fixture(scope="module")
def server(checkpoint, quiet_checkpoint, tmp_path_factory):
    """The ports of HTTP and of gRPC."""
    place = tmp_path_factory.mktemp("triton")
    for name, model in (("noised", checkpoint), ("quiet", quiet_checkpoint)):
        export_onnx(model, place / name, shape=(1, 12, 12))
        write_repository(place / name, place / "models", name=name, max_batch=16)
    process, ports = start(place)
    try:
        wait_for(process, ports[0], place / "log")
        yield ports
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def start(place):
    ports = free_port(), free_port()
    command = [
        *(SERVER / "bin" / "tritonserver", "--model-repository", place / "models"),
        *("--backend-directory", backends(place / "backends"), "--allow-metrics", "false"),
        *("--http-address", "127.0.0.1", "--http-port", ports[0]),
        *("--grpc-address", "127.0.0.1", "--grpc-port", ports[1]),
    ]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(list(map(str, command)), env=environment(place), stdout=log, stderr=log)
    return process, ports


def backends(folder):
    """The Python back end with the stub of this Python."""
    shutil.copytree(SERVER / "backends" / "python", folder / "python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = folder / "python" / "triton_python_backend_stub"
    shutil.copy(SERVER / "python_backend_stubs" / version / stub.name, stub)
    for path in (stub, SERVER / "bin" / "tritonserver"):
        path.chmod(0o755)
    return folder


def environment(place):
    """The stub is isolated from PYTHONPATH: its packages are those of the environment whose python3 comes first."""
    venv.create(place / "venv", symlinks=True)
    (packages,) = (place / "venv").glob("lib/python*/site-packages")
    root = Path(__file__).parents[2]
    (packages / "these.pth").write_text("\n".join([str(root), *filter(os.path.isdir, sys.path)]))
    libraries = [INSTALLED / "nvidia_pytriton.libs", Path(sys.base_prefix) / "lib"]
    return {
        **os.environ,
        "PATH": f"{place / 'venv' / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "OMP_NUM_THREADS": "1",
    }


def wait_for(process, port, log):
    import tritonclient.http as triton

    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError):
            if client.is_server_ready():
                return
        time.sleep(0.5)
    faults = [line for line in log.read_text().splitlines() if "rror" in line]
    pytest.fail(f"the server does not start: {faults[:3]}")


def http(ports, model, images):
    import tritonclient.http as triton

    given = triton.InferInput("images", images.shape, "FP32")
    given.set_data_from_numpy(images)
    with triton.InferenceServerClient(f"127.0.0.1:{ports[0]}") as client:
        return client.infer(model, [given])


def grpc(ports, model, images):
    import tritonclient.grpc as triton

    given = triton.InferInput("images", images.shape, "FP32")
    given.set_data_from_numpy(images)
    with triton.InferenceServerClient(f"127.0.0.1:{ports[1]}") as client:
        return client.infer(model, [given])


@pytest.fixture(scope="module")
def many():
    return torch.rand(CLIENTS * 6, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("way", [http, grpc])
def test_eight_clients_get_the_answers_of_pytorch(server, quiet_checkpoint, many, way):
    expected = ActiveDefense.from_checkpoint(quiet_checkpoint, compile=False).defend(many)
    parts = many.split([1, 11, 6, 6, 2, 10, 5, 7])

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda images: way(server, "quiet", images.numpy()), parts))

    probabilities = np.concatenate([answer.as_numpy("probabilities") for answer in answers])
    converged = np.concatenate([answer.as_numpy("converged")[:, 0] for answer in answers])
    np.testing.assert_allclose(probabilities, expected.logits.exp().numpy(), rtol=0, atol=1e-3)
    np.testing.assert_array_equal(converged, expected.converged.numpy())


@pytest.mark.parametrize("way", [http, grpc])
def test_who_asks_twice_meets_other_noise(server, many, way):
    first, second = (way(server, "noised", many.numpy()[:8]).as_numpy("probabilities") for _ in range(2))

    assert not (first == second).all(axis=1).any()


def test_the_server_takes_images_alone_and_tells_probabilities_and_convergence_alone(server):
    import tritonclient.http as triton

    metadata = triton.InferenceServerClient(f"127.0.0.1:{server[0]}").get_model_metadata("noised")

    assert [tensor["name"] for tensor in metadata["inputs"]] == ["images"]
    assert sorted(tensor["name"] for tensor in metadata["outputs"]) == ["converged", "probabilities"]


def test_images_out_of_range_are_refused_and_those_beside_them_answered(server, quiet_checkpoint, many):
    from tritonclient.utils import InferenceServerException

    expected = ActiveDefense.from_checkpoint(quiet_checkpoint, compile=False).defend(many[:4]).logits.exp().numpy()

    def ask(spoilt):
        images = many[:4].numpy() + (np.nan if spoilt else 0)
        try:
            return http(server, "quiet", images).as_numpy("probabilities")
        except InferenceServerException as error:
            return str(error)

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(ask, [True, False] * 4))

    for refused, answered in zip(answers[::2], answers[1::2], strict=True):
        assert "finite images in [0, 1]" in refused
        np.testing.assert_allclose(answered, expected, rtol=0, atol=1e-3)

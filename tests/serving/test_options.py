import inspect
from pathlib import Path

import pytest
import torch
import typer
from starlette.testclient import TestClient

from fastdef.checkpoint import LARGEST, load, save
from fastdef.cli import app
from fastdef.cli.serve import serve
from fastdef.defense import ActiveDefense
from fastdef.nn import architecture_of, build, parse_architecture
from fastdef.serving import Worker, application
from fastdef.serving.options import Options
from fastdef.serving.run import Config
from tests.serving.replicas import needs_ray

ROOT = Path(__file__).parents[2]
OF_THE_LISTENER = {"host", "port", "workers", "keep_alive", "connections", "page"}
MODEL = Path("model.safetensors")
RAW = {"content-type": "application/octet-stream"}
SHIPPED = ROOT / "examples" / "ray-serve.yaml"


def test_options_are_those_of_the_command_with_its_defaults():
    command = typer.main.get_command(app).commands["serve"]
    options = {parameter.name: parameter.default for parameter in command.params} | {"device": "cpu"}
    fields = {name: field.default for name, field in Options.model_fields.items() if not field.is_required()}

    assert set(Options.model_fields) - {"threads"} == set(options) - OF_THE_LISTENER
    assert {name: fields[name] for name in set(fields) - {"threads"}} == {
        name: options[name] for name in set(fields) - {"threads"}
    }


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ({"seed": 1}, "seed is for replay"),
        ({"background": "x"}, "an opaque colour"),
        ({"slot": 1}, "Extra inputs are not permitted"),
        ({"dtype": "int8"}, "should match pattern"),
        ({"slots": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_are_none_are_refused(given, needed):
    with pytest.raises(ValueError, match=needed):
        Options(model=Path("model.safetensors"), **given)


@pytest.mark.parametrize(
    ("name", "least", "too_little"),
    [
        ("size", 1, 0),
        ("queue", 1, 0),
        ("slots", 1, 0),
        ("max_steps", 1, 0),
        ("longest", 0.001, 0),
        ("max_bytes", 1, 0),
        ("body_seconds", 0.001, 0),
        ("grace", 0, -0.001),
        ("seed", 0, -1),
        ("replicas", 1, 0),
        ("threads", 1, 0),
    ],
)
def test_numbers_have_a_least_value(name, least, too_little):
    assert getattr(Options(model=MODEL, replay=True, **{name: least}), name) == least
    with pytest.raises(ValueError, match=f"(?s){name}.*should be greater than"):
        Options(model=MODEL, replay=True, **{name: too_little})


def test_a_size_is_at_most_what_a_model_file_may_say():
    assert Options(model=MODEL, size=LARGEST).size == LARGEST
    with pytest.raises(ValueError, match="less than or equal"):
        Options(model=MODEL, size=LARGEST + 1)


def test_who_builds_the_parts_himself_has_the_defaults_of_the_command():
    options = Options(model=MODEL)

    def defaults(made):
        return {name: given.default for name, given in inspect.signature(made).parameters.items()}

    built = defaults(application)
    assert (built["max_bytes"], built["body_seconds"]) == (options.max_bytes, options.body_seconds)
    assert (built["replay"], built["resize"]) == (options.replay, options.resize)
    assert (defaults(Worker)["queue_size"], defaults(Worker)["longest"]) == (options.queue, options.longest)
    command = defaults(serve)
    assert (defaults(Config)["connections"], defaults(Config)["head_seconds"]) == (
        command["connections"],
        command["body_seconds"],
    )
    assert options.threads == 1


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model file of classes a to d, for images of 1 x 6 x 6."""
    torch.manual_seed(0)
    network = build(parse_architecture("wrn-10-1", num_classes=4, in_channels=1)).eval()
    config = ActiveDefense(network, beta=3.0, delta=1e-9, compile=False).config()
    described = {"architecture": architecture_of(network), "training": {"shape": [1, 6, 6]}}
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save(path, network, classes=tuple("abcd"), defense=config, **described)
    return path


def test_the_application_is_warm_and_as_the_options_say(model):
    options = Options(model=model, compile=False, max_steps=3, slots=2, queue=5, max_bytes=200, replay=True, seed=1)

    async def merge(own):
        return own.replace(b"fastdef", b"merged")

    with TestClient(options.application(merge=merge)) as client:
        answer = client.post("/classify?id=7", content=bytes(4 * 36), headers=RAW)
        metadata = client.get("/v2/models/small").json()
        assert client.app.state.worker.capacity == 7
        assert answer.json()["class"] in "abcd"
        assert (answer.json()["steps"], answer.json()["id"]) == (3, 7)
        assert metadata["inputs"][0]["shape"] == [-1, 1, 6, 6]
        assert client.post("/classify", content=bytes(201), headers=RAW).status_code == 413
        assert client.get("/").status_code == 404
        assert "merged_images_total 1.0" in client.get("/metrics").text


def test_a_size_takes_the_place_of_the_file_s_and_a_token_shows_the_page(model):
    options = Options(model=model, compile=False, max_steps=2, size=8)

    with TestClient(options.application(token="secret")) as client:
        facts = client.get("/page/facts", headers={"authorization": "Bearer secret"}).json()

    assert facts["shape"] == [1, 8, 8]
    assert facts["samples"] == []


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "AUTO".lower()])
def test_networks_have_the_dtype_of_the_options(model, dtype):
    defense = Options(model=model, compile=False, dtype=dtype)._defense(load(model))

    assert defense.max_steps == 1000
    assert defense.dtype == {"auto": torch.float32}.get(dtype, getattr(torch, dtype, None))


@needs_ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own models
def test_the_shipped_configuration_is_one_of_ray_s_and_names_what_is_there():
    yaml = pytest.importorskip("yaml")
    from ray.serve.schema import ServeDeploySchema

    from fastdef.serving import cluster

    read = yaml.safe_load(SHIPPED.read_text())
    config = ServeDeploySchema.model_validate(read)  # which would let pass what it does not know
    (application,) = config.applications
    (deployment,) = application.deployments
    options = Options.model_validate(application.args)
    built = cluster.app(options)

    assert set(read) <= set(ServeDeploySchema.model_fields)
    assert config.controller_options.runtime_env["env_vars"] == cluster.CALLBACK
    assert application.import_path == f"{cluster.__name__}:{cluster.app.__name__}"
    assert deployment.name == cluster.REPLICAS
    own = built._bound_deployment
    assert deployment.max_ongoing_requests == own.max_ongoing_requests == options.slots + options.queue
    assert deployment.max_queued_requests == own.max_queued_requests == options.queue
    assert deployment.graceful_shutdown_timeout_s > options.grace
    assert deployment.autoscaling_config["target_ongoing_requests"] == options.slots
    assert own.ray_actor_options["num_gpus"] == 1

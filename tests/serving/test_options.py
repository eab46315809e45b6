from pathlib import Path

import pytest
import typer

from fastdef.cli import app
from fastdef.serving.options import Options
from tests.serving.replicas import needs_ray

ROOT = Path(__file__).parents[2]
OF_THE_LISTENER = {"host", "port", "workers", "keep_alive", "connections", "page"}
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

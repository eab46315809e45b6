"""The recipes in examples/serving: they run where what they are for is installed, and are checked by its rules."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from fastdef.assets import ASSETS
from tests.ports import free_port
from tests.waiting import wait_until
from tools.readme import ROOT

RECIPES = ROOT / "examples" / "serving"
RAW = "application/octet-stream"
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent))
NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
MAIN = """
daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off; client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
    uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    {recipe}
}}
"""


def raw(image):
    return image.numpy().astype("<f4").tobytes()


def ask(port, path, body=None, kind=RAW):
    headers = {"content-type": kind}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    read = answer.status, answer.read()
    connection.close()
    return read


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def nginx(tmp_path):
    """The recipe before a server; its port."""
    started = []

    def start(behind):
        port, recipe = free_port(), (RECIPES / "nginx.conf").read_text()
        for listed, here in (("server 127.0.0.1:8000;", behind), ("listen 8080;", port)):
            assert listed in recipe
            recipe = recipe.replace(listed, re.sub(r"\d{4}(?=;)", str(here), listed))
        (tmp_path / "nginx.conf").write_text(MAIN.format(folder=tmp_path, recipe=recipe))
        log = (tmp_path / "log").open("w")
        command = [NGINX, "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        started.append((subprocess.Popen(command, stderr=log), log))
        wait_until(lambda: started[-1][0].poll() is not None or listens(port))
        assert started[-1][0].poll() is None, (tmp_path / "log").read_text()
        return port

    yield start
    for process, log in started:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_behind_nginx_images_are_answered_and_all_else_stays_inside(serve, worker, defense, images, nginx):
    from fastdef.serving import Page

    server = serve(worker, replay=True, page=Page("secret", defense))
    port = nginx(server.port)

    straight = server.ask("POST", "/classify?id=7", raw(images[0]), content_type=RAW)
    status, body = ask(port, "/classify?id=7", raw(images[0]))

    assert (status, body) == (straight[0], straight[2])
    assert ask(port, "/health")[0] == 200
    for path in ("/", "/metrics", "/docs", "/page/facts", "/v2"):
        assert server.ask("GET", path)[0] != 404, path
        assert ask(port, path)[0] == 404, path


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_behind_nginx_an_address_has_a_rate_and_a_body_a_size(serve, worker, images, nginx):
    port = nginx(serve(worker, max_bytes=1 << 24).port)

    assert ask(port, "/classify", bytes(2 << 20))[0] == 413
    statuses = [ask(port, "/classify", b"no image")[0] for _ in range(60)]

    assert statuses[:20] == [400] * 20
    assert 429 in statuses
    assert ask(port, "/health")[0] == 200


@pytest.fixture
def litserve(tmp_path):
    """The recipe with the shipped model; its port."""
    pytest.importorskip("litserve", reason="needs fastdef[test]")
    port, log = free_port(), (tmp_path / "log").open("w")
    command = [sys.executable, str(RECIPES / "litserve_server.py"), str(ASSETS / "smoothing.safetensors"), str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    wait_until(lambda: process.poll() is not None or (listens(port) and ask(port, "/health")[0] == 200), 240)
    assert process.poll() is None, (tmp_path / "log").read_text()
    yield port
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(60)
    log.close()


@pytest.mark.slow
def test_litserve_answers_a_batch_and_refuses_what_is_no_image_alone(litserve):
    good, bad = {"image": torch.rand(1, 28, 28).tolist()}, {"image": [[[0.5]]]}
    answers = [None] * 9

    def send(place):
        body = json.dumps(bad if place == 4 else good)
        answers[place] = ask(litserve, "/predict", body, kind="application/json")

    threads = [threading.Thread(target=send, args=(place,)) for place in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [status for status, _ in answers] == [200] * 4 + [422] + [200] * 4
    assert all(set(json.loads(body)) == {"class", "steps", "converged"} for status, body in answers if status == 200)
    assert b"at least 28 items" in answers[4][1]


@pytest.mark.skipif(HADOLINT is None, reason="needs fastdef[test]")
def test_hadolint_finds_nothing_in_the_dockerfile():
    ended = subprocess.run([HADOLINT, RECIPES / "Dockerfile"], capture_output=True, text=True)

    assert (ended.returncode, ended.stdout) == (0, "")


def test_what_the_dockerfile_copies_is_enough_for_a_wheel(tmp_path):
    """As its build does, but for the packages that it downloads."""
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel without a download")
    copied = re.findall(r"^COPY (.*) /src/\S*$", (RECIPES / "Dockerfile").read_text(), re.MULTILINE)
    for name in " ".join(copied).split():
        place = tmp_path / "src" / name
        place.parent.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place, symlinks=True)
        else:
            shutil.copy(ROOT / name, place)

    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(tmp_path), str(tmp_path / "src")], check=True, capture_output=True)

    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"fastdef/serving/page/page.html", "fastdef/kernels/smoothing.py", "fastdef/export/engine.py"} <= names


@pytest.mark.slow
def test_the_image_is_built_where_a_registry_is_in_reach():
    docker = shutil.which("docker")
    base = re.search(r"^ARG BASE=(.*)$", (RECIPES / "Dockerfile").read_text(), re.MULTILINE)[1]
    if docker is None or subprocess.run([docker, "pull", base], capture_output=True).returncode:
        pytest.skip(f"no docker, or no registry that has {base}")

    build = [docker, "build", "--file", str(RECIPES / "Dockerfile"), "--tag", "fastdef:test", str(ROOT)]
    subprocess.run(build, check=True)
    help_ = subprocess.run(
        [docker, "run", "--rm", "fastdef:test", "--help"], check=True, capture_output=True, text=True
    )

    assert "--no-page" in help_.stdout


@pytest.fixture
def manifest():
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text()))


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_the_manifest_fits_the_schema_of_kubernetes(manifest, version):
    validate = pytest.importorskip("kubernetes_validate", reason="needs fastdef[test]").validate

    for resource in manifest:
        validate(resource, version, strict=True)

    manifest[0]["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(Exception, match="livenessprobe"):
        validate(manifest[0], version, strict=True)


def test_the_manifest_asks_the_server_for_what_it_has(manifest, serve, worker):
    deployment, service = manifest
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    server = serve(worker)

    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert server.ask("GET", container[probe]["httpGet"]["path"])[0] == 200, probe
    (user,) = re.findall(r"^USER (\d+)$", (RECIPES / "Dockerfile").read_text(), re.MULTILINE)
    assert pod["securityContext"]["runAsUser"] == int(user)
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_a_pod_has_longer_to_end_than_the_server_takes_and_shows_no_page(manifest):
    import inspect

    from fastdef.cli.serve import serve

    pod = manifest[0]["spec"]["template"]["spec"]
    grace = inspect.signature(serve).parameters["grace"].default

    assert pod["terminationGracePeriodSeconds"] > grace + 5
    assert "--no-page" in pod["containers"][0]["args"]

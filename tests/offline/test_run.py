"""Images by the million: one row each, the same whatever the parts, however often the run was killed."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from fastdef.checkpoint import load, save
from fastdef.cli import main
from fastdef.data import decode_image
from fastdef.defense import ActiveDefense
from fastdef.nn import architecture_of, build, parse_architecture
from tests.serving.replicas import needs_ray
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    network = build(parse_architecture("wrn-10-1", num_classes=10, in_channels=1)).eval()
    defense = ActiveDefense(network, beta=3.0, max_steps=4, compile=False)
    defense.calibrate(torch.rand(24, *SHAPE, generator=torch.Generator().manual_seed(0)))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    described = {"architecture": architecture_of(network), "training": {"shape": list(SHAPE)}}
    save(path, network, classes=tuple("abcdefghij"), defense=defense.config(), **described)
    return path


def picture(number):
    file = io.BytesIO()
    values = np.random.default_rng(number).integers(0, 256, SHAPE[1:], dtype=np.uint8)
    Image.fromarray(values).save(file, "PNG", compress_level=0)
    return file.getvalue()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(picture(number))
    return folder


def write_parquet(path, numbers, *, groups=7):
    column = pa.array([{"bytes": picture(number), "path": None} for number in numbers])
    parquet.write_table(pa.table({"img": column, "label": [0] * len(column)}), path, row_group_size=groups)


def defend(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fastdef", "defend", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def rows_of(folder):
    return [row for file in sorted(folder.glob("*.parquet")) for row in parquet.read_table(file).to_pylist()]


def test_each_image_has_the_row_that_its_number_gives_it(monkeypatch, model, photos, tmp_path):
    status = defend(monkeypatch, model, photos, "--out", tmp_path / "out", "--seed", "3", "--part-size", "4")

    rows = rows_of(tmp_path / "out")
    images = [decode_image(picture(number), channels=1, size=SHAPE[1:]) for number in range(10)]
    expected = ActiveDefense.from_checkpoint(load(model), seed=3, compile=False).defend(torch.stack(images))
    probabilities, labels = expected.logits.exp().max(1)
    assert status == 0
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3
    assert [row["id"] for row in rows] == list(range(10))
    assert [row["file"] for row in rows] == [str(photos / f"{number}.png") for number in range(10)]
    assert [row["label"] for row in rows] == labels.tolist()
    assert [row["class"] for row in rows] == ["abcdefghij"[label] for label in labels]
    assert [row["steps"] for row in rows] == expected.steps.tolist()
    assert [row["error"] for row in rows] == [None] * 10
    torch.testing.assert_close(torch.tensor([row["probability"] for row in rows]), probabilities)


def test_rows_do_not_depend_on_the_parts_nor_on_how_images_are_stored(monkeypatch, model, photos, tmp_path):
    (tmp_path / "stored").mkdir()
    write_parquet(tmp_path / "stored" / "0.parquet", range(4), groups=3)
    write_parquet(tmp_path / "stored" / "1.parquet", range(4, 10), groups=2)
    fixed = ("--deterministic", "--seed", "1")

    for name, size, images in (("a", 3, photos), ("b", 10, photos), ("c", 4, tmp_path / "stored")):
        assert defend(monkeypatch, model, images, "--out", tmp_path / name, "--part-size", size, *fixed) == 0

    a, b, c = ([{**row, "file": None} for row in rows_of(tmp_path / name)] for name in "abc")
    assert a == b == c


def test_deterministic_rows_are_bitwise_the_same_in_parts_of_one_and_of_more_than_the_slots(
    monkeypatch, model, tmp_path
):
    write_parquet(tmp_path / "stored.parquet", range(70))
    fixed = (model, tmp_path / "stored.parquet", "--deterministic", "--seed", "1")

    for size in (1, 70):
        assert defend(monkeypatch, *fixed, "--out", tmp_path / str(size), "--part-size", size) == 0

    assert rows_of(tmp_path / "1") == rows_of(tmp_path / "70")


def test_what_cannot_be_read_has_a_row_that_says_why(monkeypatch, model, photos, tmp_path):
    (photos / "3.png").write_bytes(picture(3)[:40])
    (photos / "5.png").rename(photos / "5.gif")

    status = defend(monkeypatch, model, photos, "--out", tmp_path / "out", "--part-size", "4")

    rows = rows_of(tmp_path / "out")
    assert status == 1
    assert [row["id"] for row in rows] == list(range(10))
    assert {row["id"]: row["error"] for row in rows if row["error"]}.keys() == {3, 5}
    assert "3.png is not a whole PNG" in rows[3]["error"]
    assert rows[3]["class"] is rows[3]["steps"] is None


def test_a_folder_is_gone_on_with_only_when_told_to_and_only_with_its_settings(
    monkeypatch, capsys, model, photos, tmp_path
):
    begin = (model, photos, "--out", tmp_path / "out", "--part-size", "4")
    assert defend(monkeypatch, *begin) == 0
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    before = rows_of(tmp_path / "out")
    parts[1].unlink()
    kept = parts[0].stat().st_mtime_ns
    capsys.readouterr()

    for change, needed in (
        ((), "add --resume"),
        (("--resume", "--seed", "1"), "seed was"),
        (("--resume", "--max-steps", "3"), "max_steps was None, got 3"),
        (("--resume", "--deterministic"), "deterministic was False"),
        (("--resume", "--dtype", "bfloat16"), "dtype was float32, got bfloat16"),
    ):
        assert defend(monkeypatch, *begin, *change) == 2
        assert needed in capsys.readouterr().err
    assert defend(monkeypatch, *begin, "--resume") == 0
    assert parts[0].stat().st_mtime_ns == kept
    assert [row["steps"] for row in rows_of(tmp_path / "out")] == [row["steps"] for row in before]
    (photos / "new.png").write_bytes(picture(11))
    assert defend(monkeypatch, *begin, "--resume") == 2
    assert "images.count was 10, got 11" in capsys.readouterr().err


def test_without_a_seed_each_run_draws_its_own(monkeypatch, model, photos, tmp_path):
    for name in "ab":
        assert defend(monkeypatch, model, photos, "--out", tmp_path / name) == 0

    first, second = (json.loads((tmp_path / name / "settings.json").read_text())["seed"] for name in "ab")
    assert first != second


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        (["--out", "out", "--strict"], "no --strict and no --deadline"),
        (["--out", "out", "--deadline", "1"], "no --strict and no --deadline"),
        (["--resume"], "need the --out folder"),
        (["--replicas", "2"], "need the --out folder"),
        (["--out", "out", "--replicas", "2", "--device", "cuda:1"], "need the device cpu, or cuda for a GPU each"),
        (["--out", "out", "--dtype", "int8"], "one of float32, float16, bfloat16"),
    ],
)
def test_options_that_do_not_fit_are_refused(monkeypatch, capsys, model, photos, tmp_path, options, needed):
    monkeypatch.chdir(tmp_path)
    assert defend(monkeypatch, model, photos, *options) == 2

    assert needed in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_damaged_parquet_file_and_one_without_images_are_refused_by_name(monkeypatch, capsys, model, tmp_path):
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")

    for name, needed in (("damaged", "is not a whole parquet file"), ("text", "needs a column image or img, got text")):
        assert defend(monkeypatch, model, tmp_path / f"{name}.parquet", "--out", tmp_path / name) == 2
        error = capsys.readouterr().err
        assert f"{name}.parquet" in error
        assert needed in error


def start(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    command = [sys.executable, "-m", "fastdef", "defend", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_20000_images_killed_twice_are_bitwise_those_of_one_run(model, tmp_path):
    stored, out = tmp_path / "stored", tmp_path / "out"
    stored.mkdir()
    for shard in range(4):
        write_parquet(stored / f"{shard}.parquet", range(5000 * shard, 5000 * (shard + 1)), groups=1000)
    fixed = (model, stored, "--deterministic", "--seed", "1", "--max-steps", "2")
    whole = start(*fixed, "--out", tmp_path / "whole", "--part-size", "5000")

    for parts in (3, 8):
        process = start(*fixed, "--out", out, "--part-size", "1024", *(["--resume"] if parts > 3 else []))
        wait_until(lambda parts=parts: len(list(out.glob("*.parquet"))) >= parts, 300)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list(out.glob("part-*.parquet"))) < 20
    assert start(*fixed, "--out", out, "--part-size", "1024", "--resume").wait(600) == 0
    assert whole.wait(600) == 0

    rows = rows_of(out)
    assert len(rows) == 20_000
    assert [row["id"] for row in rows] == list(range(20_000))
    assert rows == rows_of(tmp_path / "whole")


@needs_ray
@pytest.mark.slow
def test_replicas_of_ray_make_the_rows_of_one_process_though_the_run_and_then_one_of_them_is_killed(model, tmp_path):
    write_parquet(tmp_path / "stored.parquet", range(3000), groups=1000)
    fixed = (model, tmp_path / "stored.parquet", "--deterministic", "--seed", "1", "--part-size", "100")
    out = tmp_path / "out"

    process = start(*fixed, "--out", out, "--replicas", "2")
    wait_until(lambda: len(list(out.glob("*.parquet"))) >= 3, 300)
    left = replicas_below(process.pid)
    assert left
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(is_running(replica) for replica in left), 120)
    done = len(list(out.glob("*.parquet")))
    assert done < 30
    process = start(*fixed, "--out", out, "--replicas", "2", "--resume")
    wait_until(lambda: len(list(out.glob("*.parquet"))) > done, 300)
    os.kill(replicas_below(process.pid)[0], signal.SIGKILL)
    assert process.wait(600) == 0
    assert start(*fixed, "--out", tmp_path / "one").wait(600) == 0

    assert len(rows_of(out)) == 3000
    assert rows_of(out) == rows_of(tmp_path / "one")


def is_running(process):
    listed = subprocess.run(["ps", "-ww", "-o", "stat=", str(process)], capture_output=True, text=True)
    return listed.stdout.strip()[:1] not in ("", "Z")


def replicas_below(process):
    """Numbers of Ray's processes that make parts. Without -ww a line is cut where COLUMNS says."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    raylets = {int(pid) for pid, parent, name in rows if int(parent) == process and "raylet" in name}
    return [int(pid) for pid, parent, name in rows if int(parent) in raylets and "MapWorker" in name]

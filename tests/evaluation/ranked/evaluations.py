"""Every evaluation that ranks share, on however many there are; writes what each rank found."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

import fastdef
from fastdef import distributed
from fastdef.data import Dataset
from fastdef.evaluation import Attack, evaluate, evaluate_strengths
from fastdef.evaluation.adaptive import BUDGETS, Target, evaluate_adaptive
from fastdef.nn import build, convert_to_afa, convert_to_multi_bn, parse_architecture

PIXELS = torch.randint(0, 256, (20, 1, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
DATA = Dataset(PIXELS, torch.arange(20) % 10, tuple("abcdefghij"), "made", "test")
SMOKE = BUDGETS["smoke"]
EFFORT = replace(SMOKE.autoattack, iterations=2, targets=1, queries=4, eot=2)
TINY = replace(
    SMOKE, images=6, noise_samples=2, reevaluations=2, eot=2, iterations=2, depths=(2,), autoattack=EFFORT, batch=4
)


def found(folder):
    """Everything but the seconds, as JSON has it; and the images whose end was told, batch by batch."""
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", in_channels=1))
    model(torch.rand(16, 1, 12, 12))
    defense = fastdef.ActiveDefense(model.eval(), beta=3.0, max_steps=4, compile=False)
    defense.calibrate(DATA.floats(0, 8), ratio=1.0)
    told = []
    static = evaluate(
        model, DATA, defense=defense, attack=Attack(steps=2), batch_size=8, progress=told.append
    ).to_json()
    for row in static["rows"].values():
        assert row.pop("seconds_per_image") > 0
    try:
        unshared = evaluate_adaptive(Target.plain(model), DATA, budget=TINY, rows=[0]).passed
    except ValueError as error:
        unshared = str(error)
    units = []
    suite = {
        "rows": [0, 1, 2, 7],
        "folder": folder,
        "progress": lambda where: units.append(f"{where.case} {where.done}"),
    }
    lines = evaluate_adaptive(Target.defended(defense), DATA, budget=TINY, **suite).lines
    scores = {line.label: line.score and line.score.to_json() for line in lines}
    afa = convert_to_afa(convert_to_multi_bn(model, 2))
    strengths = evaluate_strengths(afa, DATA, strengths=(0.0, 8 / 255), steps=1, batch_size=8).to_json()
    found = {"static": static, "strengths": strengths, "adaptive": scores}
    return found | {"told": told, "units": units, "unshared": unshared}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    out = Path(sys.argv[1])
    everyone = distributed.all_gather_object(found(out / f"adaptive{distributed.world_size()}"))
    if distributed.rank() == 0:
        (out / f"{distributed.world_size()}.json").write_text(json.dumps(everyone))
    dist.destroy_process_group()

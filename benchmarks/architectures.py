"""Which networks of timm does the defense trace, is a step of it right, and what does the trace gain?

    python -m benchmarks.architectures --json OUT --table docs/networks.md

Random weights. "Right": three steps in float64 end where a plain autograd loop ends, within 1e-6 of how far it moved.
"Gain": seconds of a step of a plain autograd loop up to the layer, weights frozen, over those of ours, float32, medians
of interleaved turns. A network that cannot be traced runs plainly, uncompiled, and gains nothing; the last column says
why.
"""

import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from fastdef.bench.machine import interleaved, machine
from fastdef.defense import ActiveDefense
from fastdef.io import atomic_write, write_json
from fastdef.nn import prefix
from fastdef.ops import smoothing_loss

STEPS, BATCH = 3, 4
_STAGES = "stages.0"
# By family; the layer is the output of the first stage.
NETWORKS = {
    **dict.fromkeys(("resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d"), "layer1"),
    **dict.fromkeys(("seresnet50", "skresnet18", "resnest14d", "res2net50_26w_4s"), "layer1"),
    **dict.fromkeys(("resnetv2_50", "nf_resnet50", "dm_nfnet_f0", "repvgg_a0", "gernet_s"), _STAGES),
    **dict.fromkeys(("cspresnet50", "cspdarknet53", "ese_vovnet19b_dw"), _STAGES),
    **dict.fromkeys(("densenet121",), "features.denseblock1"),
    **dict.fromkeys(("dla34",), "level2"),
    **dict.fromkeys(("hrnet_w18_small",), "layer1"),
    **dict.fromkeys(("selecsls42",), "features.1"),
    **dict.fromkeys(("vgg11_bn",), "features.4"),
    **dict.fromkeys(("xception41",), "blocks.0"),
    **dict.fromkeys(("efficientnet_b0", "efficientnet_lite0", "tf_efficientnetv2_s", "tinynet_e"), "blocks.1"),
    **dict.fromkeys(("mobilenetv2_100", "mobilenetv3_large_100", "mnasnet_100", "hardcorenas_a"), "blocks.1"),
    **dict.fromkeys(("ghostnet_100",), "blocks.1"),
    **dict.fromkeys(("rexnet_100",), "features.1"),
    **dict.fromkeys(("regnetx_002", "regnety_002"), "s1"),
    **dict.fromkeys(("convnext_atto", "convnextv2_atto", "poolformer_s12", "edgenext_xx_small"), _STAGES),
    **dict.fromkeys(("mobilevit_xxs", "fastvit_t8"), _STAGES),
    **dict.fromkeys(("vit_tiny_patch16_224", "mixer_s32_224"), "blocks.0"),
    **dict.fromkeys(("swin_tiny_patch4_window7_224",), "layers.0"),
    **dict.fromkeys(("coatnet_0_rw_224", "maxvit_tiny_rw_224"), _STAGES),
}
TEN = ("resnet18", "resnet50", "seresnet50", "densenet121", "efficientnet_b0", "mobilenetv3_large_100", "regnety_002")
TEN += ("convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
PLAN = [
    *((name, 64, compile) for compile in (False, True) for name in NETWORKS),
    *((name, 224, False) for name in TEN),
]
_FIXED_SIZE = ("vit", "mixer", "swin", "coatnet", "maxvit")  # families that are told theirs


def measure(name: str, *, size: int, compile: bool, turns: int) -> dict[str, Any]:
    """One row."""
    from tests.timm_import import import_timm  # beside a torch without its torchvision too

    timm = import_timm()
    torch.manual_seed(0)
    sized = {"img_size": size} if name.startswith(_FIXED_SIZE) else {}
    model = timm.create_model(name, pretrained=False, num_classes=10, **sized).eval()
    images = torch.rand(BATCH, 3, size, size)
    row: dict[str, Any] = {"layer": NETWORKS[name], "size": size, "compiled": compile}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            row["apart"] = apart(model.double(), images.double(), NETWORKS[name], compile=compile)
        except ValueError as error:
            return {**row, "refused": str(error)}
        row["gain"] = gain(model.float(), images, NETWORKS[name], compile=compile, turns=turns)
    reasons = [str(one.message).rpartition(": ")[2] for one in caught if "cannot be traced" in str(one.message)]
    return {**row, "plainly": reasons[0] if reasons else None}


def apart(model: nn.Module, images: Tensor, layer: str, *, compile: bool) -> float:
    """The largest difference of a pixel after a few steps of ours and of the plain loop, over the largest movement."""
    defense = ActiveDefense(model, layer, delta=1e-30, max_steps=STEPS, beta=1.0, slots=BATCH, compile=compile)
    start, losses = defense.noised(images), plain(model, layer)
    t = start
    for _ in range(STEPS):
        t = (t - defense.beta * losses(t)[1]).detach()
    return float((defense.smooth(images).images - t).abs().max() / (t - start).abs().max())


def plain(model: nn.Module, layer: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """L_F and its gradient by autograd, up to the layer alone, the weights frozen."""
    network = prefix(model.requires_grad_(False), layer)

    def step(t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.detach().requires_grad_()
        loss = smoothing_loss(network(t))
        return loss.detach(), torch.autograd.grad(loss.sum(), t)[0]

    return step


def gain(model: nn.Module, images: Tensor, layer: str, *, compile: bool, turns: int) -> float:
    """Seconds of the plain loop's step over those of ours."""
    defense = ActiveDefense(model, layer, delta=1e-30, beta=1.0, slots=BATCH, compile=compile)
    slots = defense.empty_slots(BATCH, images[0])
    counts = torch.zeros(BATCH, dtype=torch.int32)
    slots.insert(list(range(BATCH)), list(range(BATCH)), images, counts, counts + (1 << 30))
    step = plain(model, layer)
    taken = interleaved({"plain": lambda: step(images), "ours": slots.advance}, images.device, turns=turns)
    return statistics.median(taken["plain"]) / statistics.median(taken["ours"])


def table(rows: list[dict[str, Any]], where: dict[str, Any]) -> str:
    """The rows as a page."""
    lines = [
        "# Networks of timm\n",
        f"`{where['command']}`, {where['name']}, {where['threads']} thread, torch {where['torch']}.\n",
        "\n".join(str(__doc__).split("\n\n")[2:]).strip() + "\n",
        "| network | layer | size | compiled | apart in float64 | gain | runs plainly, or is refused, because |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        apart = f"{row['apart']:.0e}" if "apart" in row else "refused"
        gained = f"{row['gain']:.1f}" if "gain" in row else ""
        compiled = "yes" if row["compiled"] else "no"
        why = row.get("refused") or row.get("plainly") or ""
        cells = row["name"], f"`{row['layer']}`", str(row["size"]), compiled, apart, gained, why
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(
    turns: int = 5,
    only: Annotated[str | None, typer.Option(help="names, separated by commas")] = None,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
    page: Annotated[Path | None, typer.Option("--table")] = None,
) -> None:
    """A row for each network; status 1 if one is wrong."""
    chosen = set(NETWORKS) if only is None else set(only.split(","))
    rows = []
    for name, size, compile in PLAN:
        if name in chosen:
            rows.append({"name": name, **measure(name, size=size, compile=compile, turns=turns)})
            print(rows[-1], flush=True)
    where = machine(torch.device("cpu"))
    if json_file is not None:
        write_json(json_file, {**where, "networks": rows})
    if page is not None:
        with atomic_write(page) as temporary:
            temporary.write_text(table(rows, where))
    raise SystemExit(any(row.get("apart", 0.0) > 1e-6 for row in rows))


if __name__ == "__main__":
    typer.run(main)

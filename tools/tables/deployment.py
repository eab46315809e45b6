"""What servers take in."""

import json
import textwrap

from tools.tables._results import CPU, read, table


def replicas() -> str:
    """What a server's doors take in, one beside the other."""
    found = read("replicas.json")
    rows = [
        [
            f"`{door}`" if door.startswith("fastdef") else f"Ray Serve, {door}",
            f"{row['images_per_second']:.0f}",
            f"{row['p50_ms']:.0f} / {row['p99_ms']:.0f}",
            f"{row['alone_p50_ms']:.1f}",
            f"{row['refused_per_second']:.0f}",
        ]
        for door, row in found["doors"].items()
    ]
    heads = [f"{found['clients']} clients, one thread a process, {found['cores']} cores", "images/s", "ms, p50 / p99"]
    return table([*heads, "ms, one client", "refused requests/s"], rows)


def replicas_on_paper() -> str:
    """What eight and a hundred devices would do, of the rates of one."""
    found = read("replicas.json")
    doors, gpu = found["doors"], json.loads((CPU.parent / "h100" / "defense-wrn-28-10.json").read_text())
    proxy = max(doors[door]["refused_per_second"] for door in ("one replica", "two replicas"))
    core, device = doors["one replica"]["images_per_second"], gpu["contenders"]["slots"]["images_per_second"]
    text = (
        f"**Calculated on paper, not measured**, from these rates (load average {found['load_average']:.1f} before "
        f"they were taken) and {device:.0f} images/s of one {gpu['machine']['name']} (WRN-28-10). "
        f"Replicas add up: 8 of {core:.0f} images/s, as here, on cores of their own give {8 * core:.0f}. "
        f"A proxy is what does not grow with them: it passes {proxy:.0f} requests/s, clients on the same cores. "
        f"*8 GPUs in one machine* could take {8 * device:.0f} images/s, but of one image a request their proxy passes "
        f"{proxy:.0f}: it is full before the first GPU is. *8 machines of one GPU* have 8 proxies, which pass "
        f"{8 * proxy:.0f}. To fill a GPU, a request needs {device / proxy:.0f} images (`/v2`), or the work is for "
        f"`defend --out`, which has no proxy: {8 * device:.0f} images/s. "
        f"*At a hundred machines* the proxies still break first ({100 * proxy:.0f} requests/s). Next is what there is "
        f"one of: the disk that all read the model from (146 MB of a WRN-28-10, 15 GB for a hundred), the load "
        f"balancer, Ray's controller. The ledger is far from it: 20 messages/s, and {found['ledger_ms']:.0f} ms to add "
        f"up the metrics of a hundred replicas."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False) + "\n"

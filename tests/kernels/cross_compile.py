"""Compiles kernels for GPUs that are not here, and reads what came out. Run as a program: JSON in, JSON out.

In: a list of {"module", "kernel", "signature", "constants", "warps"}, signature and constants by argument name, where a
pointer's type is followed by ":16" if it is 16-byte aligned, and an integer's if it is divisible by 16, as a launch
would find it. Out, for each and each architecture: registers, spilled bytes, the widest global load in bits, and how
many divisions are not correctly rounded.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 100)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compile_one(kernel, signature, constants, warps, capability):
    """One kernel for one architecture -> its resources."""
    names = kernel.arg_names
    types = {name: kind.removesuffix(":16") for name, kind in signature.items()}
    types |= dict.fromkeys(constants, "constexpr")
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n, kind in signature.items() if kind.endswith(":16")}
    source = ASTSource(
        kernel,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        sass = subprocess.run([CUOBJDUMP, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    return {
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),
        "spilled": int(re.search(r"STACK:(\d+)", usage).group(1)) + len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "load_bits": max((int(bits) for bits in re.findall(r"LDG\.E\.(?:\w+\.)*?(64|128)\b", sass)), default=32),
        "approximate": len(re.findall(r"\b(?:div\.full|div\.approx|rcp\.approx)", compiled.asm["ptx"])),
    }


def main():
    out = []
    for request in json.load(sys.stdin):
        kernel = getattr(importlib.import_module(request["module"]), request["kernel"])
        arguments = kernel, request["signature"], request["constants"], request.get("warps", 4)
        out.append({str(sm): compile_one(*arguments, sm) for sm in request.get("architectures", ARCHITECTURES)})
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main()

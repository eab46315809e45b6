"""Model files on the Hugging Face hub, by names such as hf://user/model@revision/file.safetensors."""

import os
import re

MODEL_FILE = "model.safetensors"
# A pathlib.Path has taken one slash away.
_NAME = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?:/([\w./-]+\.safetensors))?")


def is_on_hub(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a file of the hub."""
    return os.fspath(path).startswith("hf:/")


def fetch(path: str | os.PathLike[str]) -> str:
    """Download a file, or take it from the hub's cache; where it lies now.

    Raises:
        ValueError: for a name that is none, or where the hub does not give it.
    """
    name = _NAME.fullmatch(os.fspath(path))
    if name is None:
        needed = "hf://user/model, hf://user/model@revision or hf://user/model/file.safetensors"
        raise ValueError(f"a model of the hub needs a name such as {needed}, got {os.fspath(path)!r:.200}")
    from huggingface_hub import hf_hub_download

    repository, revision, file = name.groups()
    try:
        return str(hf_hub_download(repository, file or MODEL_FILE, revision=revision, library_name="fastdef"))
    except Exception as error:  # whatever its HTTP client raises, and that changes from release to release
        raise ValueError(f"cannot download {os.fspath(path)}: {' '.join(str(error).split())[:400]}") from error

"""To the Hugging Face hub."""

import os
import tempfile
from pathlib import Path

from fastdef.checkpoint import MODEL_FILE, Checkpoint, load
from fastdef.hub.card import Evidence, model_card


def push_to_hub(
    path: str | os.PathLike[str],
    repo_id: str,
    *,
    shape: tuple[int, int, int] | None = None,
    evidence: Evidence | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    source: str | None = None,
) -> str:
    """Upload a model file with its card, after which ``fastdef.load("hf://...")`` reads it; the commit's address.

    The repository is made where it is not there. Files of the same names are replaced.

    Args:
        path: a file that :func:`fastdef.save` wrote.
        repo_id: "user/model".
        shape: (C, H, W) of an image; as the file says if not given.
        evidence: what was measured of it, for the card.
        license: of the weights, by its identifier on the hub.
        private: whether a new repository is; as the account is set up if not given.
        token: of the hub; what ``hf auth login`` kept if not given.
        source: code to build the network with, as :func:`fastdef.load` takes it.

    Raises:
        ValueError: if the file is none, does not say its shape, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    checkpoint = load(path, source=source)
    card = model_card(
        checkpoint,
        name=repo_id.partition("/")[2] or repo_id,
        shape=_shape(path, checkpoint, shape),
        evidence=evidence,
        license=license,
        repo_id=repo_id,
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, MODEL_FILE).write_bytes(Path(path).read_bytes())
        Path(folder, "README.md").write_text(card)
        try:
            api = HfApi(token=token, library_name="fastdef")
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload by fastdef"))
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise ValueError(f"cannot push to {repo_id}: {' '.join(str(error).split())[:400]}") from error


def _shape(
    path: str | os.PathLike[str], checkpoint: Checkpoint, shape: tuple[int, int, int] | None
) -> tuple[int, int, int]:
    stored = shape or (checkpoint.training or {}).get("shape")
    if stored is None:
        raise ValueError(f"{path} does not say what images it takes: give shape=(C, H, W)")
    channels, height, width = stored
    return channels, height, width

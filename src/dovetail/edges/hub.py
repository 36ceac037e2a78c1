"""The Hugging Face hub: make a repository, upload a folder."""

import glob
import shlex
from pathlib import Path, PurePath

from dovetail.errors import StoreError

LEFT_AT_HOME = ("checkpoint-*/**", "left-checkpoint-*/**", ".*")


def prepare(name: str, token: str | None) -> str:
    """Make the repository where it is not there yet, before any long work; returns its full name.

    Who may see a new one is left to the hub (public, or what an organisation has chosen). Raises StoreError where it cannot be
    made, or the token may only read.
    """
    from huggingface_hub import create_repo, whoami

    try:
        made = str(create_repo(name, exist_ok=True, token=token).repo_id)
        role = whoami(token=token).get("auth", {}).get("accessToken", {}).get("role")
    except Exception as error:
        raise StoreError(
            f"cannot make {name} on the hub: {_said(error)}",
            do="log in with `hf auth login` or check the name, or leave out --push_to_hub",
        ) from error
    if role == "read":  # `exist_ok` is content with it, the upload would not be
        raise StoreError(f"cannot write to {name} on the hub: the token may only read", do="give one that may write")
    return made


def upload(folder: Path, name: str, token: str | None, logs: str = "logs") -> str:
    """Upload all but checkpoints and the folder of `logs` below; returns the address of the commit.

    What is there already is not sent again. Raises StoreError where the hub is not reached or refuses; nothing local is lost.
    """
    from huggingface_hub import upload_folder

    left = [*LEFT_AT_HOME, f"{glob.escape(PurePath(logs).as_posix())}/**"]
    try:
        done = upload_folder(
            repo_id=name, folder_path=folder, token=token, ignore_patterns=list(left), commit_message="End of training"
        )  # it adds to the list that it is given
    except Exception as error:
        by_hand = ["hf", "upload", name, str(folder), *(word for pattern in left for word in ("--exclude", pattern))]
        raise StoreError(
            f"cannot upload to {name}: {_said(error)}",
            do=f"the model is whole in {folder}; upload it with `{shlex.join(by_hand)}`",
        ) from error
    return str(done)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

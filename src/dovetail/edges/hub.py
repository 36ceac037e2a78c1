"""The Hugging Face hub: make a repository, upload a folder."""

from pathlib import Path

from dovetail.errors import StoreError

LEFT_AT_HOME = ["checkpoint-*/**", "logs/**", ".*"]


def prepare(name: str, token: str | None) -> str:
    """Make the repository where it is not there yet, before any long work; returns its full name."""
    from huggingface_hub import create_repo

    try:
        return str(create_repo(name, exist_ok=True, token=token).repo_id)
    except Exception as error:
        raise StoreError(
            f"cannot make {name} on the hub: {' '.join(str(error).split())[:200]}",
            do="log in with `hf auth login` or check the name, or leave out --push_to_hub",
        ) from error


def upload(folder: Path, name: str, token: str | None) -> str:
    """Upload all but checkpoints and logs; returns the address of the commit."""
    from huggingface_hub import upload_folder

    try:
        done = upload_folder(
            repo_id=name, folder_path=folder, token=token, ignore_patterns=LEFT_AT_HOME, commit_message="End of training"
        )
    except Exception as error:
        raise StoreError(
            f"cannot upload to {name}: {' '.join(str(error).split())[:200]}",
            do=f"the model is whole in {folder}; upload it with `hf upload {name} {folder}`",
        ) from error
    return str(done)

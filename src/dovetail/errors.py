"""What can go wrong, said in one line: what happened, where, and what to do next."""


class DovetailError(Exception):
    """A failure that the user can act on. Its text is one line; the CLI prints it and exits with `exit_code`."""

    exit_code = 1

    def __init__(self, what: str, *, do: str = "") -> None:
        super().__init__(" ".join((what + (f"; {do}" if do else "")).split()))


class BadInputError(DovetailError):
    """The folder, a picture list or a caption file is not usable as it is."""


class BadConfigError(DovetailError):
    """`dovetail.toml` or a flag holds something that no stage understands."""

    exit_code = 2


class MissingStageError(DovetailError):
    """A stage was asked for before the one that it needs."""


class ModelError(DovetailError):
    """A model folder, hub id or checkpoint file cannot be loaded."""


class StoreError(DovetailError):
    """The run folder cannot be written or is damaged (disk full, a file changed after it was sealed)."""


class TrainingError(DovetailError):
    """Training cannot go on (a loss that is not a number, say)."""


class StoppedError(DovetailError):
    """The user stopped it; what is done is kept."""

    exit_code = 130


class EndpointError(DovetailError):
    """The endpoint cannot start or does not answer (port taken, say)."""


def first_line(error: BaseException) -> str:
    """What a library's error says first, 200 characters at most; its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def unexpected(error: BaseException) -> tuple[str, int]:
    """One line and an exit code for a failure that nobody foresaw; the traceback goes into a file to send."""
    import tempfile
    import traceback

    if "No space left on device" in str(error):
        return "the disk is full; free some room and run the same command again", 1
    with tempfile.NamedTemporaryFile("w", prefix="dovetail-fault-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    said = " ".join(str(error).split())[:200]
    return f"unexpected: {type(error).__name__}: {said}; please report it with {file.name}", 70

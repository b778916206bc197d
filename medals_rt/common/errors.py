"""The errors that this package raises on purpose.

Each is also a builtin, so that callers who don't know this package can catch it. A message says in
one line what was wrong, what was found and what to do about it.

`InputError` and its subclasses mean that the caller's input can't be used (the command line exits
with 2); every other `MedalsError` is a failure during the work (1).
"""


class MedalsError(Exception):
    """Base of every error that this package raises on purpose.

    Attributes
    ----------
    code
        What went wrong, for programs and tests: lower case, words joined by hyphens, such as
        ``"spacing-not-positive"``. It stays the same when the wording changes.
    """

    code: str = "failure"

    def __init__(self, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class InputError(MedalsError, ValueError):
    """The caller's input can't be used."""

    code = "input"


class CaseError(InputError):
    """A case file or volume is broken or has an unusable shape, spacing or value."""

    code = "case"


class PromptError(InputError):
    """A prompt names no class, several classes, or contradicts another prompt."""

    code = "prompt"


class BundleError(InputError):
    """A model bundle is damaged, of an unknown format, or lacks what was asked of it."""

    code = "bundle"


class MissingFileError(InputError, FileNotFoundError):
    """A file that was named does not exist."""

    code = "file-missing"


class MissingDependencyError(MedalsError, ImportError):
    """An optional library is needed; the message names the extra that installs it."""

    code = "dependency-missing"


class RunnerError(MedalsError, RuntimeError):
    """An inference library refused a graph or failed while running it."""

    code = "runner"


class DeviceLostError(RunnerError):
    """The process can use its GPU no more (`medals_rt.common.gpu_faults`); a new one can."""

    code = "device-lost"


class ExportError(MedalsError, RuntimeError):
    """A checkpoint could not be exported, or what was exported does not match it."""

    code = "export"


class BuildError(MedalsError, RuntimeError):
    """TensorRT or TensorRT-RTX could not build an engine, or it could not be written."""

    code = "build"


class OutputError(MedalsError, OSError):
    """A file can't be written: no room, no permission, a disk that is gone."""

    code = "output"


class DownloadError(MedalsError, OSError):
    """A model hub can't be reached, breaks off, or sends something else than it announced."""

    code = "download"


class ServerError(MedalsError, OSError):
    """A DICOM server can't be reached, refuses, or sends something else than was asked for."""

    code = "server"

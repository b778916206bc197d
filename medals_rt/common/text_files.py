"""Small text files that people write, read whole."""

from pathlib import Path

from medals_rt.common.errors import InputError, MissingFileError


def read_text(
    path: Path, what: str, *, most_bytes: int, form: str, error: type[InputError] = InputError
) -> str:
    """Read a file of UTF-8, with a byte order mark or without.

    Parameters
    ----------
    path
        The file.
    what
        What it is, such as ``"jobs file"``, for messages and codes.
    most_bytes
        Larger files are refused before memory is taken for them.
    form
        Code of the error that a file gets which isn't text.
    error
        Class of the errors.

    Raises
    ------
    MissingFileError
        There is no such file (code such as ``jobs-file-missing``).
    InputError
        It is too large (such as ``jobs-file-too-large``), or no UTF-8.
    """
    code = what.replace(" ", "-")
    if not path.is_file():
        raise MissingFileError(f"there is no {what} {path}; check the path", code=f"{code}-missing")
    if path.stat().st_size > most_bytes:
        raise error(
            f"{path} is larger than {most_bytes} bytes; is it a {what}?", code=f"{code}-too-large"
        )
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise error(f"{path} isn't UTF-8 text ({wrong}); save it as UTF-8", code=form) from wrong

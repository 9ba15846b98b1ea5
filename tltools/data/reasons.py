"""Why a file could not be read, for its row or an error message."""


def reason_of(error: BaseException) -> str:
    """Describe in one line, without the path, what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return " ".join(str(error).split()) or type(error).__name__

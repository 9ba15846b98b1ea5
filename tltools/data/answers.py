"""Errors of requests to servers, by what they say about the file and the server."""


class UnavailableError(OSError):
    """A file that its server refuses, or that exceeds a limit: another attempt will not help."""


class NotFoundError(UnavailableError, FileNotFoundError):
    """A file that does not exist on its server."""


class TooLargeError(UnavailableError):
    """A file of more bytes than the caller takes."""


class BusyError(OSError):
    """The server has answered that it cannot answer now, or has failed."""


class AwayError(BusyError):
    """Another server has answered that this one does not."""


class StalledError(OSError):
    """The server did not go on in time. No TimeoutError: fsspec replaces those by its own."""

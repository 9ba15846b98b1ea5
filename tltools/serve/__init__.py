"""An HTTP service that classifies the images it is sent.

Only `tltools serve` imports its modules: they need the packages of the extra `serve`.
"""

from tltools.serve.settings import ServeSettings, check_packages

__all__ = ["ServeSettings", "check_packages"]

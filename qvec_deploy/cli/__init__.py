"""The command line: the only package that prints or knows exit codes. Vendors' libraries are imported on use."""

from qvec_deploy.cli.commands import main, program

__all__ = ["main", "program"]

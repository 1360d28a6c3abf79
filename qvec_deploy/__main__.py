"""`python -m qvec_deploy` is `qvec-deploy`."""

from qvec_deploy.cli import program

program()

"""`python -m qvec_deploy` is `qvec-deploy`."""

from qvec_deploy.cli import program

if __name__ == "__main__":  # processes of jobs import this module under another name
    program()

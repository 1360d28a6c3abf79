"""Imported into a process, it has that process's builds share what others have made: jobs are forked from one."""

from shared import share_builds

share_builds()

"""The command line: rntk-dist. Nobody imports it."""

from rntk_dist.cli.app import app, main

__all__ = ["app", "main"]

"""Platforms other than this one, each built for and run as far as this machine can: see `__main__`."""

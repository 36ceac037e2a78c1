"""Blocks of a U-Net that learns on a CPU: few large steps in the place of many small ones."""

from pathlib import Path

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.[ch]")))  # what of it is in C

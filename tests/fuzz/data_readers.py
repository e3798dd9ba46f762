"""Readers of data: texts, images, token streams, rows of feedback, tasks and settings."""

from tests.fuzz.readers import Reader

READERS: tuple[Reader, ...] = ()

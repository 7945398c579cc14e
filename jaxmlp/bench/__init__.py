"""Measuring: this program against its own past, other libraries, and a target accuracy."""

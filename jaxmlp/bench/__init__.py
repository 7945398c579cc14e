"""Measures the speed of jaxmlp against its own past, other libraries, and a target accuracy."""

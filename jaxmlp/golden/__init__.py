"""Golden bits in anyone's tests: a pytest plugin that compares trees of arrays with records kept beside the tests."""

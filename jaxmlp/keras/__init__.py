"""Networks that Keras trained, out of its files and into runs."""

"""What is an experiment? A value: the config, the kinds of parts that it is made of, and the parts that ship."""

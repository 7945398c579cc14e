"""`python -m jaxmlp`: the same program as the script `jaxmlp`."""

from jaxmlp.cli import program

if __name__ == "__main__":
    program()

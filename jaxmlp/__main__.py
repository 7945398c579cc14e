"""`python -m jaxmlp`: the program without its script."""

from jaxmlp.cli import program

if __name__ == "__main__":
    program()

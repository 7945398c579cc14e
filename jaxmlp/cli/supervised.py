"""`python -m jaxmlp.cli.supervised`: the program as the child of `distributed.supervise`."""

import os
import sys

from jaxmlp import distributed
from jaxmlp.cli import main
from jaxmlp.errors import PeerLostError

if __name__ == "__main__":
    distributed.become_supervised()
    code = main()
    if code == PeerLostError.exit_code:
        # JAX's own farewell would wait for the lost peer, and then abort.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    distributed.tell("code", code)
    # All is said. JAX's farewell waits for the others a while, and complains where they do not come.
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    sys.exit(code)

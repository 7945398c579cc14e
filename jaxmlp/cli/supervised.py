"""`python -m jaxmlp.cli.supervised`: the program as a child of `distributed.supervise`."""

import os
import sys

from jaxmlp.cli import main
from jaxmlp.errors import PeerLostError
from jaxmlp.system import distributed

if __name__ == "__main__":
    distributed.become_supervised()
    code = main()
    if code == PeerLostError.exit_code:
        # JAX's shutdown would wait for the lost peer and then abort.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    distributed.tell("code", code)
    # The work is done. JAX's shutdown waits a while for the other processes and complains if they do not come.
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    sys.exit(code)

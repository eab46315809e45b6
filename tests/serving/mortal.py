"""The application of ``fastdef.serving.cluster``, whose worker's thread ends where a client asks for it."""

from fastdef.serving import cluster
from fastdef.serving.options import Options


class Mortal(cluster.Replica):
    def __init__(self, options, ledger):
        super().__init__(options, ledger)
        self._app.get("/die")(lambda: self._app.state.worker.close(0))


def app(options: Options):
    cluster.Replica = Mortal
    return cluster.app(options)

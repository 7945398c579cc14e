"""How does a model leave for other programs? Each export is read back from disk and compared before it counts."""

from jaxmlp.export.checked import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]

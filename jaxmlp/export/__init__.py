"""A run's model in the formats of others, each read back from the disk and compared before it counts as written."""

from jaxmlp.export.checked import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]

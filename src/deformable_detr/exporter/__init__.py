"""Export with a certificate: a model for ONNX Runtime, OpenVINO or torch.export, measured against PyTorch
before it is written into place (docs/export.md). What reads these files is exported/.

    exportation.py      the whole way, `export`
    graph.py            the model as it is traced
    sampling.py         deformable attention by standard operators
    formats.py          .onnx, .xml, .pt2
    quantisation.py     int8
    certificate.py      drift and its bounds
"""

from .exportation import Export, export

__all__ = ["Export", "export"]

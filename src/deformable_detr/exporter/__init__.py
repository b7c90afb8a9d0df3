"""Export a model for ONNX Runtime, OpenVINO or torch.export with a certificate: the file is compared with the
PyTorch model before it is put into place (docs/export.md). inference/exported/ reads .onnx and .xml.

    exportation.py      `export`, from the model to the files
    graph.py            the model in the form that is traced
    sampling.py         deformable attention with standard operators
    formats.py          .onnx, .xml, .pt2
    quantisation.py     int8
    certificate.py      drift and its bounds
"""

from .exportation import Export, export

__all__ = ["Export", "export"]

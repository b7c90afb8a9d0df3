"""Export a model for ONNX Runtime, OpenVINO or torch.export, with a certificate.

The exported file is compared with the PyTorch model before it is moved to its final path (docs/export.md).
inference/exported/ reads .onnx and .xml files.

    exportation.py      `export`, which writes the files for a model
    graph.py            the model in the form that is traced
    sampling.py         deformable attention with standard operators
    translation.py      from a traced graph to ONNX
    formats.py          .onnx, .xml, .pt2
    quantisation.py     int8
    certificate.py      the drift (how far the results differ from PyTorch's) and its bounds
"""

from .exportation import Export, export

__all__ = ["Export", "export"]

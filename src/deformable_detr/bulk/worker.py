"""A worker, which turns a shard into a part. Every engine runs the same workers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..detections import Detections
from ..errors import UserError
from ..inference.detector import Detector
from ..prediction.pictures import FoundPicture, find_in_pictures
from .job import Job, check_identity
from .plan import Plan, pictures_of
from .reading import SourceLostError, readers
from .table import Part, make_part


class Worker:
    """A detector that computes parts of a plan.

    Without the argument `detector`, the worker loads the model of `job`.

    Raises:
        UserError: if the model cannot be loaded, if the model, the options or the packages here differ from
            those of the plan, or if the job names an unknown class.
    """

    def __init__(self, job: Job, plan: Plan, detector: Detector | None = None):
        self._plan = plan
        if detector is None:
            detector = job.load()
            check_identity(job.identity(detector), plan.settings["identity"])
        self._finder = job.finder(detector)

    def __call__(self, shard: Any) -> Part:
        """Detect objects in the pictures of a shard, and return the results as a `Part`, one output file.

        A picture that cannot be read is recorded there with the reason.

        Raises:
            UserError: if a source has disappeared, or the model's output is not finite.
        """
        max_pixels = self._finder.detector.data.max_pixels
        found: list[Detections | str] = [""] * shard.num_rows
        try:
            for picture in find_in_pictures(self._finder, readers(pictures_of(shard), max_pixels)):
                if isinstance(picture, FoundPicture):
                    found[picture.index] = replace(picture.detections, image=None)
                else:
                    found[picture.index] = picture.reason
        except SourceLostError as error:
            raise UserError(str(error)) from error
        return make_part(self._plan.part_name(shard), shard, found)

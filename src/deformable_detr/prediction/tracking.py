"""The same number for the same object from frame to frame: ByteTrack, as the library `trackers` has it."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from ..extras import import_extra
from ..inference.selection import Selection
from ..structures import Detections

FAINT = 0.5  # of a class's threshold: from here on a detection can keep a track alive, though it is not shown
_SURE, _UNSURE, _BETWEEN = 1.0, 0.5, 0.75  # what the tracker is told instead of scores


class ObjectTracker:
    """Gives detections their `track_ids`. Numbers begin at 1, in the second frame that shows an object.

    ByteTrack wants faint detections too: they say where an object is that is half hidden, and its track goes
    on. So `update` takes detections from `faint` on, and returns those that are wanted. What counts as sure
    depends on the class, which the tracker does not know: it is told two scores, wanted or not.
    """

    def __init__(self, selection: Selection, fps: float):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice of its dependencies about each other
            trackers = import_extra("trackers", "video", "tracking (without --no-track)")
        self.selection = selection
        self.faint = selection.loosened(FAINT)
        self._tracker = trackers.ByteTrackTracker(
            frame_rate=fps, track_activation_threshold=_BETWEEN, high_conf_det_threshold=_BETWEEN
        )

    def update(self, detections: Detections, time: float) -> Detections:
        """The wanted ones of one frame's detections, with `track_ids`. `time`: seconds, growing."""
        wanted = self.selection.wanted(detections)
        theirs = detections.to_supervision()
        theirs.confidence = np.where(wanted, _SURE, _UNSURE).astype(np.float32)
        theirs.data = {"row": np.arange(len(detections))}
        tracked = self._tracker.update(theirs, timestamp=time)
        ids = np.full(len(detections), -1, dtype=np.int64)
        if len(tracked):
            given = np.asarray(tracked.tracker_id)
            ids[np.asarray(tracked.data["row"])] = np.where(given >= 0, given + 1, -1)
        return replace(detections, track_ids=ids).take(np.flatnonzero(wanted))

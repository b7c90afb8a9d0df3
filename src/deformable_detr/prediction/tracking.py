"""Track objects, so that each keeps its number from frame to frame (ByteTrack of the library `trackers`)."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from ..detections import Detections
from ..extras import import_extra
from ..inference.selection import Selection

FAINT = 0.5  # share of a class's threshold that suffices for a detection to continue a track
_SURE, _UNSURE, _BETWEEN = 1.0, 0.5, 0.75  # two scores for the tracker, and its threshold between them


class ObjectTracker:
    """A tracker that numbers the objects of a video, so that each keeps its number from frame to frame.

    The numbers are the `track_ids` of the detections and start at 1. An object gets its number in its second
    frame; until then, its number is -1.

    ByteTrack also needs faint detections, which locate an object that is half hidden, so that its track
    continues. Therefore, `update` takes the detections that `faint` selects, a selection with lower minimum
    scores, and returns only those that `selection` selects. Which detections are certain depends on the
    class, which ByteTrack does not know, so it gets only two scores: one for the detections that `selection`
    selects, and one for all others.

    Args:
        selection: the minimum score of each class.
        fps: the number of frames per second that are passed to `update`.

    Raises:
        UserError: if the library `trackers` (extra [video]) is not installed.
    """

    def __init__(self, selection: Selection, fps: float):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its dependencies give advice about each other
            trackers = import_extra("trackers", "video", "tracking (without --no-track)")
        self.selection = selection
        self.faint = selection.loosened(FAINT)
        self._tracker = trackers.ByteTrackTracker(
            frame_rate=fps, track_activation_threshold=_BETWEEN, high_conf_det_threshold=_BETWEEN
        )

    def update(self, detections: Detections, time: float) -> Detections:
        """Return the selected detections of a frame with `track_ids`, which are -1 without a track.

        Args:
            detections: the detections of the frame that `faint` selects.
            time: the frame's time in seconds, which must increase from call to call.

        Raises:
            UserError: if a score or a box is not finite.
        """
        is_selected = self.selection.mask(detections)
        converted = detections.to_supervision()
        converted.confidence = np.where(is_selected, _SURE, _UNSURE).astype(np.float32)
        converted.data = {"row": np.arange(len(detections))}
        tracked = self._tracker.update(converted, timestamp=time)
        ids = np.full(len(detections), -1, dtype=np.int64)
        if len(tracked):
            given = np.asarray(tracked.tracker_id)
            ids[np.asarray(tracked.data["row"])] = np.where(given >= 0, given + 1, -1)
        return replace(detections, track_ids=ids).take(np.flatnonzero(is_selected))
